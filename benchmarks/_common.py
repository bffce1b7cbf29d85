"""What the benchmarks share: the machine in words, runs in turn, medians with ranges, Markdown tables."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


def machine() -> str:
    """Describes processor, system and versions in a line."""
    model, flags = platform.processor() or platform.machine(), ""
    try:
        with open("/proc/cpuinfo") as file:
            lines = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
        fields = {name.strip(): value.strip() for name, value in lines.items()}
        model = fields.get("model name", model)
        found = [
            flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in fields.get("flags", "").split()
        ]
        flags = f" ({', '.join(found)})"
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f"load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    python = f"Python {platform.python_version()}"
    processor = "1 core" if cores == 1 else f"{cores} cores"
    return f"{processor} of {model}{flags}, {platform.system()}, {python}, TensorFlow {version('tensorflow')}, {load}"


def version(package: str) -> str:
    """Returns an installed package's version, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def timed(function: Callable[[], object]) -> float:
    """Returns the seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def forget_peak() -> float:
    """Lets `peak` count from now on; returns the MiB of memory that this process holds (Linux)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _status("VmRSS")


def peak() -> float:
    """Returns the most MiB of memory that this process held since `forget_peak`."""
    return _status("VmHWM")


def _status(name: str) -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024


def in_turn(runs: dict[str, Callable[[], float]], rounds: int, *, warm_up: int = 1) -> dict[str, list[float]]:
    """Calls each run once a round, so that a change of the machine's mood falls on all.

    Args:
      runs: name -> what does the work and returns its own measure.
      rounds: that count.
      warm_up: rounds before them, whose measures are thrown away.

    Returns:
      Name -> measures, one for each round.
    """
    measures: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(warm_up + rounds):
        for name, run in runs.items():
            measure = run()
            if i >= warm_up:
                measures[name].append(measure)
    return measures


def spread(values: Iterable[float], digits: int = 1) -> str:
    """Formats measures as "median (least-greatest)"."""
    values = sorted(values)
    return f"{statistics.median(values):.{digits}f} ({values[0]:.{digits}f}-{values[-1]:.{digits}f})"


def ratios(slower: Sequence[float], quicker: Sequence[float]) -> list[float]:
    """Returns each round's quotient of two runs' seconds."""
    return [one / other for one, other in zip(slower, quicker)]


# With a unit, and with an interval after it.
_NUMBER = re.compile(r"\d[\d.,]*( ?[%A-Za-z]+)?( [±(].*)?")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Formats a Markdown table; numbers stand right."""
    lines = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(header, *lines)]
    numeric = [all(_NUMBER.fullmatch(line[i]) or line[i] in ("", "-") for line in lines) for i in range(len(header))]

    def join(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(cells, widths, numeric)]
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (w + 1) + (":" if right else "-") for w, right in zip(widths, numeric))
    return "\n".join([join(header), f"|{rule}|", *map(join, lines)])
