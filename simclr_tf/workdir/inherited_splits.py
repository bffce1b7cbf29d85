"""Decides which splits a new run inherits from an earlier run.

Splits of another data set mean nothing. A split that holds evaluation images would let the network memorize their
labels. In both cases the new run's own settings apply instead, and the user is told.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Sequence

from simclr_tf.core.errors import UserError
from simclr_tf.data.dataset import Data
from simclr_tf.data.sources import overlap
from simclr_tf.settings import gin_config

_SPLITS = ("Data.train_split", "Data.eval_split")
# Settings that only make sense for the same data.
_OF_THE_DATA = (*_SPLITS, "Data.group_by", "Data.bit_depth")
_WITH_LABELS = ("finetune", "linear_eval", "supervised", "knn")


def settle(
    parse: Callable[[list[str]], None], inherited: Sequence[str], *, mode: str, flag: str, data_dir: str | None
) -> list[str]:
    """Removes splits that should not be inherited from the configuration.

    Args:
      parse: function that parses the configuration again with the given inherited bindings; so far it has all of them.
      inherited: bindings that follow from an earlier run.
      mode: mode of the new run.
      flag: flag that names the earlier run.
      data_dir: folder of the data sets.

    Returns:
      Lines to tell the user.
    """
    texts = dict(text.partition(" = ")[::2] for text in inherited)
    mine = [name for name in _OF_THE_DATA if gin_config.is_inherited(name)]
    if not mine or "Data.source" not in texts:
        return []
    before = Data(**gin_config.bound_values("Data"))

    def without(*names: str) -> None:
        parse([text for text in inherited if text.partition(" = ")[0] not in names])

    if not _same(before.source, ast.literal_eval(texts["Data.source"])):
        without(*mine)
        return _told(before, f"came with the data of {flag}, not with {before.source}")
    found = _overlap(before, data_dir) if _learns_labels(mode) else None
    if found is None or not found.count:
        return []
    mine = [name for name in mine if name in _SPLITS]
    for names in (mine[:1], mine[1:], mine):
        if names:
            without(*names)
            after = _overlap(Data(**gin_config.bound_values("Data")), data_dir)
            if after is not None and not after.count:
                break
    return _told(before, f"of {flag} would train on {found.words}")


def _told(before: Data, why: str) -> list[str]:
    after = Data(**gin_config.bound_values("Data"))
    names = [name.partition(".")[2] for name in _OF_THE_DATA]
    changed = [name for name in names if getattr(before, name) != getattr(after, name)]
    if not changed:
        return []
    left = " and ".join(f"Data.{name}={getattr(before, name)!r}" for name in changed)
    taken = " and ".join(f"{getattr(after, name)!r}" for name in changed)
    return [f"{left} {why}; using {taken} instead (set these yourself to change that)"]


def _same(one: str, other: str) -> bool:
    """Whether two sources are the same data, judging by their names."""
    paths = [spec.partition(":")[2] for spec in (one, other)]
    folders = all(spec.startswith("folder:") and "://" not in spec for spec in (one, other))
    return one == other or (folders and len({os.path.realpath(os.path.expanduser(path)) for path in paths}) == 1)


def _learns_labels(mode: str) -> bool:
    return mode in _WITH_LABELS or (mode == "distill" and gin_config.bound_values("Distill").get("alpha", 1.0) < 1)


def _overlap(data: Data, data_dir: str | None) -> overlap.Overlap | None:
    """Returns the overlap of the train and eval splits; None if it cannot be known."""
    try:
        return overlap.between(data.open(data.train_split, data_dir), data.open(data.eval_split, data_dir), labels=True)
    except UserError:  # The run itself reports this.
        return None
