"""Crops that the host takes of an image, resized to the network's size."""

from __future__ import annotations

from collections.abc import Callable

from simclr_tf.core.randomness import fold_in, stream
from simclr_tf.core.tf import tf
from simclr_tf.data.crop import Box, crop_and_resize, crop_draws, evaluation_crop_box, resize
from simclr_tf.data.decode import decode, unit_images

# Up to this size two dense products over all rows and columns cost less than a resize operation for each image.
_LARGEST_FOR_PRODUCTS = 64


class Prepare:
    """Takes crops of an image, by name: `prepare(image, seed) -> {"view_1": ..., "view_2": ...}`.

    Attributes:
      names: names of the crops.
      size: side of the crops in pixels.
    """

    def __init__(self, size: int, names: tuple[str, ...], crop_box: Callable[..., Box] | None):
        """Names the crops.

        Args:
          size: side of the crops in pixels.
          names: one name for each crop.
          crop_box: function like `Augment.crop_box`; None takes the evaluation's central crop.
        """
        self.size, self.names, self._crop_box = size, names, crop_box

    def draws(self, seeds: tf.Tensor) -> tf.Tensor:
        """Draws the random numbers of the crops.

        Args:
          seeds: [..., 2] int32, one seed for each example.

        Returns:
          [..., V, D] float32 for V crops.
        """
        if self._crop_box is None:
            # Nothing is random. One unused number per crop, because tf.data crashes on unbatching empty tensors.
            return tf.zeros(tf.concat([tf.shape(seeds)[:-1], [len(self.names), 1]], axis=0))
        streams = tf.constant([stream(f"crop {name}") for name in self.names], tf.int64)
        return crop_draws(fold_in(tf.expand_dims(seeds, -2), streams))

    def boxes(self, height: tf.Tensor | int, width: tf.Tensor | int, draws: tf.Tensor) -> Box:
        """Returns the boxes of the crops, [..., V] int32 each; height and width: [...]; draws: [..., V, D]."""
        shape = tf.shape(draws)[:-1]
        height = tf.broadcast_to(tf.cast(height, tf.int32)[..., None], shape)
        width = tf.broadcast_to(tf.cast(width, tf.int32)[..., None], shape)
        if self._crop_box is None:
            return evaluation_crop_box(height, width, self.size)
        return self._crop_box(None, height, width, draws=draws)

    def of_image(self, image: tf.Tensor, draws: tf.Tensor) -> dict[str, tf.Tensor]:
        """Crops one image.

        Args:
          image: [H, W, 3] uint8.
          draws: [V, D].

        Returns:
          name -> [size, size, 3] uint8.
        """
        shape = tf.shape(image)
        y, x, height, width = self.boxes(shape[0], shape[1], draws)
        return {
            name: tf.ensure_shape(
                resize(image[y[v] : y[v] + height[v], x[v] : x[v] + width[v]], self.size), [self.size, self.size, 3]
            )
            for v, name in enumerate(self.names)
        }

    def takes_batches(self, height: int, width: int) -> bool:
        """Whether images of this size are cropped faster in batches."""
        return max(height, width, self.size) <= _LARGEST_FOR_PRODUCTS

    def of_batch(self, images: tf.Tensor, draws: tf.Tensor) -> dict[str, tf.Tensor]:
        """Crops a batch. Colors differ from those of `of_image` by one level at most.

        Args:
          images: [B, H, W, 3] uint8.
          draws: [B, V, D].

        Returns:
          name -> [B, size, size, 3] uint8.
        """
        height, width = images.shape[1], images.shape[2]
        if self._crop_box is None:
            with tf.init_scope():  # The box is the same for all images: compute it now, as constants.
                y, x, h, w = (int(part) for part in evaluation_crop_box(height, width, self.size))
            central = images[:, y : y + h, x : x + w]
            return {name: central if h == w == self.size else resize(central, self.size) for name in self.names}
        batch = tf.fill(tf.shape(images)[:1], height), tf.fill(tf.shape(images)[:1], width)
        crops = crop_and_resize(images, self.boxes(*batch, draws), self.size)
        return dict(zip(self.names, tf.unstack(crops, len(self.names), axis=1)))

    def __call__(self, image: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """Crops one image, [H, W, 3] uint8, with a seed, [2] int32; returns name -> [size, size, 3] uint8."""
        return self.of_image(tf.convert_to_tensor(image), self.draws(seed))


def central(size: int) -> Prepare:
    """Takes the evaluation's crop as `image`: the central 87.5 %, or the whole central square up to 32 pixels."""
    return Prepare(size, ("image",), None)


def one_crop(size: int, crop_box: Callable[..., Box]) -> Prepare:
    """Takes one random crop as `image`; `crop_box` is a function like `Augment.crop_box`."""
    return Prepare(size, ("image",), crop_box)


def two_crops(size: int, crop_box: Callable[..., Box]) -> Prepare:
    """Takes two random crops as `view_1` and `view_2`; `crop_box` is a function like `Augment.crop_box`."""
    return Prepare(size, ("view_1", "view_2"), crop_box)


def preprocess(image_bytes: tf.Tensor, image_size: int, bit_depth: int | None = None) -> tf.Tensor:
    """Decodes, crops and resizes image files as evaluation does.

    Args:
      image_bytes: [B] strings, contents of image files.
      image_size: side of the result in pixels.
      bit_depth: bits in use of 16-bit samples; see `decode.png_pixels`.

    Returns:
      [B, image_size, image_size, 3] float32 in [0, 1].
    """
    prepare = central(image_size)

    def one(encoded: tf.Tensor) -> tf.Tensor:
        crop = prepare(decode(encoded, bit_depth), tf.zeros([2], tf.int32))["image"]
        return tf.ensure_shape(crop, [image_size, image_size, 3])

    return unit_images(tf.map_fn(one, image_bytes, fn_output_signature=tf.uint8))
