"""Cutout and rotation from tensorflow-addons, for the ablation of augmentations (Chen et al. 2020a, section 3.1).

XLA cannot compile either, so they run only on CPUs and GPUs without `jit_compile`. `Augment` checks for
tensorflow-addons when it is constructed; calling these functions without it raises the same UserError.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from simclr_tf.core.tf import addons, tf
from simclr_tf.data.augment.random_step import channels_first, channels_last, choose, random_step

# AutoGraph would try to convert the import and fail with a warning.
_addons = tf.autograph.experimental.do_not_convert(addons)


def cutout_size(image_side: int, fraction: float) -> int:
    """Returns the mask's side in pixels: the even number nearest to `fraction` of the image's side, at least 2."""
    return max(2 * round(fraction * image_side / 2), 2)


@random_step("cutout", draws=3)
def random_cutout(images: tf.Tensor, draws: tf.Tensor, *, fraction: float = 0.5, probability: float = 1.0) -> tf.Tensor:
    """Blacks out a random rectangle: `random_cutout(images, seeds, fraction=0.5, probability=1.0)`.

    Args:
      images: [3, H, W] or [B, 3, H, W] float32, H and W static.
      draws: [..., 3] in [0, 1).
      fraction: height and width of the mask as a fraction of the image's, in (0, 1). The mask lies inside the image.
      probability: probability that an image is masked.
    """
    if images.shape.rank == 3:
        return random_cutout.with_draws(images[None], draws[None], fraction=fraction, probability=probability)[0]
    sides = images.shape[-2:]
    mask = [cutout_size(side, fraction) for side in sides]
    centers = [
        # A mask with center c covers the pixels c - size / 2 to c + size / 2 - 1.
        tf.cast(tf.floor(draws[:, 1 + axis] * (sides[axis] - mask[axis] + 1)), tf.int32) + mask[axis] // 2
        for axis in (0, 1)
    ]
    cut = _addons("random cutout").image.cutout(channels_last(images), mask, tf.stack(centers, axis=-1))
    return choose(draws[:, 0] < probability, channels_first(cut), images)


@random_step("rotation", draws=2)
def random_rotation(
    images: tf.Tensor, draws: tf.Tensor, *, degrees: Sequence[float] = (90.0, 180.0, 270.0), probability: float = 1.0
) -> tf.Tensor:
    """Rotates by a random angle: `random_rotation(images, seeds, degrees=(90, 180, 270), probability=1.0)`.

    Args:
      images: [3, H, W] or [B, 3, H, W] float32 in [0, 1].
      draws: [..., 2] in [0, 1).
      degrees: angles to choose from, counterclockwise. Interpolation is bilinear; pixels from outside are black.
      probability: probability that an image is rotated.
    """
    if images.shape.rank == 3:
        return random_rotation.with_draws(images[None], draws[None], degrees=degrees, probability=probability)[0]
    choice = tf.cast(tf.floor(draws[:, 1] * len(degrees)), tf.int32)
    angles = tf.gather(tf.constant([math.radians(angle) for angle in degrees], tf.float32), choice)
    rotated = _addons("random rotation").image.rotate(channels_last(images), angles, interpolation="bilinear")
    return choose(draws[:, 0] < probability, tf.clip_by_value(channels_first(rotated), 0.0, 1.0), images)
