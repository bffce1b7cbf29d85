"""Which images a run uses."""

from __future__ import annotations

from simclr_tf.data.sources import open_source
from simclr_tf.errors import UserError


class Data:
    """A data set, its splits, and the size that its images are brought to."""

    def __init__(
        self,
        source: str = "embedded:cifar10_mini",
        train_split: str = "train",
        eval_split: str = "test",
        image_size: int = 32,
        max_bad_images: int = 100,
    ):
        """Names the data; nothing is read yet.

        Args:
          source: "embedded:NAME", "tfds:NAME" or "folder:PATH".
          train_split: what to train on, in tensorflow-datasets' syntax ("train", "train[:90%]").
          eval_split: what to evaluate on.
          image_size: of the square images that networks see, in pixels.
          max_bad_images: how many unreadable images are skipped before the run stops.
        """
        if not isinstance(image_size, int) or isinstance(image_size, bool) or image_size < 8:
            raise UserError(f"Data.image_size is {image_size!r}; use a whole number of pixels, at least 8")
        if not isinstance(max_bad_images, int) or max_bad_images < 0:
            raise UserError(f"Data.max_bad_images is {max_bad_images!r}; use a whole number of at least 0")
        self.source, self.train_split, self.eval_split = source, train_split, eval_split
        self.image_size, self.max_bad_images = image_size, max_bad_images

    def open(self, split: str, data_dir: str | None = None):
        """Opens a split; see `simclr_tf.data.sources.open_source`."""
        return open_source(self.source, split, data_dir)

    def describe(self) -> dict:
        """Returns the constructor's values."""
        return {
            "source": self.source,
            "train_split": self.train_split,
            "eval_split": self.eval_split,
            "image_size": self.image_size,
            "max_bad_images": self.max_bad_images,
        }
