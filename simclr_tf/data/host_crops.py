"""What the host makes of an image: which crops, brought to which size."""

from __future__ import annotations

from collections.abc import Callable

from simclr_tf.core.randomness import fold_in, stream
from simclr_tf.core.tf import tf
from simclr_tf.data.crop import Box, crop_and_resize, crop_draws, evaluation_crop_box, resize
from simclr_tf.data.decode import decode, unit_images

# Up to this size two dense products with all rows and columns cost less than a resizing operation per image.
_LARGEST_FOR_PRODUCTS = 64


class Prepare:
    """Crops of an image, by name: `prepare(image, seed) -> {"view_1": ..., "view_2": ...}`.

    Attributes:
      names: of the crops.
      size: of their sides in pixels.
    """

    def __init__(self, size: int, names: tuple[str, ...], crop_box: Callable[..., Box] | None):
        """Names the crops.

        Args:
          size: in pixels.
          names: one for each crop.
          crop_box: like `Augment.crop_box`; None takes the evaluation's central crop.
        """
        self.size, self.names, self._crop_box = size, names, crop_box

    def draws(self, seeds: tf.Tensor) -> tf.Tensor:
        """Makes the random numbers of the crops.

        Args:
          seeds: [..., 2] int32, one for each example.

        Returns:
          [..., V, D] float32 for V crops.
        """
        if self._crop_box is None:
            # Nothing is random; one number, since tf.data crashes when it takes apart tensors without any.
            return tf.zeros(tf.concat([tf.shape(seeds)[:-1], [len(self.names), 1]], axis=0))
        streams = tf.constant([stream(f"crop {name}") for name in self.names], tf.int64)
        return crop_draws(fold_in(tf.expand_dims(seeds, -2), streams))

    def boxes(self, height: tf.Tensor | int, width: tf.Tensor | int, draws: tf.Tensor) -> Box:
        """Returns the crops' boxes, [..., V] int32 each; height and width: [...]; draws: [..., V, D]."""
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
        """Whether images of this size are cropped quicker in batches."""
        return max(height, width, self.size) <= _LARGEST_FOR_PRODUCTS

    def of_batch(self, images: tf.Tensor, draws: tf.Tensor) -> dict[str, tf.Tensor]:
        """Crops a batch; see `of_image`, from which a color may differ by one level.

        Args:
          images: [B, H, W, 3] uint8.
          draws: [B, V, D].

        Returns:
          name -> [B, size, size, 3] uint8.
        """
        height, width = images.shape[1], images.shape[2]
        if self._crop_box is None:
            with tf.init_scope():  # The same for all, and known by now.
                y, x, h, w = (int(part) for part in evaluation_crop_box(height, width, self.size))
            central = images[:, y : y + h, x : x + w]
            return {name: central if h == w == self.size else resize(central, self.size) for name in self.names}
        batch = tf.fill(tf.shape(images)[:1], height), tf.fill(tf.shape(images)[:1], width)
        crops = crop_and_resize(images, self.boxes(*batch, draws), self.size)
        return dict(zip(self.names, tf.unstack(crops, len(self.names), axis=1)))

    def __call__(self, image: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """Crops one image, [H, W, 3] uint8, by a seed, [2] int32; returns name -> [size, size, 3] uint8."""
        return self.of_image(tf.convert_to_tensor(image), self.draws(seed))


def central(size: int) -> Prepare:
    """The evaluation's crop as `image`: the central 87.5 %, all of it up to 32 pixels."""
    return Prepare(size, ("image",), None)


def one_crop(size: int, crop_box: Callable[..., Box]) -> Prepare:
    """One random crop as `image`; `crop_box` is like `Augment.crop_box`."""
    return Prepare(size, ("image",), crop_box)


def two_crops(size: int, crop_box: Callable[..., Box]) -> Prepare:
    """Two random crops of one decoded image as `view_1` and `view_2`; `crop_box` is like `Augment.crop_box`."""
    return Prepare(size, ("view_1", "view_2"), crop_box)


def preprocess(image_bytes: tf.Tensor, image_size: int, bit_depth: int | None = None) -> tf.Tensor:
    """Decodes image files and brings them to what evaluation shows a network.

    Args:
      image_bytes: [B] strings.
      image_size: in pixels.
      bit_depth: see `decode.png_pixels`.

    Returns:
      [B, image_size, image_size, 3] float32 in [0, 1].
    """
    prepare = central(image_size)

    def one(encoded: tf.Tensor) -> tf.Tensor:
        crop = prepare(decode(encoded, bit_depth), tf.zeros([2], tf.int32))["image"]
        return tf.ensure_shape(crop, [image_size, image_size, 3])

    return unit_images(tf.map_fn(one, image_bytes, fn_output_signature=tf.uint8))
