"""A folder of pictures: `folder:PATH`.

The files' names alone determine the order of examples and, if the splits have no folders, which pictures are for
training and which for testing. The order in which a file system lists files does not matter.
"""

from __future__ import annotations

import functools
import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.data.decode import READS_WEBP, SUFFIXES, try_decode
from simclr_tf.data.sources import groups, splits
from simclr_tf.data.sources.resident import load
from simclr_tf.data.sources.source import RESIDENT_BYTES, Resident, Source

TEST_SHARE = 0.1
# Folders that archives, photo managers, network drives and file systems leave among pictures.
_NOT_PICTURES = frozenset(
    (
        "__MACOSX",
        "@eaDir",
        "#recycle",
        "@Recycle",
        "#snapshot",
        "lost+found",
        "$RECYCLE.BIN",
        "System Volume Information",
    )
)

_LARGEST_RESIDENT_SIDE = 256  # Pixels; larger pictures are decoded again in every epoch.
_DEEPEST = 64  # Nested folders; ends loops of links that real paths do not reveal.
_MANY_KINDS = 6  # Kinds of skipped files that a remark lists.


def _digest(name: str) -> bytes:
    # Normalized, because some file systems decompose accents.
    return hashlib.blake2b(
        unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape"), digest_size=16
    ).digest()


class _Entry(NamedTuple):
    """An entry of a folder. `kind`, of a link's target, is "file", "folder" or "" for anything else."""

    name: str
    kind: str
    is_link: bool = False


def _entries(folder: str) -> list[_Entry]:
    """Returns a folder's entries, sorted by name."""
    if "://" not in folder:
        with os.scandir(folder) as found:
            entries = [
                _Entry(one.name, "folder" if one.is_dir() else "file" if one.is_file() else "", one.is_symlink())
                for one in found
            ]
        return sorted(entries)
    entries = []
    for name in sorted(set(tf.io.gfile.listdir(folder))):
        # A bucket ends folders' names with a slash; asking for the kind of every file would take hours.
        is_file = not name.endswith("/") and name.lower().endswith(SUFFIXES)
        is_folder = name.endswith("/") or (not is_file and tf.io.gfile.isdir(_join(folder, name)))
        entries.append(_Entry(name.rstrip("/"), "folder" if is_folder else "file"))
    return entries


class _Listing:
    """All pictures below a folder.

    Attributes:
      names: paths of the pictures below the folder, separated by "/".
      linked: name -> real path, for pictures that are reached through links.
      passed_over: kind of a skipped file or folder -> number of these.
      example: path of a skipped file, None if there is none.
    """

    def __init__(self, root: str):
        """Lists a folder; passes on the file system's errors."""
        self.names: list[str] = []
        self.linked: dict[str, str] = {}
        self.passed_over: Counter[str] = Counter()
        self.example: str | None = None
        self._followed: set[str] = set()
        self._visit(root, "", frozenset(), behind_link=False)

    def _visit(self, folder: str, prefix: str, above: frozenset[str], *, behind_link: bool) -> None:
        here = folder if "://" in folder else os.path.realpath(folder)
        # A link to a folder above would lead around in circles.
        if here in above or len(above) > _DEEPEST:
            return
        for name, kind, is_link in _entries(folder):
            path, inside = _join(folder, name), prefix + name
            if name.startswith(".") or name in _NOT_PICTURES:
                self._pass_over(name, kind)
            elif kind == "folder":
                if is_link:
                    # Below a link, follow only links to folders that no link has reached yet.
                    target = os.path.realpath(path)
                    if behind_link and target in self._followed:
                        continue
                    self._followed.add(target)
                self._visit(path, f"{inside}/", above | {here}, behind_link=behind_link or is_link)
            elif kind == "file" and name.lower().endswith(SUFFIXES):
                self.names.append(_readable_name(inside))
                if is_link or behind_link:
                    self.linked[inside] = os.path.realpath(path)
            elif name:
                self.example = self.example or inside
                ending = os.path.splitext(name)[1].lower()
                what = ending or "without an ending"
                self.passed_over[what if kind else "that are not files (broken links, pipes)"] += 1

    def _pass_over(self, name: str, kind: str) -> None:
        if kind == "folder":
            self.passed_over[f"{name} folder(s)" if name in _NOT_PICTURES else "hidden folder(s)"] += 1
        elif name.lower().endswith(SUFFIXES):
            self.passed_over["hidden picture(s)"] += 1


def _readable_name(name: str) -> str:
    """Returns the name if it is valid UTF-8, as TensorFlow needs; else raises a UserError."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"has a name that is not UTF-8 ({os.fsencode(name)!r}); rename it, for example with convmv"
        ) from None
    return name


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def _resolve(path: str, data_dir: str | None) -> str:
    """Finds the folder, or raises a UserError that says where it was looked for."""
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
    advice = f"did you mean folder:{path.replace(chr(92), '/')}?" if "\\" in path else "give a folder of pictures"
    raise UserError(f"folder:{path} is not there{relative}; {advice}")


class FolderSource(Source):
    """Pictures below a folder; its subfolders, if any, are the splits or the classes."""

    def __init__(self, path: str, split: str, data_dir: str | None = None, group_by: str | None = None):
        """Lists the folder. Pictures are read on demand.

        Subfolders are splits if all of them have usual names of splits (`splits.usual_name`) and there is more than
        "unlabeled", or if there is one for training and one for testing or validation; other folders beside these are
        an error. Otherwise a tenth of the pictures of each class, chosen by their names, is "test" and the rest is
        "train". "all" means all pictures. A single folder around the splits or classes is ignored.

        Pictures outside the class folders, or in "unlabeled", have no label. A single class counts as no classes,
        because there is nothing to tell apart. The classes are those of all splits, sorted by name. A picture that
        several links reach is taken once per split.

        Args:
          path: path of the folder, local or remote.
          split: split; see `splits.select`.
          data_dir: folder that a relative path starts from.
          group_by: regular expression for groups of pictures that stay together; see `groups.keys`.

        Raises:
          UserError: if there are no pictures, no such split, or folders beside those of the splits.
        """
        self._root = _resolve(path, data_dir)
        listing = _listed(self._root, path)
        digests = {name: _digest(name) for name in listing.names}
        names = sorted(listing.names, key=lambda name: (digests[name][8:], name))
        layout = _Layout.of(names, path)
        kept = _once(names, layout.split_of, listing.linked, self._root)
        found = None
        if group_by is not None:  # Groups are contiguous, so that slices can keep them whole.
            key = dict(zip(kept, groups.keys([names[i] for i in kept], group_by, f"folder:{path}")))
            kept.sort(key=lambda i: (_digest(key[i])[8:], key[i]))
            found = [key[i] for i in kept]
        names, parts = [names[i] for i in kept], [layout.parts[i] for i in kept]
        classes = [part[0] if len(part) > 1 else None for part in parts]
        split_of = [layout.split_of[i] for i in kept] if layout.split_of is not None else None
        if split_of is not None:
            classes = [
                None if splits.usual_name(of) == splits.UNLABELED else name for name, of in zip(classes, split_of)
            ]
        known = sorted({name for name in classes if name is not None})
        number = {name: i for i, name in enumerate(known)}
        labels = np.array([-1 if name is None else number[name] for name in classes], np.int32)
        rows = _hash_split([digests[name] for name in names], labels, found) if split_of is None else _rows(split_of)
        rows = {key: value for key, value in rows.items() if len(value)}
        chosen = splits.select(split, rows, f"folder:{path}", found)
        taken = splits.respell(split, rows)
        self.name = f"folder:{path} ({taken})"
        self.splits = {key: len(value) for key, value in rows.items()}
        self.remarks = (*_passed_over(listing.passed_over), *layout.remarks, *splits.stand_in_remark(split, taken))
        if found is not None:
            self.remarks = (*self.remarks, *groups.remarks(found, split_of))
        self.remote = "://" in self._root
        self._names, self._linked = [names[i] for i in chosen], listing.linked
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
        """Each picture's path below the folder, separated by "/"."""
        return self._names

    @property
    def identities(self) -> list[str]:
        """See `Source`; the real paths of the files, behind any links."""
        root = self._root if self.remote else os.path.realpath(self._root)
        return [self._linked.get(name) or _join(root, name) for name in self._names]

    @functools.cached_property
    def _table(self) -> tuple[tf.Tensor, tf.Tensor]:
        labels = self._labels if self._labels is not None else np.full(self.num_examples, -1, np.int32)
        with tf.init_scope(), tf.device("CPU:0"):  # The first caller may be a function that is being traced.
            return tf.constant([_join(self._root, name) for name in self._names]), tf.constant(labels)

    def read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """See `Source`."""
        paths, labels = self._table
        return tf.io.read_file(tf.gather(paths, index)), tf.gather(labels, index)

    @functools.lru_cache(maxsize=None)  # noqa: B019  (a source lives as long as the run)
    def resident(self) -> Resident | None:
        """See `Source`."""
        attempt = functools.partial(try_decode, self.read, bit_depth=self.bit_depth)
        attempt = tf.function(attempt, autograph=False)  # Traced once, however many images are unreadable.
        for i in range(min(8, self.num_examples)):
            image, _, sound = attempt(tf.constant(i, tf.int64))
            if sound:
                height, width = image.shape[:2]
                small = max(height, width) <= _LARGEST_RESIDENT_SIDE
                fits = self.num_examples * height * width * 3 <= RESIDENT_BYTES
                return load(self, height, width) if small and fits else None
        return None


def _listed(root: str, path: str) -> _Listing:
    """Lists a folder; raises a UserError if it has no pictures, or some that TensorFlow cannot read."""
    try:
        listing = _Listing(root)
    except UserError as error:
        raise UserError(f"folder:{path} {error}") from None
    except (OSError, tf.errors.OpError) as error:
        raise UserError(f"folder:{path} cannot be listed ({str(error).splitlines()[0]})") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"folder:{path} has a name that is not UTF-8 ({error.object!r}); rename it, for example with convmv"
        ) from None
    if not listing.names:
        found = "; ".join(_passed_over(listing.passed_over)) or "it has no files at all"
        such = f", such as {listing.example}" if listing.example else ""
        raise UserError(f"folder:{path} has no JPEG, PNG, BMP or GIF pictures; {found}{such}")
    webp = [name for name in listing.names if name.lower().endswith(".webp")]
    if webp and not READS_WEBP:
        raise UserError(
            f"folder:{path} has {len(webp)} WebP picture(s), such as {webp[0]}, which TensorFlow {tf.__version__} "
            "cannot read; convert them to PNG or JPEG, or use TensorFlow 2.21"
        )
    return listing


def _passed_over(counts: Counter[str]) -> list[str]:
    """Returns a remark on skipped files and folders, if there are any."""
    if not counts:
        return []
    counted = [f"{count} {what}" for what, count in sorted(counts.items(), key=lambda row: (-row[1], row[0]))]
    others = sum(sorted(counts.values())[:-_MANY_KINDS])
    return [f"passed over: {', '.join(counted[:_MANY_KINDS])}" + (f" and {others} others" if others else "")]


def _once(names: list[str], split_of: list[str] | None, linked: dict[str, str], root: str) -> list[int]:
    """Returns the pictures to keep so that each file is in a split once, by its own path rather than a link's."""
    if not linked:
        return list(range(len(names)))
    root = os.path.realpath(root)
    first: dict[tuple[str, str], int] = {}
    for i in sorted(range(len(names)), key=lambda i: (names[i] in linked, names[i])):
        first.setdefault((split_of[i] if split_of else "", linked.get(names[i]) or _join(root, names[i])), i)
    return sorted(first.values())


def _rows(split_of: list[str]) -> dict[str, np.ndarray]:
    return {key: np.array([i for i, of in enumerate(split_of) if of == key], np.int64) for key in sorted(set(split_of))}


class _Layout(NamedTuple):
    """The meaning of a data set's folders.

    Attributes:
      split_of: each picture's split if the splits have folders, else None.
      parts: each picture's folders and file name, from the class on.
      remarks: notes for users on ignored and ambiguous folders.
    """

    split_of: list[str] | None
    parts: list[list[str]]
    remarks: list[str]

    @classmethod
    def of(cls, names: list[str], path: str) -> _Layout:
        """Finds splits and classes, ignoring folders around all pictures."""
        parts, remarks = [name.split("/") for name in names], []
        split_of, depth = _split_folders(parts), 0
        if split_of is None:
            depth = _wrappers(parts, above_splits=True)
            parts = [part[depth:] for part in parts]
            split_of = _split_folders(parts)
        if depth:
            inner = "/".join(names[0].split("/")[:depth])
            remarks.append(f"all pictures lie in folder:{path}/{inner}, which is taken as the data set's folder")
        if split_of is None:
            return cls(None, parts, [*remarks, *_doubts(parts, path)])
        parts = [part[1:] for part in parts]
        for key in set(split_of):  # An archive of one split may contain a folder of its own.
            own = [i for i, of in enumerate(split_of) if of == key]
            own_depth = _wrappers([parts[i] for i in own], above_splits=False)
            for i in own:
                parts[i] = parts[i][own_depth:]
        return cls(split_of, parts, remarks)


def _first(parts: Sequence[list[str]]) -> list[str]:
    """Returns each picture's first folder, or "" if it lies in none."""
    return [part[0] if len(part) > 1 else "" for part in parts]


def _wrappers(parts: list[list[str]], *, above_splits: bool) -> int:
    """Returns the number of nested folders around all pictures, down to several folders or, if asked for, splits."""
    for depth in range(min(map(len, parts)) - 1):
        inside = [part[depth:] for part in parts]
        folders = set(_first(inside))
        if len(folders) > 1 or (above_splits and _split_folders(inside) is not None):
            return depth
    return 0


def _split_folders(parts: Sequence[list[str]]) -> list[str] | None:
    """Returns each picture's split if the first folders are the splits, else None."""
    first = _first(parts)
    usual = {folder: splits.usual_name(folder) for folder in set(first)}
    found = set(usual.values()) - {None}
    strange = sorted(folder for folder, name in usual.items() if name is None)
    both = splits.TRAIN in found and found & {splits.TEST, splits.VAL}
    if not found - {splits.UNLABELED} or (strange and not both):
        return None
    if strange:
        where = f"folder {strange[-1]!r}" if strange[-1] else "pictures"
        raise UserError(
            f"there are {where} beside the folders of the splits {', '.join(sorted(set(first) - set(strange)))}; move "
            "them into one of these, or out"
        )
    # If two folders have the same usual name, such as val and dev, all keep their own.
    return [usual[folder] for folder in first] if len(found) == len(usual) else first


def _doubts(parts: Sequence[list[str]], path: str) -> Iterable[str]:
    """Returns remarks on folders that are taken as classes but may be splits, or contain them."""
    below: dict[str, set[str]] = {}
    for part in parts:
        if len(part) > 1:
            below.setdefault(part[0], set()).add(part[1] if len(part) > 2 else "")
    for name, inside in sorted(below.items()):
        usual = {splits.usual_name(folder) for folder in inside}
        if splits.TRAIN in usual and usual & {splits.TEST, splits.VAL}:
            yield (
                f"class {name!r} contains folders named like splits, which are ignored; did you mean "
                f"folder:{path}/{name}? If it is a class, put the splits above it: train/{name}, test/{name}"
            )
            return
        if splits.usual_name(name) == splits.TRAIN and inside - {""}:
            yield f"folder {name!r} is taken for a class, as there is no folder for testing or validation beside it"
        if len(below) == 1 and len(inside - {""}) > 1:
            yield f"{name!r} is the only folder, so there are no classes; did you mean folder:{path}/{name}?"
    yield from _half_named(sorted(below))


def _half_named(classes: Sequence[str]) -> Iterable[str]:
    """Returns a remark on classes with names of splits in their names, such as seg_train and seg_test."""
    usual = {name: {splits.usual_name(word) for word in name.replace("-", "_").split("_")} for name in classes}
    train = [name for name, found in usual.items() if splits.TRAIN in found]
    other = [name for name, found in usual.items() if found & {splits.TEST, splits.VAL}]
    if train and other:
        yield f"folders {train[0]!r} and {other[0]!r} are classes here; to make them splits, call them train and test"


def _hash_split(digests: list[bytes], labels: np.ndarray, found: list[str] | None) -> dict[str, np.ndarray]:
    """Divides each class by hashes of its pictures' or groups' names: a tenth, at least one of two, is for testing."""
    if found is not None:
        test = groups.choose(found, labels, TEST_SHARE, lambda key: _digest(key)[:8])
        return {"train": np.nonzero(~test)[0], "test": np.nonzero(test)[0]}
    test = np.zeros(len(digests), bool)
    for label in np.unique(labels):
        members = sorted(np.nonzero(labels == label)[0], key=lambda i: digests[i][:8])
        count = max(1, round(TEST_SHARE * len(members))) if len(members) > 1 else 0
        test[members[:count]] = True
    return {"train": np.nonzero(~test)[0], "test": np.nonzero(test)[0]}
