"""What a pipeline asks of a source of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simclr_tf.data.decode import decode
from simclr_tf.stack import tf

# Decoded images of one size that fit in this many bytes are decoded once and kept.
RESIDENT_BYTES = 2**30


class Resident(NamedTuple):
    """A whole source, decoded.

    Attributes:
      images: [N, H, W, 3] uint8.
      labels: [N] int32, -1 where unknown.
      readable: [N] bool; what could not be read is black.
    """

    images: np.ndarray
    labels: np.ndarray
    readable: np.ndarray


class Source:
    """Images in a fixed order that depends neither on the machine nor on how a file system lists files.

    Attributes:
      name: for people.
      num_examples: how many images there are.
      class_names: by number; None where nothing is labelled.
      may_fail: whether an image may turn out to be unreadable.
    """

    name: str
    num_examples: int
    class_names: tuple[str, ...] | None = None
    may_fail: bool = True

    @property
    def labels(self) -> np.ndarray | None:
        """[num_examples] int32, -1 where unknown; None where there are no labels. No image is decoded for it."""
        raise NotImplementedError

    @property
    def example_ids(self) -> Sequence[str]:
        """Each example's name, unique in the data set: a file's path from the folder, or a data set's own id."""
        raise NotImplementedError

    def other_ids(self) -> Sequence[str] | None:
        """Other names that a list of examples may use, or None; may read the whole data set, without decoding."""
        return None

    def resident(self) -> Resident | None:
        """Returns everything decoded, or None where it is too large or of several sizes. Loads once."""
        return None

    def read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Reads one example, by TensorFlow operations that may fail.

        Args:
          index: scalar int64 in [0, num_examples).

        Returns:
          The encoded image, a scalar string, and its label, a scalar int32.
        """
        raise NotImplementedError

    def why_unreadable(self, index: int) -> str:
        """Returns why an example cannot be read, in a few words."""
        try:
            decode(self.read(tf.constant(index, tf.int64))[0])
        except tf.errors.OpError as error:
            return reason(error)
        return "it can be read by now"


def reason(error: Exception) -> str:
    """Returns the first line of an error without TensorFlow's wrapping."""
    text = (getattr(error, "message", None) or str(error)).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    if line.startswith("{{"):
        line = line.split("}}", 1)[1].strip()
    return line.split(" [Op:")[0].rstrip(" .")
