"""Gaussian blur with a separate width for each image (Chen et al. 2020a, appendix A)."""

from __future__ import annotations

from simclr_tf.core.tf import tf
from simclr_tf.data.augment.random_step import choose, random_step

SIGMA_RANGE = (0.1, 2.0)


def _band(sigma: tf.Tensor, size: tf.Tensor | int, radius: int) -> tf.Tensor:
    """Returns the banded matrix, [..., size, size] float32, that blurs a line of pixels padded with zeros."""
    scale = -0.5 / tf.square(sigma)[..., None, None]

    def weights(distances: tf.Tensor) -> tf.Tensor:
        return tf.exp(scale * tf.cast(tf.square(distances), tf.float32))

    positions = tf.range(size)
    distances = positions[:, None] - positions[None, :]
    band = tf.where(tf.abs(distances) <= radius, weights(distances), 0.0)
    return band / tf.reduce_sum(weights(tf.range(-radius, radius + 1)[None, :]), axis=-1, keepdims=True)


def gaussian_blur(images: tf.Tensor, sigma: tf.Tensor, *, kernel_size: int | None = None) -> tf.Tensor:
    """Blurs each image with its own Gaussian.

    This is a separable convolution with zero padding ("SAME"), normalized over the full kernel, so borders darken as
    in the published code. Two products with banded matrices compute it; on every device they cost a fraction of a
    convolution with one kernel per image. Where float32 products round their inputs (TPUs, TensorFloat-32), the
    network's first convolution rounds the result just as much.

    Args:
      images: [..., 3, H, W] float32 in [0, 1], H and W static.
      sigma: [...] float32, standard deviations in pixels, positive.
      kernel_size: size of the kernel, which reaches `kernel_size // 2` pixels each way; `H // 10` by default.

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
    """Blurs images at random: `random_blur(images, seeds, probability=0.5)`.

    Sigma is uniform in [0.1, 2] pixels, the kernel's size `H // 10`.

    Args:
      images: [..., 3, H, W] float32 in [0, 1].
      draws: [..., 2] in [0, 1).
      probability: probability that an image is blurred.
    """
    sigma = SIGMA_RANGE[0] + (SIGMA_RANGE[1] - SIGMA_RANGE[0]) * draws[..., 1]
    return choose(draws[..., 0] < probability, gaussian_blur(images, sigma), images)
