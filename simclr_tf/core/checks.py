"""Checks of values that users give. Each refuses a bad one in one line: the setting, the value, what it takes."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

from simclr_tf.core.errors import UserError


def whole(
    name: str, value: Any, *, least: int | None = 1, most: int | None = None, optional: bool = False, hint: str = ""
) -> None:
    """Refuses everything but whole numbers in a range; True and False do not count as numbers.

    Args:
      name: The setting, as users write it.
      value: The value that was found.
      least: The smallest value allowed; None for no bound.
      most: The largest value allowed; None for no bound.
      optional: Whether None is allowed, too.
      hint: The rest of the advice, such as ", such as 8".

    Raises:
      UserError: with the range and `hint`.
    """
    if optional and value is None:
        return
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or not _within(value, least=least, most=most):
        _refuse(name, value, f"a whole number{_range(least=least, most=most)}", optional, hint)


def number(name: str, value: Any, *, optional: bool = False, hint: str = "", **bounds: float) -> None:
    """Refuses everything but finite numbers in a range; True and False do not count as numbers.

    Args:
      name: The setting, as users write it.
      value: The value that was found.
      optional: Whether None is allowed, too.
      hint: The rest of the advice, such as ", such as 0.1".
      **bounds: `least` or `above`, and `most` or `below`; `least` and `most` themselves are allowed.

    Raises:
      UserError: with the range and `hint`.
    """
    if optional and value is None:
        return
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not _within(value, **bounds):
        _refuse(name, value, f"a{'' if bounds else ' finite'} number{_range(**bounds)}", optional, hint)


def choice(name: str, value: Any, known: Iterable[Any], *, hint: str = "") -> None:
    """Refuses everything but the known values."""
    known = list(known)
    if value not in known:
        raise UserError(f"{name} is {value!r}; choose one of {', '.join(map(str, known))}{hint}")


def switch(name: str, value: Any) -> None:
    """Refuses everything but True and False."""
    if not isinstance(value, bool):
        _refuse(name, value, "True or False", False, "")


def _refuse(name: str, value: Any, wanted: str, optional: bool, hint: str) -> None:
    raise UserError(f"{name} is {value!r}; use {wanted}{', or None' if optional else ''}{hint}")


def _within(value, *, least=None, above=None, most=None, below=None) -> bool:
    return (
        (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    )


def _range(*, least=None, above=None, most=None, below=None) -> str:
    if least is not None and most is not None:
        return f" from {least} to {most}"
    bounds = {"of at least": least, "above": above, "at most": most, "below": below}
    limits = [f"{words} {bound}" for words, bound in bounds.items() if bound is not None]
    return f" {' and '.join(limits)}" if limits else ""
