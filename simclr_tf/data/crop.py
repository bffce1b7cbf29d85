"""The host's part of augmentation: which part of an image to take, and bicubic resizing.

A box is `(y, x, height, width)`, int32, in pixels from the top left corner.
"""

from __future__ import annotations

from simclr_tf.randomness import fold_in, stream, uniform
from simclr_tf.stack import tf

Box = tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]

EVALUATION_PROPORTION = 0.875
LARGEST_UNCROPPED_SIZE = 32  # Images of this size or less are evaluated whole (CIFAR-10).

_ATTEMPTS = 10
_DRAWS = 2 * _ATTEMPTS + 2


def crop_draws(seed: tf.Tensor) -> tf.Tensor:
    """Returns the random numbers of `random_crop_box`.

    Making them costs the same for one image as for a batch, so that a pipeline gains by making those of a batch here
    and giving each image its row.

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
    draws: tf.Tensor | None = None,
) -> Box:
    """Returns a box of random area, aspect ratio and place (Chen et al. 2020a, appendix A).

    The share of the area is uniform in `area_range`, as the paper has it, and width / height uniform in `ratio_range`.
    The first of ten attempts that fits is taken, the whole image when none does (for a square image one in 10^8).

    The published code draws the height, not the area, uniformly once the ratio is known, which makes small crops more
    likely (mean area 45 % in place of 54 %), and its op refuses areas under 10 %. This follows the paper.

    Args:
      seed: [..., 2] int32; unused when `draws` are given.
      height: the image's height in pixels, [...] integers.
      width: the image's width in pixels, [...] integers.
      area_range: least and greatest share of the image's area; a least share of 1 takes the whole image.
      ratio_range: least and greatest width / height.
      draws: what `crop_draws(seed)` returns, where it is known already.

    Returns:
      y, x, height, width: int32 [...], inside the image and at least one pixel each way.
    """
    height, width = tf.cast(height, tf.int32), tf.cast(width, tf.int32)
    if area_range[0] >= 1.0:
        return tf.zeros_like(height), tf.zeros_like(width), height, width
    if draws is None:
        draws = crop_draws(seed)
    image_height, image_width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    share, ratio, place_y, place_x = tf.split(draws, [_ATTEMPTS, _ATTEMPTS, 1, 1], axis=-1)
    area = (image_height * image_width)[..., None] * (area_range[0] + (area_range[1] - area_range[0]) * share)
    ratio = ratio_range[0] + (ratio_range[1] - ratio_range[0]) * ratio
    heights, widths = tf.round(tf.sqrt(area / ratio)), tf.round(tf.sqrt(area * ratio))
    fits = (heights >= 1) & (widths >= 1) & (heights <= image_height[..., None]) & (widths <= image_width[..., None])
    attempts = tf.where(fits, tf.range(_ATTEMPTS), _ATTEMPTS)
    first = tf.reduce_min(attempts, axis=-1)
    taken = fits & tf.equal(attempts, first[..., None])
    none = tf.equal(first, _ATTEMPTS)
    crop_height = tf.where(none, image_height, tf.reduce_sum(tf.where(taken, heights, 0.0), axis=-1))
    crop_width = tf.where(none, image_width, tf.reduce_sum(tf.where(taken, widths, 0.0), axis=-1))

    def place(unit: tf.Tensor, room: tf.Tensor) -> tf.Tensor:
        # The product can round up to room + 1.
        return tf.cast(tf.minimum(tf.floor(unit * (room + 1)), room), tf.int32)

    return (
        place(place_y[..., 0], image_height - crop_height),
        place(place_x[..., 0], image_width - crop_width),
        tf.cast(crop_height, tf.int32),
        tf.cast(crop_width, tf.int32),
    )


def central_crop_box(height: tf.Tensor | int, width: tf.Tensor | int, proportion: float) -> Box:
    """Returns the central square box.

    Args:
      height: the image's height in pixels, [...] integers.
      width: the image's width in pixels, [...] integers.
      proportion: of the image's shorter side, in (0, 1].

    Returns:
      y, x, height, width: int32 [...].
    """
    height, width = tf.cast(height, tf.int32), tf.cast(width, tf.int32)
    side = tf.cast(tf.round(proportion * tf.cast(tf.minimum(height, width), tf.float32)), tf.int32)
    side = tf.maximum(side, 1)
    return (height - side + 1) // 2, (width - side + 1) // 2, side, side


def evaluation_crop_box(height: tf.Tensor | int, width: tf.Tensor | int, image_size: int) -> Box:
    """Returns the box that evaluation takes: the central 87.5 %, or all of the central square for small images.

    Args:
      height: the image's height in pixels, [...] integers.
      width: the image's width in pixels, [...] integers.
      image_size: the size that the crop will be resized to; up to 32 pixels nothing is cut off a square image.
    """
    proportion = 1.0 if image_size <= LARGEST_UNCROPPED_SIZE else EVALUATION_PROPORTION
    return central_crop_box(height, width, proportion)


def resize(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes by bicubic interpolation (Keys, a = -0.5; centers of pixels aligned; no anti-aliasing), as published.

    Args:
      image: [H, W, C] or [B, H, W, C], uint8 or floating in [0, 1].
      size: of each side of the result, in pixels.

    Returns:
      [.., size, size, C]: uint8 rounded, or float32, clipped to the range of colors.
    """
    resized = tf.image.resize(image, [size, size], method=tf.image.ResizeMethod.BICUBIC)
    if image.dtype == tf.uint8:
        return _rounded(resized)
    return tf.clip_by_value(resized, 0.0, 1.0)


def _rounded(colors: tf.Tensor) -> tf.Tensor:
    """Returns the nearest uint8."""
    # In one operation; tf.clip_by_value goes over them twice.
    clipped = tf.raw_ops.ClipByValue(t=tf.round(colors), clip_value_min=0.0, clip_value_max=255.0)
    return tf.cast(clipped, tf.uint8)


def bicubic_weights(start: tf.Tensor, length: tf.Tensor, full: int, size: int) -> tf.Tensor:
    """Returns what each pixel of a line adds to each pixel of a part of it, resized as `resize` does.

    Args:
      start: [...] int32, where the part starts.
      length: [...] int32, its length, at least 1.
      full: length of the line.
      size: length of the result.

    Returns:
      [..., size, full] float32; rows sum to 1.
    """
    start, length = (tf.cast(value, tf.float32)[..., None, None] for value in (start, length))
    places = tf.range(full, dtype=tf.float32)
    centers = (tf.range(size, dtype=tf.float32)[:, None] + 0.5) * (length / size) - 0.5 + start
    distance = tf.abs(places - centers)
    near = (1.5 * distance - 2.5) * tf.square(distance) + 1.0
    far = ((2.5 - 0.5 * distance) * distance - 4.0) * distance + 2.0
    weights = tf.where(distance < 1.0, near, tf.where(distance < 2.0, far, 0.0))
    weights = tf.where((places >= start) & (places < start + length), weights, 0.0)
    return weights / tf.reduce_sum(weights, axis=-1, keepdims=True)


def crop_and_resize(images: tf.Tensor, boxes: Box, size: int) -> tf.Tensor:
    """Crops and resizes a batch, each image by boxes of its own: two small matrix products for each.

    Equal to `resize` of each crop but for rounding, by one level at most. Quick where images are small.

    Args:
      images: [B, H, W, C] uint8.
      boxes: y, x, height, width, each [B, V]: V crops of each image.
      size: of each side of the result, in pixels.

    Returns:
      [B, V, size, size, C] uint8.
    """
    height, width = images.shape[1], images.shape[2]
    planes = tf.transpose(tf.cast(images, tf.float32), [0, 3, 1, 2])[:, None]
    rows = bicubic_weights(boxes[0], boxes[2], height, size)[:, :, None]
    columns = bicubic_weights(boxes[1], boxes[3], width, size)[:, :, None]
    resized = tf.matmul(tf.matmul(rows, planes), columns, transpose_b=True)
    return tf.transpose(_rounded(resized), [0, 1, 3, 4, 2])
