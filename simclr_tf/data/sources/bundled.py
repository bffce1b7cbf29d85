"""Images that come with the package: `embedded:NAME`."""

from __future__ import annotations

import functools
import json
import os

import numpy as np

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.data.decode import plain
from simclr_tf.data.sources import splits
from simclr_tf.data.sources.source import Resident, Source

FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "embedded")


def names() -> list[str]:
    """Returns the names of the embedded data sets."""
    return sorted(entry for entry in os.listdir(FOLDER) if os.path.exists(os.path.join(FOLDER, entry, "index.json")))


class EmbeddedSource(Source):
    """An embedded data set: strips of small images of one size, one strip for each class (see `embedded/README.md`)."""

    may_fail = False

    def __init__(self, name: str, split: str):
        """Reads the index. Images are decoded on demand.

        Args:
          name: name of a folder in `embedded/`.
          split: split; see `splits.select`.

        Raises:
          UserError: if the name or split is unknown.
        """
        if name not in names():
            raise UserError(f"embedded:{name} is unknown; there is embedded:{', embedded:'.join(names())}")
        self._folder = os.path.join(FOLDER, name)
        with open(os.path.join(self._folder, "index.json"), encoding="utf-8") as file:
            index = json.load(file)
        self.class_names = tuple(index["class_names"])
        classes = len(self.class_names)
        self._sizes = {key: len(ids[self.class_names[0]]) for key, ids in index["ids"].items()}
        rows, start = {}, 0
        for key, per_class in self._sizes.items():
            rows[key] = np.arange(start, start + per_class * classes)
            start += per_class * classes
        self._rows = splits.select(split, rows, f"embedded:{name}")
        # Example n is of class n % classes.
        ids = [
            ids[c][i] for key, ids in index["ids"].items() for i in range(self._sizes[key]) for c in self.class_names
        ]
        self._ids = [ids[row] for row in self._rows]
        self._labels = (self._rows % classes).astype(np.int32)
        self.name = f"embedded:{name} ({split})"
        self.splits = {key: len(value) for key, value in rows.items()}
        self.num_examples = len(self._rows)

    @property
    def labels(self) -> np.ndarray:
        """See `Source`."""
        return self._labels

    @property
    def example_ids(self) -> list[str]:
        """See `Source`."""
        return self._ids

    @functools.lru_cache(maxsize=None)  # noqa: B019  (a source lives as long as the run)
    def resident(self) -> Resident:
        """See `Source`."""
        first = 0
        images = None
        for key, per_class in self._sizes.items():
            last = first + per_class * len(self.class_names)
            here = (self._rows >= first) & (self._rows < last)
            if here.any():
                part = self._decode(key)
                if images is None:
                    images = np.empty([self.num_examples, *part.shape[1:]], np.uint8)
                images[here] = part[self._rows[here] - first]
            first = last
        return Resident(images, self._labels, np.ones(self.num_examples, bool))

    def _decode(self, key: str) -> np.ndarray:
        """Decodes a split, [N, S, S, 3]; the classes take turns."""
        paths = [os.path.join(self._folder, key, f"{name}.png") for name in self.class_names]
        strips = tf.data.Dataset.from_tensor_slices(paths).map(
            plain(lambda path: tf.io.decode_png(tf.io.read_file(path), channels=3)), num_parallel_calls=tf.data.AUTOTUNE
        )
        strips = np.stack(list(strips.as_numpy_iterator()))
        size = strips.shape[2]
        images = strips.reshape(len(paths), -1, size, size, 3).swapaxes(0, 1)
        return images.reshape(-1, size, size, 3)
