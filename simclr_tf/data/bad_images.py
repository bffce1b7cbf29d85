"""Images that cannot be read: counted, named, and too many of them an error."""

from __future__ import annotations

import threading

import numpy as np

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.data.sources.source import Source


class BadImages:
    """Remembers which images of a source could not be read. An image counts once, however often it is met."""

    def __init__(self, limit: int, source: Source):
        """Starts with none.

        Args:
          limit: how many are tolerated.
          source: where they come from.
        """
        self._limit, self._source = limit, source
        self._indices: list[int] = []
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """How many there were."""
        return len(self._indices)

    @property
    def names(self) -> list[str]:
        """Their names, in the order they were met."""
        with self._lock:
            indices = list(self._indices)
        return [str(self._source.example_ids[index]) for index in indices]

    @property
    def too_many(self) -> bool:
        """Whether there are more than tolerated, or nothing else is left."""
        return self.count > self._limit or self.count >= self._source.num_different

    def add(self, index: int) -> bool:
        """Adds an example by its number and returns whether there are too many now."""
        with self._lock:
            known = {self._source.example_ids[other] for other in self._indices}
            if self._source.example_ids[int(index)] not in known:
                self._indices.append(int(index))
        return self.too_many

    def add_in_graph(self, index: tf.Tensor) -> tf.Tensor:
        """`add` as an operation, which fails once there are too many; returns True."""
        too_many = tf.numpy_function(lambda i: np.asarray(self.add(int(i))), [index], tf.bool)
        tf.debugging.assert_equal(too_many, False, "too many unreadable images")
        return tf.logical_not(too_many)

    def check(self) -> None:
        """Raises a UserError that names the last image when there are too many."""
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
    """Stands for `BadImages` where nothing is to be counted."""

    count = 0
    names: tuple[str, ...] = ()

    def add(self, index: int) -> bool:
        """Takes note of nothing; there are never too many."""
        return False

    def add_in_graph(self, index: tf.Tensor) -> tf.Tensor:
        """The same as an operation; returns True."""
        return tf.constant(True)

    def check(self) -> None:
        """Has nothing to say."""


def bad_image_counter(limit: int, source: Source, *, elsewhere: bool = False) -> BadImages | IgnoredImages | None:
    """Returns what counts a source's unreadable images; None for a source that has none.

    Args:
      limit: how many are tolerated.
      source: where they come from.
      elsewhere: whether other processes read them, as on a TPU with several hosts: there is no Python to count in, and
        they are left out or replaced without a word.
    """
    if not source.may_fail:
        return None
    return IgnoredImages() if elsewhere else BadImages(limit, source)
