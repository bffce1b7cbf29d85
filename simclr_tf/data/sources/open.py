"""Opens sources by their `kind:rest` names; each kind has a file of its own."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from simclr_tf.core import windows_paths
from simclr_tf.core.errors import UserError
from simclr_tf.data.sources import deep_samples, known_sizes
from simclr_tf.data.sources.source import Source


def _embedded(rest: str, split: str, data_dir: str | None, download: bool, group_by: None) -> Source:
    from simclr_tf.data.sources.bundled import EmbeddedSource

    return EmbeddedSource(rest, split)


def _tfds(rest: str, split: str, data_dir: str | None, download: bool, group_by: None) -> Source:
    from simclr_tf.data.sources.tfds import TfdsSource

    return TfdsSource(rest, split, data_dir, download=download)


def _folder(rest: str, split: str, data_dir: str | None, download: bool, group_by: str | None) -> Source:
    from simclr_tf.data.sources.folder import FolderSource

    return FolderSource(rest, split, data_dir, group_by)


_KINDS: dict[str, Callable[..., Source]] = {
    "embedded": _embedded,
    "tfds": _tfds,
    "folder": _folder,
}


def open_source(
    spec: str,
    split: str,
    data_dir: str | None = None,
    *,
    download: bool = False,
    bit_depth: int | None = None,
    group_by: str | None = None,
) -> Source:
    """Opens a split of a data set. Images are read when a pipeline asks for them.

    Args:
      spec: "embedded:NAME"; "tfds:NAME", with or without "/CONFIG" and ":VERSION"; or "folder:PATH".
      split: split such as "train", "test[:50%]" or "train+test"; see `splits.select`.
      data_dir: folder of tensorflow-datasets' data, and the folder that relative folder:PATHs start from.
      download: whether tensorflow-datasets may download missing data.
      bit_depth: bits per sample that 16-bit PNG files use, from 8 to 16; None for all.
      group_by: regular expression for a folder's groups of pictures, which stay together; see `groups.keys`.

    Raises:
      UserError: if the data cannot be opened.
    """
    if isinstance(spec, str):
        windows_paths.refuse(spec, "Data.source")
    if not isinstance(spec, str) or ":" not in spec:
        raise UserError(
            f"Data.source is {spec!r}; write embedded:NAME, tfds:NAME or folder:PATH, such as embedded:cifar10_mini"
        )
    kind, rest = spec.split(":", 1)
    if kind not in _KINDS:
        close = difflib.get_close_matches(kind, _KINDS, n=1)
        hint = f"did you mean {close[0]}:{rest}?" if close else f"use one of {', '.join(f'{kind}:' for kind in _KINDS)}"
        raise UserError(f"Data.source is {spec!r}, but there is no kind of source called {kind!r}; {hint}")
    if not rest:
        raise UserError(f"Data.source is {spec!r} without a name; write {kind}:NAME")
    if not isinstance(split, str) or not split.strip():
        raise UserError(f"the split of {spec} is {split!r}; use a name such as 'train' or 'train[:90%]'")
    if group_by is not None and kind != "folder":
        raise UserError(
            f"Data.group_by is {group_by!r}, but {spec} is not a folder and has its own splits; set it to None"
        )
    try:
        source = _KINDS[kind](rest, split, data_dir, download, group_by)
    except UserError:
        numbers = known_sizes.stand_in(kind, rest, split)
        if numbers is None:
            raise
        return numbers
    source.bit_depth = bit_depth
    if bit_depth is None and kind == "folder":
        source.remarks = (*source.remarks, *deep_samples.remarks(source))
    return source
