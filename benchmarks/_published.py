"""A stand-in for the published TensorFlow 2 pretraining step, written from the method's description.

Plain Keras in float32: padding as an operation of its own before strided convolutions, batch norm that can exchange its
moments (and so is not fused), NT-Xent with masked logits, a linear probe behind a stopped gradient, LARS variable by
variable. Views arrive augmented.
"""

from __future__ import annotations

from benchmarks import _common  # noqa: F401  (finds the package)
from simclr_tf.core.tf import keras, tf

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def _conv(filters: int, size: int, strides: int = 1) -> list:
    padding = []
    if strides > 1:
        before = (size - 1) // 2
        padding = [keras.layers.ZeroPadding2D(((before, size - 1 - before),) * 2)]
    return [
        *padding,
        keras.layers.Conv2D(
            filters,
            size,
            strides,
            "same" if strides == 1 else "valid",
            use_bias=False,
            kernel_initializer=keras.initializers.VarianceScaling(),
        ),
    ]


def _norm(zero: bool = False):
    return keras.layers.BatchNormalization(
        momentum=0.9, epsilon=1e-5, gamma_initializer="zeros" if zero else "ones", synchronized=True
    )


def _block(x: tf.Tensor, filters: int, strides: int, project: bool) -> tf.Tensor:
    def through(x, layers):
        for layer in layers:
            x = layer(x)
        return x

    shortcut = through(x, [*_conv(filters, 1, strides), _norm()]) if project else x
    x = through(x, [*_conv(filters, 3, strides), _norm(), keras.layers.ReLU(), *_conv(filters, 3), _norm(zero=True)])
    return keras.layers.ReLU()(x + shortcut)


def encoder(depth: int, size: int, width: int = 1) -> keras.Model:
    """A ResNet with the stem for small images: [B, size, size, 3] -> [B, 512 width]."""
    images = x = keras.Input([size, size, 3])
    for layer in (*_conv(64 * width, 3), _norm(), keras.layers.ReLU()):
        x = layer(x)
    for group, count in enumerate(BLOCKS[depth]):
        for i in range(count):
            x = _block(x, 64 * width * 2**group, 2 if group and not i else 1, project=not i)
    return keras.Model(images, keras.layers.GlobalAveragePooling2D()(x))


def head(features: int, output_dim: int = 128, layers: int = 2) -> keras.Sequential:
    """The projection head."""
    model = keras.Sequential([keras.Input([features])])
    for i in range(layers):
        last = i == layers - 1
        model.add(keras.layers.Dense(output_dim if last else features, use_bias=False))
        model.add(keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, center=not last, synchronized=True))
        if not last:
            model.add(keras.layers.ReLU())
    return model


def contrastive_loss(projections: tf.Tensor, temperature: float) -> tf.Tensor:
    """Mean NT-Xent of [2B, D], first views first."""
    first, second = tf.split(tf.math.l2_normalize(projections, -1), 2)
    rows = tf.shape(first)[0]
    labels, masks = tf.one_hot(tf.range(rows), rows * 2), tf.one_hot(tf.range(rows), rows)

    def direction(queries, others):
        same = tf.matmul(queries, queries, transpose_b=True) / temperature - masks * 1e9
        other = tf.matmul(queries, others, transpose_b=True) / temperature
        return tf.nn.softmax_cross_entropy_with_logits(labels, tf.concat([other, same], 1))

    return tf.reduce_mean(direction(first, second) + direction(second, first))


class Step:
    """Variables and one compiled step of the stand-in."""

    def __init__(
        self, depth: int, size: int, images: int, *, width: int = 1, classes: int = 10, temperature: float = 0.5
    ):
        """Builds it for a batch of `images`, two views each."""
        self.encoder = encoder(depth, size, width)
        features = self.encoder.output_shape[-1]
        self.head = head(features)
        self.probe = keras.layers.Dense(classes)
        self.probe.build([None, features])
        self.variables = [
            *self.encoder.trainable_variables,
            *self.head.trainable_variables,
            *self.probe.trainable_variables,
        ]
        self.momenta = [tf.Variable(tf.zeros_like(variable), trainable=False) for variable in self.variables]
        self._temperature = temperature
        shape = [2 * images, size, size, 3]
        self.run = tf.function(self._run, input_signature=[tf.TensorSpec(shape), tf.TensorSpec([images], tf.int32)])

    def _run(self, views: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            features = self.encoder(views, training=True)
            loss = contrastive_loss(self.head(features, training=True), self._temperature)
            logits = self.probe(tf.stop_gradient(features))
            classes = tf.concat([labels, labels], 0)
            loss += tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(classes, logits))
        gradients = tape.gradient(loss, self.variables)
        for variable, momentum, gradient in zip(self.variables, self.momenta, gradients):
            rate = tf.constant(0.1)
            if variable.shape.rank > 1:
                gradient += 1e-4 * variable
                norm, gradient_norm = tf.norm(variable), tf.norm(gradient)
                rate *= tf.where((norm > 0) & (gradient_norm > 0), 0.001 * norm / gradient_norm, 1.0)
            momentum.assign(0.9 * momentum + rate * gradient)
            variable.assign_sub(momentum)
        return loss
