"""Seconds from the command to the first step of the embedded recipe, beside an earlier version of this project.

    python benchmarks/startup.py --against=baf2bcd --rounds=5

Versions run in turn with the same Python, each in a workdir of its own that is thrown away; a run is ended as soon as
it prints its first step. The earlier version is taken from git into a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import _common

_FIRST_STEP = re.compile(r"^pretrain: \d+/\d+ steps")


def first_step(folder: Path) -> float:
    """Starts the embedded recipe of the version in a folder; returns the seconds until it prints a step.

    Raises:
      SystemExit: where it ends before that.
    """
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "run.py", "--mode=pretrain", f"--workdir={workdir}/run"]
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ}
        )
        lines = []
        try:
            for line in process.stdout:
                lines.append(line)
                if _FIRST_STEP.match(line):
                    return time.perf_counter() - start
        finally:
            process.kill()
            process.wait()
    raise SystemExit(f"{folder} took no step:\n{''.join(lines[-5:])}")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="commit of an earlier version")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(_common.machine(), flush=True)
    with tempfile.TemporaryDirectory() as earlier:
        runs = {"now": lambda: first_step(_common.ROOT)}
        if options.against:
            archive = subprocess.run(
                ["git", "archive", options.against], cwd=_common.ROOT, check=True, stdout=subprocess.PIPE
            ).stdout
            subprocess.run(["tar", "-x", "-C", earlier], input=archive, check=True)
            runs[options.against] = lambda: first_step(Path(earlier))
        seconds = _common.in_turn(runs, options.rounds)
    rows = [
        (name, _common.spread(found), _common.spread(_common.ratios(found, seconds["now"]), 2))
        for name, found in seconds.items()
    ]
    print(_common.table(("version", "seconds to the first step", "times now"), rows))


if __name__ == "__main__":
    main()
