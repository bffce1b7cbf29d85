"""Splits by name and slice, in tensorflow-datasets' syntax: "train", "train[:90%]", "train[100:200]+test".

Data sets spell the same split in many ways. A name also selects the split that a data set has under another usual
name, and "test" selects the validation split if there is no test split.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from simclr_tf.core.errors import UserError
from simclr_tf.data.sources import groups

_PART = re.compile(r"^\s*([\w.-]+)\s*(?:\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\])?\s*$")
ALL = "all"
TRAIN, TEST, VAL, UNLABELED = "train", "test", "val", "unlabeled"
_USUAL = re.compile(
    r"(?:(?P<train>train(?:ing)?)|(?P<test>test(?:ing)?)|(?P<val>val|valid|validation|dev)|(?P<unlabeled>unlabell?ed))"
    r"(?:[ _.-]?(?:sets?|data|dataset|split|folder|files|images?|imgs?|pictures|pics|photos|\d{4}))?",
    re.IGNORECASE,
)


def usual_name(name: str) -> str | None:
    """Returns the split that a name usually stands for; None if it is not a usual name of a split.

    >>> [usual_name(name) for name in ("Training", "test_set", "dev", "val2017", "STL unlabelled", "trains")]
    ['train', 'test', 'val', 'val', None, None]
    """
    match = _USUAL.fullmatch(name)
    return match.lastgroup if match else None


def respell(split: str, known: Collection[str]) -> str:
    """Rewrites a split with the names that a data set uses.

    >>> respell("training[:50%]+test", ("train", "validation")), respell("more", ("train",))
    ('train[:50%]+validation', 'more')
    """
    parts = []
    for part in split.split("+"):
        match = _PART.match(part)
        parts.append(f"{part[: match.start(1)]}{_meant(match[1], known)}{part[match.end(1) :]}" if match else part)
    return "+".join(parts)


def _meant(name: str, known: Collection[str]) -> str:
    if name in known or name == ALL:
        return name
    wanted = usual_name(name)
    for usual in (wanted, VAL) if wanted == TEST else (wanted,):
        for other in known:
            if usual is not None and usual_name(other) == usual:
                return other
    return name


def stand_in_remark(asked: str, taken: str) -> list[str]:
    """Returns remarks on each validation split that `respell` put in place of a test split of `asked`."""
    pairs = zip(re.findall(r"[\w.-]+", asked), re.findall(r"[\w.-]+", taken))
    return [
        f"there is no split {one!r}: {other!r} stands in for it"
        for one, other in pairs
        if usual_name(one) == TEST and usual_name(other) == VAL
    ]


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


def select(split: str, splits: Mapping[str, np.ndarray], name: str, found: Sequence[str] | None = None) -> np.ndarray:
    """Returns the examples of a split.

    Args:
      split: names joined by "+", each with an optional slice in examples or percent; "all" means every split. See
        `respell`.
      splits: name -> [n] numbers of examples, in order.
      name: name of the source, for messages.
      found: each example's group, which slices keep whole; None for no groups.

    Returns:
      [n] numbers of examples.

    Raises:
      UserError: if the split is unknown, malformed or empty.
    """
    rows = []
    for part in respell(split, splits).split("+"):
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
            raise UserError(f"split {split!r} of {name} cannot be taken: {error}") from None
        rows.append(whole[groups.edge(first, whole, found) : groups.edge(last, whole, found)])
    chosen = np.concatenate(rows)
    if not len(chosen):
        raise UserError(f"split {split!r} of {name} has no examples; choose a larger part")
    return chosen
