"""Finds the largest batch that fits in few tries, since each try is a compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Try(NamedTuple):
    """One compilation.

    Attributes:
      batch_size: The batch size.
      fits: Whether the step fits in memory.
      needed_bytes: The memory that it needs; None if the compiler does not say.
    """

    batch_size: int
    fits: bool
    needed_bytes: int | None


class Largest(NamedTuple):
    """The result of a search.

    Attributes:
      batch_size: The largest batch that fits; 0 if none does.
      exact: Whether the next size was tried and does not fit, or `limit` is reached.
      tries: All compilations, in order.
      at_limit: Whether the batch is as large as the search may go.
    """

    batch_size: int
    exact: bool
    tries: list[Try]
    at_limit: bool = False


def _sizes(limit: int) -> list[int]:
    """Returns the sizes to try: 1, 2, 4, then multiples of 8, because TPUs lay out arrays in eights."""
    return [size for size in (1, 2, 4) if size <= limit] + list(range(8, limit + 1, 8))


def _guess(tries: list[Try], available_bytes: int, start: int) -> float:
    """Guesses the batch that fills the memory, assuming linear growth; doubles or halves if too little is known."""
    known = sorted({one.batch_size: one.needed_bytes for one in tries if one.needed_bytes is not None}.items())
    if len(known) >= 2:
        # The two tries closest to the limit.
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
    """Searches for the largest batch that fits.

    Args:
      compiles: Function that tries a size.
      start: The first size to try; it must be possible.
      limit: The largest size of interest.
      available_bytes: The approximate memory available.
      possible: Function that says whether a step can have a size.
      max_tries: The maximum number of compilations.

    Returns:
      The largest size that was tried and fits, with all tries.
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
