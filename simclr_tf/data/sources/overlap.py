"""Which examples two sources share, whatever their splits are called."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simclr_tf.data.sources.source import Source


class Overlap(NamedTuple):
    """How much of what is measured was trained on.

    Attributes:
      count: examples that both sources have.
      of: examples that are measured.
      labels: whether their labels were learnt from.
    """

    count: int
    of: int
    labels: bool

    @property
    def words(self) -> str:
        """As a part of a sentence, such as "12 of the 60 pictures that are measured, with their labels"."""
        how = "with" if self.labels else "without"
        return f"{self.count:,} of the {self.of:,} pictures that are measured, {how} their labels"


def between(trained: Source, measured: Source, *, labels: bool) -> Overlap:
    """Counts what a source to measure shares with one that is trained on, whose labels are used or not."""
    known = set(trained.identities)
    return Overlap(sum(one in known for one in measured.identities), measured.num_examples, labels)


def rows(bank: Source, queries: Source) -> tuple[np.ndarray, np.ndarray]:
    """Finds images of one source in another.

    Returns:
      [U] int64 numbers of the bank's examples, each image once; and [queries] int64, which of these U an image is, -1
      for one that is not in the bank.
    """
    first = {one: row for row, one in reversed(list(enumerate(bank.identities)))}
    unique = np.sort(np.fromiter(first.values(), np.int64))
    found = np.array([first.get(one, -1) for one in queries.identities], np.int64)
    return unique, np.where(found < 0, -1, np.searchsorted(unique, found))
