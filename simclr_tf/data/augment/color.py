"""Color distortion with separate parameters for each image (Chen et al. 2020a, appendix A).

The adjustments equal those of `tf.image.adjust_*`, which take one parameter for a whole batch and would have to run
16 times for a random order of four. Functions here take images [..., 3, H, W] float32 in [0, 1] and parameters [...];
random steps are called with [..., H, W, 3] and seeds (see `random_step.py`).
"""

from __future__ import annotations

import functools

from simclr_tf.core.tf import tf
from simclr_tf.data.augment.random_step import choose, random_step

Planes = list[tf.Tensor]  # Red, green and blue, each [..., H, W].

# Weights of red, green and blue in `tf.image.rgb_to_grayscale` (ITU-R BT.601).
_GRAY_WEIGHTS = (0.2989, 0.587, 0.114)
_TINY = 1e-30  # Keeps the hue of grays, which have no chroma, from being 0 / 0.
BRIGHTNESS_KINDS = ("multiplicative", "additive")


def _clip(x: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(x, 0.0, 1.0)


def _per_image(parameter: tf.Tensor) -> tf.Tensor:
    return parameter[..., None, None]


def _turn_and_saturate(planes: Planes, delta: tf.Tensor, factor: tf.Tensor) -> Planes:
    """Adds `delta` (in turns) to the hue and multiplies the saturation by `factor`, keeping HSV's value.

    In HSV a color is its greatest channel, its chroma (greatest minus least channel) and its hue. Saturation is chroma
    over the greatest channel, clipped to 1. The two adjustments commute, and neither leaves [0, 1].
    """
    red, green, blue = planes
    greatest = tf.maximum(tf.maximum(red, green), blue)
    chroma = greatest - tf.minimum(tf.minimum(red, green), blue)
    red_leads, green_leads = tf.equal(greatest, red), tf.equal(greatest, green)
    difference = tf.where(red_leads, green - blue, tf.where(green_leads, blue - red, red - green))
    sector = tf.where(red_leads, 0.0, tf.where(green_leads, 1 / 3, 2 / 3))
    hue = difference / (6.0 * tf.maximum(chroma, _TINY)) + (sector + _per_image(delta))
    hue = 6.0 * (hue - tf.floor(hue))
    chroma = tf.minimum(_per_image(factor) * chroma, greatest)
    least = greatest - chroma
    return [
        least + chroma * _clip(tf.abs(hue - 3.0) - 1.0),
        least + chroma * _clip(2.0 - tf.abs(hue - 2.0)),
        least + chroma * _clip(2.0 - tf.abs(hue - 4.0)),
    ]


def _contrast_or_brightness(
    planes: Planes, is_contrast: tf.Tensor, contrast: tf.Tensor, brightness: tf.Tensor, *, additive: bool
) -> Planes:
    """Scales around each channel's mean over the image (contrast) or changes the brightness, then clips."""
    factor = _per_image(tf.where(is_contrast, contrast, 1.0 if additive else brightness))
    rest = tf.where(_per_image(is_contrast), 1.0 - factor, 0.0)
    changed = [factor * plane + rest * tf.reduce_mean(plane, axis=[-2, -1], keepdims=True) for plane in planes]
    if additive:
        delta = _per_image(tf.where(is_contrast, 0.0, brightness))
        changed = [plane + delta for plane in changed]
    return [_clip(plane) for plane in changed]


def jitter(
    images: tf.Tensor,
    *,
    brightness: tf.Tensor,
    contrast: tf.Tensor,
    saturation: tf.Tensor,
    hue: tf.Tensor,
    places: tf.Tensor,
    additive: bool = False,
) -> tf.Tensor:
    """Adjusts brightness, contrast, saturation and hue in a separate order for each image, clipping after each.

    Hue and saturation commute, so only the order of brightness and contrast matters, and whether hue and saturation
    each come before, between or after those two. Five steps thus cover all 24 orders.

    Args:
      images: [..., 3, H, W] float32 in [0, 1].
      brightness: [...] factors, or offsets if `additive`.
      contrast: [...] factors.
      saturation: [...] factors.
      hue: [...] offsets, in turns.
      places: [..., 4] distinct numbers for brightness, contrast, saturation and hue; lower comes earlier.
      additive: whether brightness is added instead of multiplied.

    Returns:
      [..., 3, H, W] float32 in [0, 1].
    """
    place_brightness, place_contrast, place_saturation, place_hue = tf.unstack(places, axis=-1)
    contrast_first = place_contrast < place_brightness
    first, second = tf.minimum(place_brightness, place_contrast), tf.maximum(place_brightness, place_contrast)

    def turn_and_saturate(planes: Planes, low: tf.Tensor | None, high: tf.Tensor | None) -> Planes:
        def inside(place: tf.Tensor) -> tf.Tensor:
            above = True if low is None else place >= low
            below = True if high is None else place < high
            return tf.logical_and(above, below)

        return _turn_and_saturate(
            planes, tf.where(inside(place_hue), hue, 0.0), tf.where(inside(place_saturation), saturation, 1.0)
        )

    adjust = functools.partial(_contrast_or_brightness, contrast=contrast, brightness=brightness, additive=additive)
    planes = tf.unstack(images, axis=-3)
    planes = turn_and_saturate(planes, None, first)
    planes = adjust(planes, contrast_first)
    planes = turn_and_saturate(planes, first, second)
    planes = adjust(planes, tf.logical_not(contrast_first))
    planes = turn_and_saturate(planes, second, None)
    return _clip(tf.stack(planes, axis=-3))


def to_gray(images: tf.Tensor) -> tf.Tensor:
    """Returns gray images, [..., 3, H, W], whose three channels all hold the luma of `images`."""
    gray = tf.add_n([weight * plane for weight, plane in zip(_GRAY_WEIGHTS, tf.unstack(images, axis=-3))])
    return tf.stack([gray] * 3, axis=-3)


@random_step("jitter", draws=9)
def color_jitter(
    images: tf.Tensor,
    draws: tf.Tensor,
    *,
    strength: float = 1.0,
    probability: float = 0.8,
    brightness: str = "multiplicative",
) -> tf.Tensor:
    """Distorts colors at random: `color_jitter(images, seeds, strength=1.0, probability=0.8)`.

    In random order, brightness, contrast and saturation are multiplied by factors in [max(1 - 0.8 s, 0), 1 + 0.8 s],
    and hue shifts by up to 0.2 s of a full turn either way.

    Args:
      images: [..., 3, H, W] float32 in [0, 1].
      draws: [..., 9] in [0, 1).
      strength: the s above; 1 for ImageNet, 0.5 for CIFAR-10.
      probability: probability that an image is distorted at all.
      brightness: "multiplicative", or "additive" as in SimCLR's first version, which adds up to 0.8 s either way.

    Returns:
      [..., 3, H, W] float32 in [0, 1].
    """
    low, high, turn = max(1.0 - 0.8 * strength, 0.0), 1.0 + 0.8 * strength, 0.2 * strength
    factors = low + (high - low) * draws[..., 1:4]
    additive = brightness == "additive"
    distorted = jitter(
        images,
        brightness=0.8 * strength * (2.0 * draws[..., 1] - 1.0) if additive else factors[..., 0],
        contrast=factors[..., 1],
        saturation=factors[..., 2],
        hue=turn * (2.0 * draws[..., 4] - 1.0),
        places=draws[..., 5:9],
        additive=additive,
    )
    return choose(draws[..., 0] < probability, distorted, images)


@random_step("gray", draws=1)
def random_gray(images: tf.Tensor, draws: tf.Tensor, *, probability: float = 0.2) -> tf.Tensor:
    """Turns images gray at random: `random_gray(images, seeds, probability=0.2)`."""
    return choose(draws[..., 0] < probability, to_gray(images), images)
