"""Groups of pictures that belong together, as frames of a film or slices of a patient: splits leave them whole."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from simclr_tf.core.errors import UserError

_ALONE = "\0"  # No file has it in its name.


def check(expression: str | None) -> None:
    """Raises a UserError for what is no regular expression."""
    try:
        if expression is not None:
            re.compile(expression)
    except (re.error, TypeError) as error:
        raise UserError(
            f"Data.group_by is {expression!r}, which is no regular expression ({error}); write one such as 'film\\d+'"
        ) from None


def keys(names: Sequence[str], expression: str, where: str) -> list[str]:
    """Returns each picture's group: what the expression finds in its name, in its first pair of parentheses if any.

    Args:
      names: paths from the folder, with "/" between. The file's name is searched, and the whole path by an expression
        with a "/" in it.
      expression: a regular expression.
      where: the folder, for messages.

    Returns:
      The groups' keys; a picture in whose name nothing is found is a group of its own, whose key begins with a zero.

    Raises:
      UserError: where nothing is found in any name.
    """
    pattern = re.compile(expression)
    searched = names if "/" in expression else [name.rsplit("/", 1)[-1] for name in names]
    matches = [pattern.search(text) for text in searched]
    if not any(matches):
        raise UserError(
            f"Data.group_by is {expression!r}, which matches no picture of {where}; they are called like {searched[0]}"
        )
    return [
        f"{_ALONE}{name}" if match is None else (match[1] if pattern.groups and match[1] is not None else match[0])
        for name, match in zip(names, matches)
    ]


def remarks(found: Sequence[str], split_of: Sequence[str] | None) -> list[str]:
    """Says how many groups there are, and which of them lie in several of the folders that are the splits, if any."""
    sizes = np.unique([key for key in found if not key.startswith(_ALONE)], return_counts=True)[1]
    alone = len(found) - sum(sizes)
    others = f"; {alone} picture(s) that Data.group_by does not match stand alone" if alone else ""
    told = [f"grouped by Data.group_by: {len(sizes)} group(s) of {min(sizes)} to {max(sizes)} pictures{others}"]
    places: dict[str, set[str]] = {}
    for key, split in zip(found, split_of or ()):
        places.setdefault(key, set()).add(split)
    several = [key for key, splits in places.items() if len(splits) > 1]
    if several:
        where = " and ".join(sorted(places[several[0]]))
        told.append(f"{len(several)} group(s) lie in several folders of splits, such as {several[0]} in {where}")
    return told


def choose(found: Sequence[str], labels: np.ndarray, share: float, rank: Callable[[str], bytes]) -> np.ndarray:
    """Chooses whole groups of about a share of each class.

    Args:
      found: [N] groups' keys.
      labels: [N] int.
      share: of each class's pictures that is wanted, one at least.
      rank: groups are taken in the order of this.

    Returns:
      [N] bool. No class is chosen whole; one that has a single group is not chosen from.
    """
    counts: dict[str, Counter[int]] = {}
    for key, label in zip(found, labels.tolist()):
        counts.setdefault(key, Counter())[label] += 1
    of_class: dict[int, list[str]] = {}
    for key in sorted(counts, key=lambda key: (rank(key), key)):
        for label in counts[key]:
            of_class.setdefault(label, []).append(key)
    whole, taken, chosen = Counter(labels.tolist()), Counter(), set()
    for label in sorted(of_class, key=lambda label: (len(of_class[label]), label)):  # Few groups leave little choice.
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
    """Moves where a slice of `rows` (numbers of examples) begins or ends on to the next group, where there are groups.

    >>> edge(2, np.arange(5), ["a", "b", "b", "b", "c"]), edge(1, np.arange(3), "abc"), edge(1, np.arange(3), None)
    (4, 1, 1)
    """
    while found is not None and 0 < bound < len(rows) and found[rows[bound - 1]] == found[rows[bound]]:
        bound += 1
    return bound
