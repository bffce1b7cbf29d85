"""Unreadable images: they are counted and named, and too many of them are an error."""

from __future__ import annotations

import threading

import numpy as np

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.data.sources.source import Source


class BadImages:
    """Remembers which images of a source could not be read. Each image counts once, however often it is read."""

    def __init__(self, limit: int, source: Source):
        """Starts an empty record.

        Args:
          limit: number of unreadable images to tolerate.
          source: source of the images.
        """
        self._limit, self._source = limit, source
        self._indices: list[int] = []
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """Number of unreadable images so far."""
        return len(self._indices)

    @property
    def names(self) -> list[str]:
        """Names of the unreadable images, in the order in which they were found."""
        with self._lock:
            indices = list(self._indices)
        return [str(self._source.example_ids[index]) for index in indices]

    @property
    def too_many(self) -> bool:
        """Whether there are more than the limit, or no readable image is left."""
        return self.count > self._limit or self.count >= self._source.num_different

    def add(self, index: int) -> bool:
        """Adds an example by its number and returns whether there are now too many."""
        with self._lock:
            known = {self._source.example_ids[other] for other in self._indices}
            if self._source.example_ids[int(index)] not in known:
                self._indices.append(int(index))
        return self.too_many

    def add_in_graph(self, index: tf.Tensor) -> tf.Tensor:
        """Runs `add` as an operation that fails once there are too many; returns True."""
        too_many = tf.numpy_function(lambda i: np.asarray(self.add(int(i))), [index], tf.bool)
        tf.debugging.assert_equal(too_many, False, "too many unreadable images")
        return tf.logical_not(too_many)

    def check(self) -> None:
        """Raises a UserError that names the last image if there are too many."""
        if not self.too_many or not self.count:
            return
        last = self._indices[-1]
        why = f"{self._source.example_ids[last]}: {self._source.why_unreadable(last)}"
        if self.count > self._limit:
            raise UserError(
                f"{self.count} image(s) of {self._source.name} cannot be read, more than Data.max_bad_images = "
                f"{self._limit} ({why}); repair or remove them, or raise the limit"
            )
        raise UserError(f"none of the {self.count} images of {self._source.name} can be read ({why}); repair them")


class IgnoredImages:
    """A `BadImages` that counts nothing."""

    count = 0
    names: tuple[str, ...] = ()

    def add(self, index: int) -> bool:
        """Returns False: there are never too many."""
        return False

    def add_in_graph(self, index: tf.Tensor) -> tf.Tensor:
        """Returns True, as `BadImages.add_in_graph` does."""
        return tf.constant(True)

    def check(self) -> None:
        """Does nothing."""


def bad_image_counter(limit: int, source: Source, *, elsewhere: bool = False) -> BadImages | IgnoredImages | None:
    """Returns the counter of a source's unreadable images; None for a source whose images are all readable.

    Args:
      limit: number of unreadable images to tolerate.
      source: source of the images.
      elsewhere: whether other processes read the images, as on a TPU with several hosts. They have no Python to count
        in, so they skip or replace unreadable images silently.
    """
    if not source.may_fail:
        return None
    return IgnoredImages() if elsewhere else BadImages(limit, source)
