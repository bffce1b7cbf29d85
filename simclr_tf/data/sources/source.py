"""The interface of a source of images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from simclr_tf.core.tf import tf
from simclr_tf.data.decode import decode

# Images of one size that take no more than this many bytes decoded are decoded once and kept in memory.
RESIDENT_BYTES = 2**30


class Resident(NamedTuple):
    """A whole source, decoded.

    Attributes:
      images: [N, H, W, 3] uint8.
      labels: [N] int32, -1 where unknown.
      readable: [N] bool; unreadable images are black.
    """

    images: np.ndarray
    labels: np.ndarray
    readable: np.ndarray


class Source:
    """Images in a fixed order that depends neither on the machine nor on how a file system lists files.

    Attributes:
      name: name for messages.
      num_examples: number of examples.
      class_names: names of the classes by number; None if nothing is labeled.
      may_fail: whether an image may turn out to be unreadable.
      partly_labelled: whether some examples are known to have no label. Where only the whole data set would tell, a
        sample is checked.
      remote: whether images lie where a read may fail and succeed later, as in a bucket.
      splits: name -> number of examples, for all splits of the data set.
      remarks: notes for users on how the data set was read, such as which files were skipped.
      bit_depth: bits in use of 16-bit samples, None for all; see `decode.png_pixels`.
    """

    name: str
    num_examples: int
    class_names: tuple[str, ...] | None = None
    may_fail: bool = True
    partly_labelled: bool = False
    remote: bool = False
    splits: Mapping[str, int] = MappingProxyType({})
    bit_depth: int | None = None
    remarks: Sequence[str] = ()

    @property
    def labels(self) -> np.ndarray | None:
        """[num_examples] int32, -1 where unknown; None if nothing is labeled. Does not decode images."""
        raise NotImplementedError

    @property
    def labels_at_hand(self) -> bool:
        """Whether `labels` are available without reading the data set."""
        return True

    @property
    def example_ids(self) -> Sequence[str]:
        """Each example's name, unique in the data set: a file's path below the folder, or the data set's own id."""
        raise NotImplementedError

    @property
    def identities(self) -> Sequence[str]:
        """Each example's identity, the same in every split and by whatever path or link it is reached."""
        return self.example_ids

    @property
    def num_different(self) -> int:
        """Number of different images; some sources repeat images as several examples."""
        return self.num_examples

    def any_label(self) -> bool:
        """Whether any example has a label; reads no more than it needs to."""
        return self.labels is not None and bool(np.any(self.labels >= 0))

    def other_ids(self) -> Sequence[str] | None:
        """Returns other names that a list of examples may use, or None; may read the whole data set undecoded."""
        return None

    def resident(self) -> Resident | None:
        """Returns all images decoded, or None if they are too large or differ in size. Loads them once."""
        return None

    def read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Reads one example by TensorFlow operations, which may fail.

        Args:
          index: scalar int64 in [0, num_examples).

        Returns:
          The encoded image, a scalar string, and its label, a scalar int32.
        """
        raise NotImplementedError

    def decode(self, encoded: tf.Tensor) -> tf.Tensor:
        """Decodes an image file of this source, with its bit depth: scalar string -> [H, W, 3] uint8."""
        return decode(encoded, self.bit_depth)

    def why_unreadable(self, index: int) -> str:
        """Returns why an example cannot be read, in a few words."""
        try:
            self.decode(self.read(tf.constant(index, tf.int64))[0])
        except tf.errors.OpError as error:
            return reason(error)
        return "it can be read now"


def reason(error: Exception) -> str:
    """Returns the first line of an error's message without TensorFlow's wrapping."""
    text = (getattr(error, "message", None) or str(error)).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    asserted = re.search(r"assertion failed: \[(.*?)\]", line)
    if asserted:
        return asserted.group(1)
    if line.startswith("{{"):
        line = line.split("}}", 1)[1].strip()
    return line.split(" [Op:")[0].rstrip(" .")
