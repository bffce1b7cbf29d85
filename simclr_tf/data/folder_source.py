"""A folder of pictures: `folder:PATH`.

Everything follows from the files' names alone, not from the order in which a file system lists them: the order of
examples, and, where there are no folders for the splits, which pictures are for training and which for testing.
"""

from __future__ import annotations

import functools
import hashlib
import os
import unicodedata

import numpy as np

from simclr_tf.data import splits
from simclr_tf.data.base import RESIDENT_BYTES, Resident, Source, load
from simclr_tf.data.decode import READS_WEBP, SUFFIXES, try_decode
from simclr_tf.errors import UserError
from simclr_tf.stack import tf

SPLIT_NAMES = ("train", "test", "val", "valid", "validation")
TEST_SHARE = 0.1

_LARGEST_RESIDENT_SIDE = 256
_DEEPEST = 64


def _digest(name: str) -> bytes:
    # Some file systems decompose accents.
    return hashlib.blake2b(
        unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape"), digest_size=16
    ).digest()


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _list(path: str) -> tuple[list[str], list[str]]:
    """Returns all pictures below a folder, by name from there with "/" between, and the names of what is no picture."""
    images, others = [], []

    def visit(folder: str, prefix: str, above: frozenset[str]) -> None:
        # A link to a folder above would lead round in circles.
        here = folder if "://" in folder else os.path.realpath(folder)
        if here in above or len(above) > _DEEPEST:
            return
        for entry in sorted({entry.rstrip("/") for entry in tf.io.gfile.listdir(folder)}):
            if not entry or entry.startswith("."):
                continue
            if _is_image(entry):
                images.append(prefix + entry)
            elif tf.io.gfile.isdir(_join(folder, entry)):
                visit(_join(folder, entry), f"{prefix}{entry}/", above | {here})
            else:
                others.append(prefix + entry)

    visit(path, "", frozenset())
    return images, others


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def _resolve(path: str, data_dir: str | None) -> str:
    """Finds the folder, or says where it was looked for."""
    path = os.path.expanduser(path)
    places = [path]
    if data_dir and not os.path.isabs(path) and "://" not in path:
        places = [_join(data_dir, path)]
    for place in places:
        try:
            if tf.io.gfile.isdir(place):
                return place
            if tf.io.gfile.exists(place):
                raise UserError(f"folder:{path} is a file; give the folder that its pictures are in")
        except tf.errors.OpError as error:
            raise UserError(f"folder:{path} cannot be opened ({error.message.splitlines()[0]})") from None
    relative = (
        ""
        if os.path.isabs(path) or "://" in path
        else (
            f" (relative to --data_dir={data_dir})"
            if data_dir
            else " (relative to the working directory; see --data_dir)"
        )
    )
    raise UserError(f"folder:{path} is not there{relative}; give a folder of pictures")


class FolderSource(Source):
    """Pictures below a folder; its sub-folders, where there are any, are the classes."""

    def __init__(self, path: str, split: str, data_dir: str | None = None):
        """Lists the folder; pictures are read when they are asked for.

        When the folder has nothing but sub-folders named like splits (train, test, val, ...), or two of these names at
        least, they are the splits. Otherwise a tenth of the pictures of each class, chosen by their names, is "test"
        and the rest "train". "all" is everything.

        Pictures that lie in no class folder are unlabelled. A single class is none: there is nothing to tell apart.

        Args:
          path: of the folder, local or remote.
          split: see `splits.select`.
          data_dir: what a relative path is relative to.

        Raises:
          UserError: where there are no pictures, or no such split.
        """
        self._root = _resolve(path, data_dir)
        self.name = f"folder:{path} ({split})"
        try:
            names, others = _list(self._root)
        except (OSError, tf.errors.OpError) as error:
            raise UserError(f"folder:{path} cannot be listed ({str(error).splitlines()[0]})") from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"folder:{path} has a name that is not UTF-8 ({error.object!r}); rename it, such as with convmv"
            ) from None
        if not names:
            found = f"it has {len(others)} other file(s), such as {others[0]}" if others else "it has no files at all"
            raise UserError(f"folder:{path} has no JPEG, PNG, BMP or GIF pictures; {found}")
        webp = [name for name in names if name.lower().endswith(".webp")]
        if webp and not READS_WEBP:
            raise UserError(
                f"folder:{path} has {len(webp)} WebP picture(s), such as {webp[0]}, which TensorFlow {tf.__version__} "
                "cannot read; convert them to PNG or JPEG, or use TensorFlow 2.21"
            )
        digests = [_digest(name) for name in names]
        order = sorted(range(len(names)), key=lambda i: (digests[i][8:], names[i]))
        names, digests = [names[i] for i in order], [digests[i] for i in order]

        split_of = _split_folders(names)
        parts = [name.split("/") for name in names]
        if split_of is not None:
            parts = [part[1:] for part in parts]
        classes = [part[0] if len(part) > 1 else None for part in parts]
        known = sorted({name for name in classes if name is not None})
        number = {name: i for i, name in enumerate(known)}
        labels = np.array([-1 if name is None else number[name] for name in classes], np.int32)
        if split_of is None:
            rows = _hash_split(digests, labels)
        else:
            rows = {
                key: np.array([i for i, of in enumerate(split_of) if of == key], np.int64)
                for key in sorted(set(split_of))
            }
        chosen = splits.select(split, {key: value for key, value in rows.items() if len(value)}, f"folder:{path}")
        self.remote = "://" in self._root
        self._names = [names[i] for i in chosen]
        self.num_examples = len(chosen)
        self.class_names = tuple(known) if len(known) > 1 else None
        self._labels = labels[chosen] if self.class_names else None
        self.partly_labelled = self._labels is not None and bool(np.any(self._labels < 0))

    @property
    def labels(self) -> np.ndarray | None:
        """See `Source`."""
        return self._labels

    @property
    def example_ids(self) -> list[str]:
        """Each picture's path from the folder, with "/" between."""
        return self._names

    @functools.cached_property
    def _table(self) -> tuple[tf.Tensor, tf.Tensor]:
        labels = self._labels if self._labels is not None else np.full(self.num_examples, -1, np.int32)
        with tf.init_scope(), tf.device("CPU:0"):  # The first to ask may be a function that is being traced.
            return tf.constant([_join(self._root, name) for name in self._names]), tf.constant(labels)

    def read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """See `Source`."""
        paths, labels = self._table
        return tf.io.read_file(tf.gather(paths, index)), tf.gather(labels, index)

    @functools.lru_cache(maxsize=None)  # noqa: B019  (a source lives as long as the run)
    def resident(self) -> Resident | None:
        """See `Source`."""
        for i in range(min(8, self.num_examples)):
            image, _, sound = try_decode(self.read, tf.constant(i, tf.int64))
            if sound:
                height, width = image.shape[:2]
                small = max(height, width) <= _LARGEST_RESIDENT_SIDE
                fits = self.num_examples * height * width * 3 <= RESIDENT_BYTES
                return load(self, height, width) if small and fits else None
        return None


def _split_folders(names: list[str]) -> list[str] | None:
    """Returns each picture's split where sub-folders are the splits, else None."""
    first = [name.split("/")[0] if "/" in name else "" for name in names]
    folders = set(first)
    named = folders & set(SPLIT_NAMES)
    if not named or (len(named) == 1 and folders != named):
        return None
    strange = sorted(folders - named)
    if strange:
        where = f"folder {strange[-1]!r}" if strange[-1] else "pictures"
        raise UserError(
            f"there are {where} beside the folders of the splits {', '.join(sorted(named))}; move them into one of "
            "these, or out"
        )
    return first


def _hash_split(digests: list[bytes], labels: np.ndarray) -> dict[str, np.ndarray]:
    """Divides each class by the hashes of its pictures' names: a tenth, at least one of two, is for testing."""
    test = np.zeros(len(digests), bool)
    for label in np.unique(labels):
        members = sorted(np.nonzero(labels == label)[0], key=lambda i: digests[i][:8])
        count = max(1, round(TEST_SHARE * len(members))) if len(members) > 1 else 0
        test[members[:count]] = True
    return {"train": np.nonzero(~test)[0], "test": np.nonzero(test)[0]}
