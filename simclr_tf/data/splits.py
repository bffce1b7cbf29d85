"""Splits by name and slice, in tensorflow-datasets' syntax: "train", "train[:90%]", "train[100:200]+test"."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from simclr_tf.errors import UserError

_PART = re.compile(r"^\s*([\w.-]+)\s*(?:\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\])?\s*$")
ALL = "all"


def _bound(text: str | None, size: int, default: int) -> int:
    if text is None:
        return default
    if text.endswith("%"):
        percent = int(text[:-1])
        if not -100 <= percent <= 100:
            raise ValueError(f"{text} is not within 100 %")
        bound = round(size * percent / 100)
    else:
        bound = int(text)
        if abs(bound) > size:
            raise ValueError(f"{text} is beyond its {size} examples")
    return bound + size if text.startswith("-") else bound


def select(split: str, splits: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Returns the examples of a split.

    Args:
      split: names joined by "+", each with an optional slice in examples or percent; "all" is every split.
      splits: name -> [n] numbers of examples, in order.
      name: of the source, for messages.

    Returns:
      [n] numbers of examples.

    Raises:
      UserError: for an unknown split, a slice that cannot be understood, or one without examples.
    """
    rows = []
    for part in str(split).split("+"):
        match = _PART.match(part)
        if not match:
            raise UserError(f"split {split!r} of {name} cannot be understood; write it like 'train' or 'train[:90%]'")
        key, start, stop = match.groups()
        if key in splits:
            whole = splits[key]
        elif key == ALL:
            whole = np.concatenate([splits[key] for key in splits])
        else:
            raise UserError(f"{name} has no split {key!r}; it has {', '.join(splits)}")
        try:
            first, last = _bound(start, len(whole), 0), _bound(stop, len(whole), len(whole))
        except ValueError as error:
            raise UserError(f"split {split!r} of {name} cannot be had: {error}") from None
        rows.append(whole[first:last])
    chosen = np.concatenate(rows)
    if not len(chosen):
        raise UserError(f"split {split!r} of {name} has no examples; choose a larger part")
    return chosen
