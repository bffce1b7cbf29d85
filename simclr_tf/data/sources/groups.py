"""Groups of pictures that belong together, such as a film's frames or a patient's slices: splits keep them whole."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from simclr_tf.core.errors import UserError

_ALONE = "\0"  # No file name contains it.


def check(expression: str | None) -> None:
    """Raises a UserError if `expression` is not a regular expression."""
    try:
        if expression is not None:
            re.compile(expression)
    except (re.error, TypeError) as error:
        raise UserError(
            f"Data.group_by is {expression!r}, not a regular expression ({error}); write one such as 'film\\d+'"
        ) from None


def keys(names: Sequence[str], expression: str, where: str) -> list[str]:
    """Returns each picture's group: the expression's match in its name, or the match's first group in parentheses.

    Args:
      names: paths below the folder, separated by "/". Only file names are searched, unless the expression contains a
        "/".
      expression: regular expression.
      where: name of the folder, for messages.

    Returns:
      Keys of the groups. A picture without a match is a group of its own, whose key begins with a zero byte.

    Raises:
      UserError: if no name matches.
    """
    pattern = re.compile(expression)
    searched = names if "/" in expression else [name.rsplit("/", 1)[-1] for name in names]
    matches = [pattern.search(text) for text in searched]
    if not any(matches):
        raise UserError(
            f"Data.group_by is {expression!r}, which matches no picture of {where}; their names look like {searched[0]}"
        )
    return [
        f"{_ALONE}{name}" if match is None else (match[1] if pattern.groups and match[1] is not None else match[0])
        for name, match in zip(names, matches)
    ]


def remarks(found: Sequence[str], split_of: Sequence[str] | None) -> list[str]:
    """Returns remarks on the number of groups, and on groups that several folders of splits share."""
    sizes = np.unique([key for key in found if not key.startswith(_ALONE)], return_counts=True)[1]
    alone = len(found) - sum(sizes)
    others = f"; {alone} picture(s) that Data.group_by does not match stand alone" if alone else ""
    lines = [f"grouped by Data.group_by: {len(sizes)} group(s) of {min(sizes)} to {max(sizes)} pictures{others}"]
    places: dict[str, set[str]] = {}
    for key, split in zip(found, split_of or ()):
        places.setdefault(key, set()).add(split)
    several = [key for key, splits in places.items() if len(splits) > 1]
    if several:
        where = " and ".join(sorted(places[several[0]]))
        lines.append(f"{len(several)} group(s) lie in several folders of splits, such as {several[0]} in {where}")
    return lines


def choose(found: Sequence[str], labels: np.ndarray, share: float, rank: Callable[[str], bytes]) -> np.ndarray:
    """Chooses whole groups that make up about a share of each class.

    Args:
      found: [N] keys of the groups.
      labels: [N] int.
      share: share of each class's pictures to choose, at least one picture.
      rank: sort key by which groups are taken.

    Returns:
      [N] bool. No class is chosen whole, so a class with a single group is left alone.
    """
    counts: dict[str, Counter[int]] = {}
    for key, label in zip(found, labels.tolist()):
        counts.setdefault(key, Counter())[label] += 1
    of_class: dict[int, list[str]] = {}
    for key in sorted(counts, key=lambda key: (rank(key), key)):
        for label in counts[key]:
            of_class.setdefault(label, []).append(key)
    whole, taken, chosen = Counter(labels.tolist()), Counter(), set()
    # Classes with few groups come first, because they leave the least choice.
    for label in sorted(of_class, key=lambda label: (len(of_class[label]), label)):
        wanted = max(1, round(share * whole[label]))
        for key in of_class[label]:
            gap = wanted - taken[label]
            if gap <= 0:
                break
            is_nearer = not taken[label] or abs(gap - counts[key][label]) < gap
            leaves_some = all(taken[other] + count < whole[other] for other, count in counts[key].items())
            if key not in chosen and is_nearer and leaves_some:
                chosen.add(key)
                taken.update(counts[key])
    return np.array([key in chosen for key in found], bool)


def edge(bound: int, rows: np.ndarray, found: Sequence[str] | None) -> int:
    """Moves the edge of a slice of `rows` (numbers of examples) on to the next group's start, if there are groups.

    >>> edge(2, np.arange(5), ["a", "b", "b", "b", "c"]), edge(1, np.arange(3), "abc"), edge(1, np.arange(3), None)
    (4, 1, 1)
    """
    while found is not None and 0 < bound < len(rows) and found[rows[bound - 1]] == found[rows[bound]]:
        bound += 1
    return bound
