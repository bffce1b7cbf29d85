"""Labeled subsets: a few examples of each class, the same on every machine.

A hash of (seed, example id) ranks the examples of a class, and the first ones are taken. A subset therefore does not
depend on the order of examples, and 10 % of the labels contain the 1 % of the same seed.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.data.order import permutation
from simclr_tf.data.sources.source import RESIDENT_BYTES, Resident, Source


class Subset(Source):
    """Some examples of another source."""

    def __init__(self, source: Source, rows: np.ndarray, name: str):
        """Selects the examples.

        Args:
          source: source of the examples.
          rows: [n] numbers of the examples in the source.
          name: name for messages.
        """
        self._source, self._rows = source, np.asarray(rows, np.int64)
        self.name, self.num_examples = name, len(rows)
        self.class_names, self.may_fail, self.remote = source.class_names, source.may_fail, source.remote
        self.splits, self.remarks, self.bit_depth = source.splits, source.remarks, source.bit_depth

    @property
    def labels(self) -> np.ndarray | None:
        """See `Source`."""
        labels = self._source.labels
        return None if labels is None else labels[self._rows]

    @property
    def labels_at_hand(self) -> bool:
        """See `Source`."""
        return self._source.labels_at_hand

    @functools.cached_property
    def example_ids(self) -> list[str]:
        """See `Source`."""
        ids = self._source.example_ids
        return [ids[row] for row in self._rows]

    @property
    def identities(self) -> list[str]:
        """See `Source`."""
        identities = self._source.identities
        return [identities[row] for row in self._rows]

    @functools.lru_cache(maxsize=None)  # noqa: B019  (a source lives as long as the run)
    def resident(self) -> Resident | None:
        """See `Source`."""
        whole = self._source.resident()
        return None if whole is None else Resident(*(part[self._rows] for part in whole))

    def read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """See `Source`."""
        return self._source.read(tf.gather(tf.constant(self._rows), index))


class Balanced(Subset):
    """A source's examples with all classes equally often: examples of smaller classes are repeated."""

    def __init__(self, source: Source):
        """Repeats the examples of each class, as evenly as possible, up to the size of the largest class.

        Args:
          source: labeled examples.
        """
        members = [np.nonzero(source.labels == label)[0] for label in range(len(source.class_names))]
        sizes = [len(rows) for rows in members if len(rows)]
        rows = np.sort(np.concatenate([np.resize(rows, max(sizes)) for rows in members if len(rows)]))
        name = f"{source.name}, classes balanced ({max(sizes)} of each, of {min(sizes)} at least)"
        super().__init__(source, rows, name)
        self.source = source

    @property
    def num_different(self) -> int:
        """See `Source`."""
        return self.source.num_different

    def resident(self) -> Resident | None:
        """See `Source`."""
        whole = self.source.resident()
        too_large = whole is not None and self.num_examples * whole.images[0].nbytes > RESIDENT_BYTES
        return None if too_large else super().resident()


def sample(source: Source, count: int) -> Source:
    """Draws `count` random examples, always the same ones, or takes all if there are fewer.

    The first `count` would not do: sources are often sorted by class.
    """
    if count >= source.num_examples:
        return source
    rows = permutation(0, "report sample", tf.range(count, dtype=tf.int64), source.num_examples)
    return Subset(source, np.sort(rows.numpy()), source.name)


def labelled_subset(
    source: Source,
    *,
    fraction: float | None = None,
    per_class: int | None = None,
    list_file: str | None = None,
    seed: int = 0,
) -> Subset:
    """Takes a labeled subset, by one of `fraction`, `per_class` and `list_file`.

    Args:
      source: labeled images.
      fraction: share of each class, in (0, 1], rounded to at least one example.
      per_class: number of examples of each class.
      list_file: text file with an example's name in each line.
      seed: seed that picks the examples of a fraction or number.

    Raises:
      UserError: if there are no labels, too few examples, or unknown names in the list.
    """
    labels = source.labels
    if labels is None:
        raise UserError(
            f"{source.name} has no labels to take a subset by; sort a folder's images into one subfolder per class, or "
            "choose a labeled data set"
        )
    if list_file is not None:
        rows = _listed(source, list_file)
        unlabelled = rows[labels[rows] < 0]
        if len(unlabelled):
            raise UserError(
                f"{list_file} names {source.example_ids[unlabelled[0]]} of {source.name}, which has no label"
            )
        return Subset(source, rows, f"{source.name}, {len(rows)} of {list_file}")
    rows = []
    keys = _ranks(source.example_ids, seed)
    for label in range(len(source.class_names)):
        members = np.nonzero(labels == label)[0]
        if not len(members):  # A class that only other splits have.
            continue
        if per_class is not None and per_class > len(members):
            raise UserError(
                f"Data.labels_per_class is {per_class}, but class {source.class_names[label]!r} of {source.name} has "
                f"{len(members)} examples; use a smaller number"
            )
        count = per_class if per_class is not None else max(1, round(fraction * len(members)))
        rows.append(members[np.argsort(keys[members], kind="stable")[:count]])
    chosen = np.sort(np.concatenate([np.zeros(0, np.int64), *rows]))
    if not len(chosen):
        raise UserError(f"{source.name} has no labeled example to take a subset of; choose another split")
    what = f"{per_class} labels per class" if per_class is not None else f"{100 * fraction:g} % of the labels"
    return Subset(source, chosen, f"{source.name}, {what} (seed {seed})")


def _ranks(ids: Sequence[str], seed: int) -> np.ndarray:
    """Returns sort keys of examples, [N] bytes, in a random order that depends on the seed and each name alone."""
    hashes = [
        hashlib.blake2b(f"{seed}:{name}".encode("utf-8", "surrogateescape"), digest_size=16).digest() for name in ids
    ]
    # Hexadecimal, because NumPy's byte strings drop trailing zero bytes.
    return np.array([digest.hex() for digest in hashes], dtype="S32")


def _listed(source: Source, path: str) -> np.ndarray:
    """Returns the numbers of the examples that a file names, in the source's order."""
    try:
        with tf.io.gfile.GFile(path, "r") as file:
            names = [line.strip() for line in file.read().splitlines()]
    except (OSError, tf.errors.OpError, UnicodeDecodeError) as error:
        raise UserError(f"Data.label_list {path} cannot be read ({str(error).splitlines()[0]})") from None
    names = list(dict.fromkeys(name for name in names if name and not name.startswith("#")))
    if not names:
        raise UserError(f"Data.label_list {path} names nothing; write one example's name in each line")
    tables = [_table(source.example_ids), _table([name.rsplit("/", 1)[-1] for name in source.example_ids])]
    if any(all(name not in table for table in tables) for name in names):
        tables.append(_table(source.other_ids() or ()))
    rows, unknown = [], []
    for name in names:
        found = next((table[name] for table in tables if name in table), None)
        if found is None:
            unknown.append(name)
        elif found < 0:
            raise UserError(
                f"Data.label_list {path} names {name}, which several files of {source.name} share; add the folder"
            )
        else:
            rows.append(found)
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise UserError(
            f"Data.label_list {path} names {', '.join(unknown[:3])}{more}, not in {source.name}; its examples have "
            f"names such as {source.example_ids[0]}"
        )
    return np.unique(np.array(rows, np.int64))


def _table(ids: Sequence[str]) -> dict[str, int]:
    """Returns name -> row, or -1 for a name that several examples share."""
    table: dict[str, int] = {}
    for row, name in enumerate(ids):
        table[name] = -1 if name in table else row
    return table
