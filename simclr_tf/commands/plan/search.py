"""The largest batch that fits, in few tries: each costs a compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Try(NamedTuple):
    """One compilation.

    Attributes:
      batch_size: that was tried.
      fits: whether the compiler found room.
      needed_bytes: what it takes; None where the compiler does not tell.
    """

    batch_size: int
    fits: bool
    needed_bytes: int | None


class Largest(NamedTuple):
    """What a search found.

    Attributes:
      batch_size: the largest that fits; 0 where none does.
      exact: whether the next size was tried and does not fit, or `limit` is reached.
      tries: all compilations, in order.
      at_limit: whether nothing larger was of interest.
    """

    batch_size: int
    exact: bool
    tries: list[Try]
    at_limit: bool = False


def _sizes(limit: int) -> list[int]:
    """Worth asking about: 1, 2, 4, then multiples of 8, in which TPUs lay out arrays."""
    return [size for size in (1, 2, 4) if size <= limit] + list(range(8, limit + 1, 8))


def _guess(tries: list[Try], available_bytes: int, start: int) -> float:
    """Where memory, linear in the batch, would be full; twice or half of what was tried, where too little is known."""
    known = sorted({one.batch_size: one.needed_bytes for one in tries if one.needed_bytes is not None}.items())
    if len(known) >= 2:
        # The two tries next to the limit.
        known = sorted(known, key=lambda row: abs(row[1] - available_bytes))[:2]
        (size_1, bytes_1), (size_2, bytes_2) = known
        slope = (bytes_2 - bytes_1) / (size_2 - size_1)
        if slope > 0:
            return size_1 + (available_bytes - bytes_1) / slope
    last = tries[-1].batch_size if tries else start
    return last * 2 if tries and tries[-1].fits else last / 2


def largest_batch(
    compiles: Callable[[int], Try],
    *,
    start: int,
    limit: int,
    available_bytes: int,
    possible: Callable[[int], bool] = lambda size: True,
    max_tries: int = 6,
) -> Largest:
    """Searches the largest batch that fits.

    Args:
      compiles: tries a size.
      start: the size to begin with; a possible one.
      limit: the largest size of interest.
      available_bytes: about what there is.
      possible: whether a step can be made of a size.
      max_tries: compilations at most.

    Returns:
      The largest size that was tried and fits.
    """
    sizes = [size for size in sorted({*_sizes(limit), start, limit}) if possible(size)]
    below, above = -1, len(sizes)  # Positions: the largest that fits, the smallest that does not.
    tries: list[Try] = []
    while above - below > 1 and len(tries) < max_tries:
        wanted = _guess(tries, available_bytes, start) if tries else start
        position = max((i for i, size in enumerate(sizes) if size <= wanted), default=0)
        position = min(max(position, below + 1), above - 1)
        result = compiles(sizes[position])
        tries.append(result)
        if result.fits:
            below = position
        else:
            above = position
    return Largest(sizes[below] if below >= 0 else 0, above - below <= 1, tries, below == len(sizes) - 1)
