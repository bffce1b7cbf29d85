"""What a pipeline asks of a source of images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from simclr_tf.core.tf import tf
from simclr_tf.data.decode import decode

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
      partly_labelled: whether examples without a label are known to be among the others; where only reading the whole
        data set would tell, some of it are looked at.
      remote: whether images lie where a read may fail today and not tomorrow, as in a bucket.
      splits: name -> number of examples, of the whole data set.
      remarks: what people should know of how the data set was read, such as what was passed over.
      bit_depth: how many bits of 16-bit samples are in use, None for all; see `decode.png_pixels`.
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
        """[num_examples] int32, -1 where unknown; None where there are no labels. No image is decoded for it."""
        raise NotImplementedError

    @property
    def labels_at_hand(self) -> bool:
        """Whether `labels` can be had without reading the data set."""
        return True

    @property
    def example_ids(self) -> Sequence[str]:
        """Each example's name, unique in the data set: a file's path from the folder, or a data set's own id."""
        raise NotImplementedError

    @property
    def identities(self) -> Sequence[str]:
        """What each example is, equal for equal examples of all splits and of all places that lead to them."""
        return self.example_ids

    @property
    def num_different(self) -> int:
        """How many different images there are, where some are examples several times."""
        return self.num_examples

    def any_label(self) -> bool:
        """Whether any example has a label; reads no more than that takes."""
        return self.labels is not None and bool(np.any(self.labels >= 0))

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

    def decode(self, encoded: tf.Tensor) -> tf.Tensor:
        """Decodes an image file as this source's are to be: scalar string -> [H, W, 3] uint8."""
        return decode(encoded, self.bit_depth)

    def why_unreadable(self, index: int) -> str:
        """Returns why an example cannot be read, in a few words."""
        try:
            self.decode(self.read(tf.constant(index, tf.int64))[0])
        except tf.errors.OpError as error:
            return reason(error)
        return "it can be read by now"


def reason(error: Exception) -> str:
    """Returns the first line of an error without TensorFlow's wrapping."""
    text = (getattr(error, "message", None) or str(error)).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    asserted = re.search(r"assertion failed: \[(.*?)\]", line)
    if asserted:
        return asserted.group(1)
    if line.startswith("{{"):
        line = line.split("}}", 1)[1].strip()
    return line.split(" [Op:")[0].rstrip(" .")
