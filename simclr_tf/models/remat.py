"""Rematerialization: the backward pass computes a layer's activations again instead of keeping them (Chen et al. 2016).

`tf.recompute_grad` does not fit. Its second pass would update batch norm's moving averages again, and its search for
variables does not work with those of replicas and of mixed precision.
"""

from __future__ import annotations

from simclr_tf.core.tf import keras, tf
from simclr_tf.models.normalization import frozen_moving_averages


def _once_known(inputs: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """Returns the inputs, but makes them depend on `upstream`.

    Otherwise compilers would notice that both passes are equal and keep the results of the first. They do not know that
    the smaller of 0 and an absolute value is always 0. (Control dependencies would suffice in plain TensorFlow, but XLA
    ignores them.)
    """
    first = tf.reshape(upstream, [-1])[0]
    return inputs + tf.cast(tf.minimum(tf.abs(first), 0), inputs.dtype)


def recomputed(layer: keras.layers.Layer, inputs: tf.Tensor, *, training: bool) -> tf.Tensor:
    """Applies a layer and keeps only its inputs for the backward pass, which applies the layer a second time.

    Values, gradients and batch norm's moving averages are those of a plain call. This saves memory only inside a
    `tf.function`.

    Args:
      layer: layer that is already built and takes one tensor and `training`.
      inputs: inputs of the layer.
      training: batch norm's mode.

    Returns:
      The layer's output, one tensor.
    """
    variables = layer.trainable_variables
    # `attach` takes the weights only to return gradients for them; it does not use their values.
    weights = [tf.convert_to_tensor(variable) for variable in variables]
    # No gradient flows through the first pass, so TensorFlow keeps none of its activations.
    outputs = tf.stop_gradient(layer(tf.stop_gradient(inputs), training=training))

    def gradient(upstream: tf.Tensor):
        again = _once_known(tf.stop_gradient(inputs), upstream)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([again, *variables])
            with frozen_moving_averages():
                second = layer(again, training=training)
        to_inputs, *to_weights = tape.gradient(second, [again, *variables], output_gradients=upstream)
        return None, to_inputs, *(tf.cast(g, weight.dtype) for g, weight in zip(to_weights, weights))

    @tf.custom_gradient
    def attach(outputs, inputs, *weights):
        return tf.identity(outputs), gradient

    return attach(outputs, inputs, *weights)
