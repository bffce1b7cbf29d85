"""Sums over height and width that stay precise in bfloat16.

Without XLA, TensorFlow's CPU kernels add bfloat16 numbers in bfloat16. With its 8 significant bits, a sum of thousands
of numbers stops growing. So all sums over height and width, forward and backward, are computed here.
"""

from __future__ import annotations

from simclr_tf.core.tf import tf


def spatial_mean(maps: tf.Tensor, *, keepdims: bool = False) -> tf.Tensor:
    """Returns the mean over height and width, summed in float32 (in float64 for float64).

    Args:
      maps: [B, H, W, C].
      keepdims: whether to keep height and width as dimensions of size 1.

    Returns:
      [B, C] or [B, 1, 1, C], in the maps' type.
    """
    return tf.cast(tf.reduce_mean(wide(maps), axis=[1, 2], keepdims=keepdims), maps.dtype)


def flat(output: tf.Tensor) -> tf.Tensor:
    """Returns a network's output as vectors [B, C]: the spatial mean of maps [B, H, W, C], or vectors as they are."""
    return spatial_mean(output) if output.shape.rank == 4 else output


def scale_channels(maps: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor | None = None) -> tf.Tensor:
    """Computes maps * scale + shift in the type of the maps, and sums the gradients of scale and shift in float32.

    Args:
      maps: [B, H, W, C].
      scale: [C] or [B, 1, 1, C], of the same or a wider type.
      shift: shape and type of `scale`; None for no shift.

    Returns:
      [B, H, W, C].
    """

    def forward(maps, scale, *shift):
        scaled = maps * tf.cast(scale, maps.dtype)
        return scaled + tf.cast(shift[0], maps.dtype) if shift else scaled

    @tf.custom_gradient
    def with_wide_sums(maps, *factors):
        axes, keepdims = ([0, 1, 2], False) if factors[0].shape.rank == 1 else ([1, 2], True)

        def summed(values):
            return tf.cast(tf.reduce_sum(wide(values), axis=axes, keepdims=keepdims), factors[0].dtype)

        def gradients(upstream):
            sums = [summed(upstream * maps), summed(upstream)][: len(factors)]
            return upstream * tf.cast(factors[0], maps.dtype), *sums

        return forward(maps, *factors), gradients

    factors = [scale] if shift is None else [scale, shift]
    return forward(maps, *factors) if wide(maps) is maps else with_wide_sums(maps, *factors)


def wide(x: tf.Tensor) -> tf.Tensor:
    """Casts types narrower than float32 to float32, in which long sums are precise."""
    return x if x.dtype.size >= 4 else tf.cast(x, tf.float32)
