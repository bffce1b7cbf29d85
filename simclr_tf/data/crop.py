"""The host's part of augmentation: crop boxes and bicubic resizing.

A box is `(y, x, height, width)`, int32, in pixels; y and x count from the top left corner.
"""

from __future__ import annotations

from simclr_tf.core.randomness import fold_in, stream, uniform
from simclr_tf.core.tf import tf

Box = tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]

EVALUATION_PROPORTION = 0.875
LARGEST_UNCROPPED_SIZE = 32  # Images of this size or less are evaluated whole (CIFAR-10).

# Share of the image's area: the effect of `min_object_covered` in TensorFlow's operation when there are no objects.
LEAST_PUBLISHED_AREA = 0.1
_ATTEMPTS = 10
_DRAWS = 2 * _ATTEMPTS + 2


def crop_draws(seed: tf.Tensor) -> tf.Tensor:
    """Returns the random numbers of `random_crop_box`.

    One image costs as much as a batch, so a pipeline draws the numbers of a whole batch here and gives each image its
    row.

    Args:
      seed: [..., 2] int32.

    Returns:
      [..., 22] float32 in [0, 1).
    """
    return uniform(fold_in(seed, stream("crop")), _DRAWS)


def random_crop_box(
    seed: tf.Tensor | None,
    height: tf.Tensor | int,
    width: tf.Tensor | int,
    *,
    area_range: tuple[float, float] = (0.08, 1.0),
    ratio_range: tuple[float, float] = (3 / 4, 4 / 3),
    kind: str = "paper",
    draws: tf.Tensor | None = None,
) -> Box:
    """Returns a box of random area, aspect ratio and position.

    "paper" (Chen et al. 2020a, appendix A): the share of the area is uniform in `area_range` and width / height is
    uniform in `ratio_range`, among the crops that fit into the image.
    "published" (`tf.image.sample_distorted_bounding_box` as the released code calls it): width / height is uniform,
    then the height is uniform among those that fit, and areas below 10 % are rejected. Small crops are more likely: on
    large squares the mean area is 42.1 %, against 47.7 % for "paper".

    The first of ten attempts that fits is taken. Attempts are drawn from ranges in which a fit is possible. If none
    fits, the result is the largest central crop within the ranges.

    Args:
      seed: [..., 2] int32; unused if `draws` is given.
      height: [...] integers, the image's height in pixels.
      width: [...] integers, the image's width in pixels.
      area_range: minimum and maximum share of the image's area; a minimum of 1 takes the whole image, or
        the largest central part within `ratio_range`.
      ratio_range: minimum and maximum width / height.
      kind: "paper" or "published".
      draws: result of `crop_draws(seed)`, if it has been computed already.

    Returns:
      y, x, height, width: int32 [...], inside the image and at least one pixel each way. Up to rounding to pixels,
      width / height lies in `ratio_range`.
    """
    height, width = tf.cast(height, tf.int32), tf.cast(width, tf.int32)
    if draws is None:
        draws = crop_draws(seed)
    full = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    size, ratio, place_y, place_x = tf.split(draws, [_ATTEMPTS, _ATTEMPTS, 1, 1], axis=-1)
    within = tuple(side[..., None] for side in full)
    sides, fits = _ATTEMPT[kind](size, ratio, within, area_range, ratio_range)
    for side, most in zip(sides, within):
        fits &= (side >= 1) & (side <= most)
    attempts = tf.where(fits, tf.range(_ATTEMPTS), _ATTEMPTS)
    first = tf.reduce_min(attempts, axis=-1)
    taken = fits & tf.equal(attempts, first[..., None])
    none = tf.equal(first, _ATTEMPTS)
    crop = tuple(
        tf.where(none, largest, tf.reduce_sum(tf.where(taken, side, 0.0), axis=-1))
        for side, largest in zip(sides, _largest(*full, area_range, ratio_range))
    )

    def place(unit: tf.Tensor, room: tf.Tensor) -> tf.Tensor:
        # TensorFlow's operation never takes the last position, so "published" does not. The product can round up.
        drawn = tf.minimum(tf.floor(unit * (room + (kind == "paper"))), room)
        return tf.cast(tf.where(none, tf.floor(room / 2), drawn), tf.int32)

    return (
        place(place_y[..., 0], full[0] - crop[0]),
        place(place_x[..., 0], full[1] - crop[1]),
        *(tf.cast(side, tf.int32) for side in crop),
    )


def _uniform(draw: tf.Tensor, bounds: tuple[float, float], least: tf.Tensor | float, most: tf.Tensor) -> tf.Tensor:
    """Maps draws in [0, 1) to numbers uniform in `bounds`, narrowed to `least` and `most` where these are tighter."""
    low, high = bounds
    below, above = tf.maximum(least - low, 0.0), tf.maximum(high - most, 0.0)
    return (low + below) + (high - low - below - above) * draw


def _what_fits(draw, full, least_share, ratio_range):
    """Returns the largest share of the area that a ratio in range can cover, and ratios at which the least share fits.

    Args:
      draw: [..., N] in [0, 1), for the ratios.
      full: the image's height and width, [..., 1].
      least_share: minimum share of the image's area.
      ratio_range: see `random_crop_box`.
    """
    height, width = full
    image_ratio = width / height
    # The largest crop of ratio r covers min(image_ratio / r, r / image_ratio) of the image.
    most = tf.minimum(ratio_range[1] / image_ratio, image_ratio / ratio_range[0])
    return most, _uniform(draw, ratio_range, least_share * image_ratio, image_ratio / least_share)


def _by_area(share, ratio, full, area_range, ratio_range):
    """Makes attempts as in the paper.

    Args:
      share: [..., N] in [0, 1), draws for the areas.
      ratio: [..., N] in [0, 1), draws for the ratios.
      full: the image's height and width, [..., 1].
      area_range: see `random_crop_box`.
      ratio_range: see `random_crop_box`.

    Returns:
      Heights and widths in whole pixels, and which attempts are allowed if they fit into the image; [..., N] each.
    """
    height, width = full
    most, ratio = _what_fits(ratio, full, area_range[0], ratio_range)
    area = height * width * _uniform(share, area_range, area_range[0], most)
    sides = tf.round(tf.sqrt(area / ratio)), tf.round(tf.sqrt(area * ratio))
    return sides, most >= area_range[0]


def _by_height(place, ratio, full, area_range, ratio_range):
    """Makes attempts as TensorFlow's operation does; see `_by_area`."""
    height, width = full
    least_share = max(area_range[0], LEAST_PUBLISHED_AREA)
    most_share, ratio = _what_fits(ratio, full, least_share, ratio_range)
    least, most = (share * height * width for share in area_range)
    highest = tf.round(tf.sqrt(most / ratio))
    wide = tf.round(highest * ratio) > width
    highest = tf.where(wide, tf.floor((width + 0.5) / ratio), highest)
    highest -= tf.cast(tf.round(highest * ratio) > width, tf.float32)
    highest = tf.minimum(highest, height)
    lowest = tf.minimum(tf.round(tf.sqrt(least / ratio)), highest)
    heights = lowest + tf.minimum(tf.floor(place * (highest - lowest + 1)), highest - lowest)
    # Rounding may leave the range; the operation then moves on to the next height.
    heights += tf.cast(heights * tf.round(heights * ratio) < least, tf.float32)
    heights -= tf.cast(heights * tf.round(heights * ratio) > most, tf.float32)
    widths = tf.round(heights * ratio)
    areas = heights * widths
    allowed = (most_share >= least_share) & (areas >= least_share * height * width) & (areas <= most)
    return (heights, widths), allowed


_ATTEMPT = {"paper": _by_area, "published": _by_height}
CROP_KINDS = tuple(_ATTEMPT)


def _largest(height, width, area_range, ratio_range) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns height and width, in whole pixels, of the largest crop within the ranges of ratio and area."""
    ratio = tf.clip_by_value(width / height, *ratio_range)
    most = tf.sqrt(area_range[1] * height * width / ratio)
    side = tf.minimum(tf.minimum(height, width / ratio), most)
    return tuple(
        tf.clip_by_value(tf.round(value), 1.0, whole) for value, whole in ((side, height), (side * ratio, width))
    )


def central_crop_box(height: tf.Tensor | int, width: tf.Tensor | int, proportion: float) -> Box:
    """Returns the central square box.

    Args:
      height: [...] integers, the image's height in pixels.
      width: [...] integers, the image's width in pixels.
      proportion: share of the image's shorter side, in (0, 1].

    Returns:
      y, x, height, width: int32 [...].
    """
    height, width = tf.cast(height, tf.int32), tf.cast(width, tf.int32)
    side = tf.cast(tf.round(proportion * tf.cast(tf.minimum(height, width), tf.float32)), tf.int32)
    side = tf.maximum(side, 1)
    return (height - side + 1) // 2, (width - side + 1) // 2, side, side


def evaluation_crop_box(height: tf.Tensor | int, width: tf.Tensor | int, image_size: int) -> Box:
    """Returns the box that evaluation takes: the central 87.5 %, or the whole central square for small images.

    Args:
      height: [...] integers, the image's height in pixels.
      width: [...] integers, the image's width in pixels.
      image_size: side of the resized crop in pixels; up to 32, nothing is cut off a square image.
    """
    proportion = 1.0 if image_size <= LARGEST_UNCROPPED_SIZE else EVALUATION_PROPORTION
    return central_crop_box(height, width, proportion)


def resize(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes by bicubic interpolation (Keys, a = -0.5; half-pixel centers; no anti-aliasing), as published.

    Args:
      image: [H, W, C] or [B, H, W, C], uint8 or floating in [0, 1].
      size: side of the result in pixels.

    Returns:
      [..., size, size, C], clipped to the range of colors: uint8, rounded, for uint8 images, else float32.
    """
    resized = tf.image.resize(image, [size, size], method=tf.image.ResizeMethod.BICUBIC)
    if image.dtype == tf.uint8:
        return _rounded(resized)
    return tf.clip_by_value(resized, 0.0, 1.0)


def _rounded(colors: tf.Tensor) -> tf.Tensor:
    """Rounds colors to the nearest uint8."""
    # A single operation, where tf.clip_by_value makes two passes.
    clipped = tf.raw_ops.ClipByValue(t=tf.round(colors), clip_value_min=0.0, clip_value_max=255.0)
    return tf.cast(clipped, tf.uint8)


def bicubic_weights(start: tf.Tensor, length: tf.Tensor, full: int, size: int) -> tf.Tensor:
    """Returns the matrix that crops a line of pixels and resizes the crop as `resize` does.

    Args:
      start: [...] int32, first pixel of the crop.
      length: [...] int32, length of the crop, at least 1.
      full: length of the line in pixels.
      size: length of the result in pixels.

    Returns:
      [..., size, full] float32; rows sum to 1.
    """
    start, length = (tf.cast(value, tf.float32)[..., None, None] for value in (start, length))
    places = tf.range(full, dtype=tf.float32)
    centers = (tf.range(size, dtype=tf.float32)[:, None] + 0.5) * (length / size) - 0.5 + start
    distance = tf.abs(places - centers)
    # Keys' cubic kernel, in pieces: distances below 1, and from 1 to 2.
    near = (1.5 * distance - 2.5) * tf.square(distance) + 1.0
    far = ((2.5 - 0.5 * distance) * distance - 4.0) * distance + 2.0
    weights = tf.where(distance < 1.0, near, tf.where(distance < 2.0, far, 0.0))
    weights = tf.where((places >= start) & (places < start + length), weights, 0.0)
    return weights / tf.reduce_sum(weights, axis=-1, keepdims=True)


def crop_and_resize(images: tf.Tensor, boxes: Box, size: int) -> tf.Tensor:
    """Crops and resizes a batch, with V separate boxes for each image, by two small matrix products per crop.

    The result differs from `resize` of each crop by one level at most, due to rounding. It is fast for small images.

    Args:
      images: [B, H, W, C] uint8, H and W static.
      boxes: y, x, height, width, [B, V] each.
      size: side of the result in pixels.

    Returns:
      [B, V, size, size, C] uint8.
    """
    height, width = images.shape[1], images.shape[2]
    planes = tf.transpose(tf.cast(images, tf.float32), [0, 3, 1, 2])[:, None]
    rows = bicubic_weights(boxes[0], boxes[2], height, size)[:, :, None]
    columns = bicubic_weights(boxes[1], boxes[3], width, size)[:, :, None]
    resized = tf.matmul(tf.matmul(rows, planes), columns, transpose_b=True)
    return tf.transpose(_rounded(resized), [0, 1, 3, 4, 2])
