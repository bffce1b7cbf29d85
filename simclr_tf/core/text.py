"""Numbers as people read them."""

from __future__ import annotations


def magnitude(number: float) -> str:
    """Formats a large number with a unit: 23.5M, 4.1G."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:g}"


def duration(seconds: float) -> str:
    """Formats a number of seconds: 42s, 5m10s, 3h25m."""
    seconds = int(round(seconds))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
