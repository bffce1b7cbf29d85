"""A folder of pictures: `folder:PATH`.

Everything follows from the files' names alone, not from the order in which a file system lists them: the order of
examples, and, where there are no folders for the splits, which pictures are for training and which for testing.
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
# What archives, photo managers, network drives and file systems leave among pictures.
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

_LARGEST_RESIDENT_SIDE = 256
_DEEPEST = 64
_MANY_KINDS = 6


def _digest(name: str) -> bytes:
    # Some file systems decompose accents.
    return hashlib.blake2b(
        unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape"), digest_size=16
    ).digest()


class _Entry(NamedTuple):
    """What lies in a folder: `kind` is "file", "folder" or "" for anything else, behind a link or not."""

    name: str
    kind: str
    is_link: bool = False


def _entries(folder: str) -> list[_Entry]:
    """Returns what lies in a folder, by name."""
    if "://" not in folder:
        with os.scandir(folder) as found:
            entries = [
                _Entry(one.name, "folder" if one.is_dir() else "file" if one.is_file() else "", one.is_symlink())
                for one in found
            ]
        return sorted(entries)
    entries = []
    for name in sorted(set(tf.io.gfile.listdir(folder))):
        # A bucket gives folders' names with a slash, and asking for each file's kind takes hours.
        is_file = not name.endswith("/") and name.lower().endswith(SUFFIXES)
        is_folder = name.endswith("/") or (not is_file and tf.io.gfile.isdir(_join(folder, name)))
        entries.append(_Entry(name.rstrip("/"), "folder" if is_folder else "file"))
    return entries


class _Listing:
    """All pictures below a folder.

    Attributes:
      names: of the pictures, from the folder, with "/" between.
      linked: name -> the file itself, of pictures that are reached through links.
      passed_over: what was left out -> how many.
      example: one of the other files.
    """

    def __init__(self, root: str):
        """Lists a folder; may raise what the file system raises."""
        self.names: list[str] = []
        self.linked: dict[str, str] = {}
        self.passed_over: Counter[str] = Counter()
        self.example: str | None = None
        self._followed: set[str] = set()
        self._visit(root, "", frozenset(), behind_link=False)

    def _visit(self, folder: str, prefix: str, above: frozenset[str], *, behind_link: bool) -> None:
        here = folder if "://" in folder else os.path.realpath(folder)
        # A link to a folder above would lead round in circles.
        if here in above or len(above) > _DEEPEST:
            return
        for name, kind, is_link in _entries(folder):
            path, inside = _join(folder, name), prefix + name
            if name.startswith(".") or name in _NOT_PICTURES:
                self._pass_over(name, kind)
            elif kind == "folder":
                if is_link:
                    # Behind a link, links are followed only to what no link has led to yet.
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
                self.passed_over[what if kind else "that are no files (broken links, pipes)"] += 1

    def _pass_over(self, name: str, kind: str) -> None:
        if kind == "folder":
            self.passed_over[f"{name} folder(s)" if name in _NOT_PICTURES else "hidden folder(s)"] += 1
        elif name.lower().endswith(SUFFIXES):
            self.passed_over["hidden picture(s)"] += 1


def _readable_name(name: str) -> str:
    """Returns a name that TensorFlow can read, as it is."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"has a name that is not UTF-8 ({os.fsencode(name)!r}); rename it, such as with convmv"
        ) from None
    return name


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
    advice = f"did you mean folder:{path.replace(chr(92), '/')}?" if "\\" in path else "give a folder of pictures"
    raise UserError(f"folder:{path} is not there{relative}; {advice}")


class FolderSource(Source):
    """Pictures below a folder; its sub-folders, where there are any, are the classes."""

    def __init__(self, path: str, split: str, data_dir: str | None = None, group_by: str | None = None):
        """Lists the folder; pictures are read when they are asked for.

        Sub-folders are the splits where all of them have usual names of splits (`splits.usual_name`), "unlabeled" not
        being the only one, or where there are one for training and one for testing or validation. Otherwise a tenth of
        the pictures of each class, chosen by their names, is "test" and the rest "train". "all" is everything. One
        folder that holds all others, above the splits or classes, counts for nothing.

        Pictures that lie in no class folder, or in "unlabeled", are unlabelled. A single class is none: there is
        nothing to tell apart. Classes are those of all splits together, by name. A picture that several links lead to
        is taken once a split.

        Args:
          path: of the folder, local or remote.
          split: see `splits.select`.
          data_dir: what a relative path is relative to.
          group_by: what pictures of one group have in common in their names; see `groups.keys`.

        Raises:
          UserError: where there are no pictures, or no such split.
        """
        self._root = _resolve(path, data_dir)
        listing = _listed(self._root, path)
        digests = {name: _digest(name) for name in listing.names}
        names = sorted(listing.names, key=lambda name: (digests[name][8:], name))
        layout = _Layout.of(names, path)
        kept = _once(names, layout.split_of, listing.linked, self._root)
        found = None
        if group_by is not None:  # Groups lie together, so that slices can leave them whole.
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
        """Each picture's path from the folder, with "/" between."""
        return self._names

    @property
    def identities(self) -> list[str]:
        """See `Source`: the files themselves, wherever links to them lie."""
        root = self._root if self.remote else os.path.realpath(self._root)
        return [self._linked.get(name) or _join(root, name) for name in self._names]

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
            image, _, sound = try_decode(self.read, tf.constant(i, tf.int64), bit_depth=self.bit_depth)
            if sound:
                height, width = image.shape[:2]
                small = max(height, width) <= _LARGEST_RESIDENT_SIDE
                fits = self.num_examples * height * width * 3 <= RESIDENT_BYTES
                return load(self, height, width) if small and fits else None
        return None


def _listed(root: str, path: str) -> _Listing:
    """Lists a folder that has pictures, all of which can be read as far as their names tell."""
    try:
        listing = _Listing(root)
    except UserError as error:
        raise UserError(f"folder:{path} {error}") from None
    except (OSError, tf.errors.OpError) as error:
        raise UserError(f"folder:{path} cannot be listed ({str(error).splitlines()[0]})") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"folder:{path} has a name that is not UTF-8 ({error.object!r}); rename it, such as with convmv"
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
    """Says what was left out."""
    if not counts:
        return []
    told = [f"{count} {what}" for what, count in sorted(counts.items(), key=lambda row: (-row[1], row[0]))]
    others = sum(sorted(counts.values())[:-_MANY_KINDS])
    return [f"passed over: {', '.join(told[:_MANY_KINDS])}" + (f" and {others} others" if others else "")]


def _once(names: list[str], split_of: list[str] | None, linked: dict[str, str], root: str) -> list[int]:
    """Returns which pictures to keep, so that each file is in a split once, by its own name where that is there."""
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
    """What the folders of a data set mean.

    Attributes:
      split_of: each picture's split where folders are the splits, else None.
      parts: each picture's folders and file, from the class on.
      remarks: what was seen through, or may be meant otherwise.
    """

    split_of: list[str] | None
    parts: list[list[str]]
    remarks: list[str]

    @classmethod
    def of(cls, names: list[str], path: str) -> _Layout:
        """Finds splits and classes, below a folder that holds everything."""
        parts, remarks = [name.split("/") for name in names], []
        split_of, depth = _split_folders(parts), 0
        if split_of is None:
            depth = _wrappers(parts, above_splits=True)
            parts = [part[depth:] for part in parts]
            split_of = _split_folders(parts)
        if depth:
            remarks.append(f"all lies in folder:{path}/{'/'.join(names[0].split('/')[:depth])}, which is seen through")
        if split_of is None:
            return cls(None, parts, [*remarks, *_doubts(parts, path)])
        parts = [part[1:] for part in parts]
        for key in set(split_of):  # An archive of one split may have its own folder in it.
            own = [i for i, of in enumerate(split_of) if of == key]
            inner = _wrappers([parts[i] for i in own], above_splits=False)
            for i in own:
                parts[i] = parts[i][inner:]
        return cls(split_of, parts, remarks)


def _first(parts: Sequence[list[str]]) -> list[str]:
    """The first folder of each; "" for what lies in none."""
    return [part[0] if len(part) > 1 else "" for part in parts]


def _wrappers(parts: list[list[str]], *, above_splits: bool) -> int:
    """How many folders, one in the other, hold everything and have several folders, or splits, below them."""
    for depth in range(min(map(len, parts)) - 1):
        inside = [part[depth:] for part in parts]
        folders = set(_first(inside))
        if len(folders) > 1 or (above_splits and _split_folders(inside) is not None):
            return depth
    return 0


def _split_folders(parts: Sequence[list[str]]) -> list[str] | None:
    """Returns each picture's split where the first folders are the splits, else None."""
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
    # Two folders of one usual name, such as val and dev, stay apart.
    return [usual[folder] for folder in first] if len(found) == len(usual) else first


def _doubts(parts: Sequence[list[str]], path: str) -> Iterable[str]:
    """Says where folders that are taken as classes may be splits, or hold them."""
    below: dict[str, set[str]] = {}
    for part in parts:
        if len(part) > 1:
            below.setdefault(part[0], set()).add(part[1] if len(part) > 2 else "")
    for name, inside in sorted(below.items()):
        usual = {splits.usual_name(folder) for folder in inside}
        if splits.TRAIN in usual and usual & {splits.TEST, splits.VAL}:
            yield (
                f"class {name!r} has folders of splits in it, which are not looked at; did you mean "
                f"folder:{path}/{name}? If it is a class, its splits lie above it: train/{name}, test/{name}"
            )
            return
        if splits.usual_name(name) == splits.TRAIN and inside - {""}:
            yield f"folder {name!r} is taken for a class, as no folder for testing or validation lies beside it"
        if len(below) == 1 and len(inside - {""}) > 1:
            yield f"{name!r} is the only folder, which makes no classes; did you mean folder:{path}/{name}?"


def _hash_split(digests: list[bytes], labels: np.ndarray, found: list[str] | None) -> dict[str, np.ndarray]:
    """Divides each class by the hashes of its pictures' names, or of its groups': a tenth, at least one of two, is for
    testing.
    """
    if found is not None:
        test = groups.choose(found, labels, TEST_SHARE, lambda key: _digest(key)[:8])
        return {"train": np.nonzero(~test)[0], "test": np.nonzero(test)[0]}
    test = np.zeros(len(digests), bool)
    for label in np.unique(labels):
        members = sorted(np.nonzero(labels == label)[0], key=lambda i: digests[i][:8])
        count = max(1, round(TEST_SHARE * len(members))) if len(members) > 1 else 0
        test[members[:count]] = True
    return {"train": np.nonzero(~test)[0], "test": np.nonzero(test)[0]}
