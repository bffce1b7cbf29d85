"""Recomputation: a layer's activations are computed again in the backward pass instead of being kept (Chen et al.
2016).

`tf.recompute_grad` does not fit: its second pass would move batch norm's averages again, and it looks for variables in
ways that replicas' and mixed precision's do not follow.
"""

from __future__ import annotations

from simclr_tf.core.tf import keras, tf
from simclr_tf.models.normalization import frozen_moving_averages


def _once_known(inputs: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """Returns the inputs, in a way that cannot be computed before `upstream` is.

    Compilers would otherwise see that the second pass equals the first one, and keep the first one's results. They do
    not know that the smaller of 0 and an absolute value is 0 (control dependencies would do in plain TensorFlow, not in
    XLA).
    """
    first = tf.reshape(upstream, [-1])[0]
    return inputs + tf.cast(tf.minimum(tf.abs(first), 0), inputs.dtype)


def recomputed(layer: keras.layers.Layer, inputs: tf.Tensor, *, training: bool) -> tf.Tensor:
    """Applies a layer and keeps only its inputs for the backward pass, which applies it a second time.

    Values, gradients and batch norm's moving averages are those of a plain call. Inside a `tf.function`; eagerly
    nothing is saved.

    Args:
      layer: built; takes one tensor and `training`.
      inputs: its inputs.
      training: batch norm's mode.

    Returns:
      What the layer returns, one tensor.
    """
    variables = layer.trainable_variables
    # Passed in so that gradients can be passed out; their values are not used.
    weights = [tf.convert_to_tensor(variable) for variable in variables]
    # The gradient goes round the first pass, and so nothing of it is kept.
    outputs = tf.stop_gradient(layer(tf.stop_gradient(inputs), training=training))

    def gradient(upstream: tf.Tensor):
        again = _once_known(tf.stop_gradient(inputs), upstream)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([again, *variables])
            with frozen_moving_averages():
                second = layer(again, training=training)
        towards_inputs, *towards_weights = tape.gradient(second, [again, *variables], output_gradients=upstream)
        return None, towards_inputs, *(tf.cast(g, weight.dtype) for g, weight in zip(towards_weights, weights))

    @tf.custom_gradient
    def attach(outputs, inputs, *weights):
        return tf.identity(outputs), gradient

    return attach(outputs, inputs, *weights)
