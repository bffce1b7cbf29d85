"""Finds the examples that two sources share, whatever their splits are called."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simclr_tf.data.sources.source import Source


class Overlap(NamedTuple):
    """How many of the measured examples were trained on.

    Attributes:
      count: number of examples in both sources.
      of: number of measured examples.
      labels: whether training used their labels.
    """

    count: int
    of: int
    labels: bool

    @property
    def words(self) -> str:
        """Part of a sentence, such as "12 of the 60 pictures that are measured, with their labels"."""
        how = "with" if self.labels else "without"
        return f"{self.count:,} of the {self.of:,} pictures that are measured, {how} their labels"


def between(trained: Source, measured: Source, *, labels: bool) -> Overlap:
    """Counts the examples of `measured` that are in `trained`; `labels` says whether training uses their labels."""
    known = set(trained.identities)
    return Overlap(sum(one in known for one in measured.identities), measured.num_examples, labels)


def rows(bank: Source, queries: Source) -> tuple[np.ndarray, np.ndarray]:
    """Finds the images of `queries` in `bank`.

    Returns:
      [U] int64, the bank's examples with each image once; and [queries] int64, each query's position among these U, or
      -1 if it is not in the bank.
    """
    first = {one: row for row, one in reversed(list(enumerate(bank.identities)))}
    unique = np.sort(np.fromiter(first.values(), np.int64))
    found = np.array([first.get(one, -1) for one in queries.identities], np.int64)
    return unique, np.where(found < 0, -1, np.searchsorted(unique, found))
