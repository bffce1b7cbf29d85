"""A SimCLR step of tf-models-official's parts: its ResNet, projection head, contrastive loss and LARS.

Its ResNet has no stem for small images, so it takes 224 pixels or so. Views arrive augmented, as random numbers.
Nothing of this project is imported.
"""

from __future__ import annotations

import importlib.metadata

import serve
import tensorflow as tf
from official.modeling.optimization import lars
from official.projects.simclr.heads import simclr_head
from official.projects.simclr.losses import contrastive_losses
from official.projects.simclr.modeling import simclr_model
from official.vision.modeling.backbones import resnet


def main() -> None:
    """Builds and serves."""
    options = serve.options()
    if options.size <= 32:
        raise SystemExit("tf-models-official has no stem for small images; use --size=224")
    tf.random.set_seed(0)
    if options.precision == "bfloat16":
        tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    specs = tf.keras.layers.InputSpec(shape=[None, options.size, options.size, 3])
    norm = {"norm_momentum": 0.9, "norm_epsilon": 1e-5}
    backbone = resnet.ResNet(options.depth, input_specs=specs, init_stochastic_depth_rate=0.0, **norm)
    model = simclr_model.SimCLRModel(
        input_specs=tf.keras.layers.InputSpec(shape=[None, options.size, options.size, 6]),
        backbone=backbone,
        projection_head=simclr_head.ProjectionHead(proj_output_dim=128, num_proj_layers=3, ft_proj_idx=0, **norm),
        supervised_head=simclr_head.ClassificationHead(num_classes=10),
        mode=simclr_model.PRETRAIN,
    )
    contrast = contrastive_losses.ContrastiveLoss(projection_norm=True, temperature=0.1)
    optimizer = lars.LARS(0.1, momentum=0.9, weight_decay_rate=1e-4, exclude_from_weight_decay=["batch_norm", "bias"])
    images = tf.random.uniform([options.images, options.size, options.size, 6])
    labels = tf.one_hot(tf.random.uniform([options.images], maxval=10, dtype=tf.int32), 10)

    @tf.function
    def train(images, labels):
        with tf.GradientTape() as tape:
            outputs = model(images, training=True)
            first, second = tf.split(tf.cast(outputs[simclr_model.PROJECTION_OUTPUT_KEY], tf.float32), 2, 0)
            loss, _ = contrast(first, second)
            logits = tf.cast(outputs[simclr_model.SUPERVISED_OUTPUT_KEY], tf.float32)
            both = tf.concat([labels, labels], 0)
            loss = tf.reduce_mean(loss)
            loss += tf.reduce_mean(tf.keras.losses.categorical_crossentropy(both, logits, from_logits=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return loss

    model(images, training=True)
    versions = (importlib.metadata.version(name) for name in ("tf-models-official", "tensorflow"))
    serve.serve(lambda: float(train(images, labels)), "tf-models-official {}, tensorflow {}".format(*versions))


if __name__ == "__main__":
    main()
