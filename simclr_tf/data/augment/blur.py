"""Gaussian blur with each image's own width (Chen et al. 2020a, appendix A)."""

from __future__ import annotations

from simclr_tf.core.tf import tf
from simclr_tf.data.augment.random_step import choose, random_step

SIGMA_RANGE = (0.1, 2.0)


def _band(sigma: tf.Tensor, size: tf.Tensor | int, radius: int) -> tf.Tensor:
    """Returns [..., size, size] float32: the convolution of a line of pixels, with zeros beyond its ends."""
    scale = -0.5 / tf.square(sigma)[..., None, None]

    def weights(distances: tf.Tensor) -> tf.Tensor:
        return tf.exp(scale * tf.cast(tf.square(distances), tf.float32))

    positions = tf.range(size)
    distances = positions[:, None] - positions[None, :]
    band = tf.where(tf.abs(distances) <= radius, weights(distances), 0.0)
    return band / tf.reduce_sum(weights(tf.range(-radius, radius + 1)[None, :]), axis=-1, keepdims=True)


def gaussian_blur(images: tf.Tensor, sigma: tf.Tensor, *, kernel_size: int | None = None) -> tf.Tensor:
    """Blurs each image with a Gaussian of its own.

    A separable convolution with zeros beyond the border ("SAME"), normalized over the full kernel, so that borders
    darken as in the published code. It is computed as two products with banded matrices, which on each device costs
    a fraction of a convolution with a kernel for each image. Where float32 products round their inputs (TPUs,
    TensorFloat-32), the result is as exact as what the first convolution of a network makes of it.

    Args:
      images: [..., 3, H, W] float32 in [0, 1], H and W static.
      sigma: [...] float32, standard deviation in pixels, positive.
      kernel_size: the kernel reaches `kernel_size // 2` pixels each way; by default `H // 10`.

    Returns:
      [..., 3, H, W] float32 in [0, 1].
    """
    height, width = images.shape[-2], images.shape[-1]
    if height is None or width is None:
        raise ValueError(f"gaussian_blur needs images of known height and width, got shape {images.shape}")
    radius = (height // 10 if kernel_size is None else kernel_size) // 2
    if radius == 0:
        return images
    rows = tf.matmul(images, _band(sigma, width, radius)[..., None, :, :])
    return tf.clip_by_value(tf.matmul(_band(sigma, height, radius)[..., None, :, :], rows), 0.0, 1.0)


@random_step("blur", draws=2)
def random_blur(images: tf.Tensor, draws: tf.Tensor, *, probability: float = 0.5) -> tf.Tensor:
    """Blurs at random: `random_blur(images, seeds, probability=0.5)`.

    Args:
      images: [..., 3, H, W] float32 in [0, 1].
      draws: [..., 2] in [0, 1).
      probability: with which an image is blurred, sigma uniform in [0.1, 2] pixels, kernel `H // 10`.
    """
    sigma = SIGMA_RANGE[0] + (SIGMA_RANGE[1] - SIGMA_RANGE[0]) * draws[..., 1]
    return choose(draws[..., 0] < probability, gaussian_blur(images, sigma), images)
