"""Class names, and numbers in their place where there are none."""

from __future__ import annotations

from collections.abc import Sequence


def numbered_classes(num_classes: int) -> list[str]:
    """Names classes by their numbers, for a classifier without class names.

    >>> numbered_classes(2)
    ['class 0', 'class 1']
    """
    return [f"class {i}" for i in range(num_classes)]


def known_class_names(names: Sequence[str] | None) -> list[str]:
    """Returns the names, or an empty list if they only number the classes and so fit any data.

    >>> known_class_names(["cat", "dog"]), known_class_names(["class 0", "class 1"]), known_class_names(None)
    (['cat', 'dog'], [], [])
    """
    names = list(names or ())
    return [] if names == numbered_classes(len(names)) else names


def disagreement(some: Sequence[str] | None, others: Sequence[str] | None) -> tuple[str, str] | None:
    """Returns the first pair of names that differ for the same class; None if both lists may mean the same classes.

    >>> disagreement(["cat", "dog"], ["cat", "cow"]), disagreement(["cat", "dog"], ["class 0", "class 1"])
    (('dog', 'cow'), None)
    """
    pairs = zip(known_class_names(some), known_class_names(others))
    return next((pair for pair in pairs if pair[0] != pair[1]), None)
