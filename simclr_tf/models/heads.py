"""The heads on top of an encoder: projection head and linear classifier."""

from __future__ import annotations

from simclr_tf.core import checks
from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import keras, tf
from simclr_tf.models.normalization import BatchNorm


class ProjectionLayer(keras.layers.Layer):
    """Dense layer without bias, batch norm and, except in a head's last layer, ReLU."""

    def __init__(self, units: int, *, last: bool, **kwargs):
        """Creates a layer with `units` outputs; a head's last layer has neither `beta` nor ReLU."""
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(
            units,
            use_bias=False,
            # As in the published code.
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
            dtype=self._dtype_policy,
        )
        self.norm = BatchNorm(center=not last, dtype=self._dtype_policy)
        self._last = last

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[B, D] -> [B, units]."""
        outputs = self.norm(self.dense(inputs), training=training)
        return outputs if self._last else tf.nn.relu(outputs)


class ProjectionHead(keras.Model):
    """Projection head: hidden layers as wide as the encoder's output, then one of `output_dim` (Chen et al. 2020b)."""

    def __init__(
        self, input_dim: int, num_layers: int = 3, output_dim: int = 128, used_layers: int | None = None, **kwargs
    ):
        """Creates the layers.

        Args:
          input_dim: width of the encoder's output and of the hidden layers.
          num_layers: number of layers, 0-4; with 0 the loss contrasts the encoder's output itself.
          output_dim: width of the projection.
          used_layers: number of layers to create, from the first on; None for all. Fine-tuning from a hidden layer
            drops the layers after it.
          **kwargs: `name` and `dtype` (a Keras policy).
        """
        super().__init__(**kwargs)
        checks.whole("ProjectionHead.num_layers", num_layers, least=0, most=4)
        checks.whole("ProjectionHead.output_dim", output_dim, hint=", such as 128")
        if used_layers is not None and used_layers not in range(num_layers + 1):
            raise UserError(
                f"the projection head has no layer {used_layers!r}, only {num_layers} layer(s); "
                f"choose 0 (the encoder's output) to {num_layers}"
            )
        self.num_layers, self.output_dim = num_layers, output_dim
        self.used_layers = num_layers if used_layers is None else used_layers
        self.projections = [
            ProjectionLayer(
                output_dim if i == num_layers - 1 else input_dim, last=i == num_layers - 1, dtype=self._dtype_policy
            )
            for i in range(self.used_layers)
        ]

    def call(self, features: tf.Tensor, training: bool = False, frozen: int = 0) -> dict[str, tf.Tensor]:
        """Projects features.

        Args:
          features: [B, input_dim], the encoder's `final_avg_pool`.
          training: batch norm's mode.
          frozen: number of layers, from the first on, that always stay in inference mode and pass no gradient.

        Returns:
          `head_layer_0` (the features), `head_layer_1` .. `head_layer_N` (after ReLU, except in the last layer) and, if
          the head has all its layers, `projection`, which equals the last of them.
        """
        outputs = {"head_layer_0": features}
        x = features
        for i, layer in enumerate(self.projections):
            x = layer(x, training=training and i >= frozen)
            if i == frozen - 1:
                x = tf.stop_gradient(x)
            outputs[f"head_layer_{i + 1}"] = x
        if self.used_layers == self.num_layers:
            outputs["projection"] = x
        return outputs

    def describe(self) -> dict:
        """Returns the constructor's arguments, except the width, which follows from the encoder."""
        return {"num_layers": self.num_layers, "output_dim": self.output_dim, "used_layers": self.used_layers}


class Classifier(keras.layers.Layer):
    """Linear layer to class logits, computed in the type of its variables."""

    def __init__(self, num_classes: int, *, zero_init: bool = False, **kwargs):
        """Creates the layer; `zero_init` makes the first logits all 0 instead of small and random."""
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.dense = keras.layers.Dense(
            num_classes,
            kernel_initializer="zeros" if zero_init else keras.initializers.RandomNormal(stddev=0.01),
            dtype=self.variable_dtype,
        )

    def call(self, features: tf.Tensor) -> tf.Tensor:
        """[B, D] -> [B, num_classes] logits in float32 (float64 in double precision)."""
        return self.dense(tf.cast(features, self.variable_dtype))
