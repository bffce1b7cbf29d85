"""Sums over maps that keep their digits in bfloat16.

Without XLA, TensorFlow's CPU kernels add bfloat16 numbers in bfloat16, which has 8 bits: a sum of thousands of numbers
stops growing. Everything that adds up over height and width comes here, forward and backward.
"""

from __future__ import annotations

from simclr_tf.core.tf import tf


def spatial_mean(maps: tf.Tensor, *, keepdims: bool = False) -> tf.Tensor:
    """Returns the mean over height and width, added up in float32 (float64 for float64).

    Args:
      maps: [B, H, W, C].
      keepdims: whether height and width stay, as 1.

    Returns:
      [B, C] or [B, 1, 1, C], in the maps' type.
    """
    return tf.cast(tf.reduce_mean(_wide(maps), axis=[1, 2], keepdims=keepdims), maps.dtype)


def flat(output: tf.Tensor) -> tf.Tensor:
    """Returns a network's output as vectors, [B, C]: the spatial mean of maps [B, H, W, C], vectors as they are."""
    return spatial_mean(output) if output.shape.rank == 4 else output


def scale_channels(maps: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor | None = None) -> tf.Tensor:
    """Computes maps * scale + shift in the maps' type; the gradients of scale and shift are added up in float32.

    Args:
      maps: [B, H, W, C].
      scale: [C] or [B, 1, 1, C], of the maps' type or a wider one.
      shift: like `scale`; None for none.

    Returns:
      [B, H, W, C].
    """

    def forward(maps, scale, *shift):
        scaled = maps * tf.cast(scale, maps.dtype)
        return scaled + tf.cast(shift[0], maps.dtype) if shift else scaled

    @tf.custom_gradient
    def narrow(maps, *factors):
        axes, keepdims = ([0, 1, 2], False) if factors[0].shape.rank == 1 else ([1, 2], True)

        def summed(values):
            return tf.cast(tf.reduce_sum(_wide(values), axis=axes, keepdims=keepdims), factors[0].dtype)

        def gradients(upstream):
            sums = [summed(upstream * maps), summed(upstream)][: len(factors)]
            return upstream * tf.cast(factors[0], maps.dtype), *sums

        return forward(maps, *factors), gradients

    factors = [scale] if shift is None else [scale, shift]
    return forward(maps, *factors) if _wide(maps) is maps else narrow(maps, *factors)


def _wide(x: tf.Tensor) -> tf.Tensor:
    """Returns numbers of a type that many of them can be added up in."""
    return x if x.dtype.size >= 4 else tf.cast(x, tf.float32)
