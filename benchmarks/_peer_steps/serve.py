"""What a measured process does: builds a step, says that it is ready, and takes a step for each line that it reads."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable


def options() -> argparse.Namespace:
    """Reads what to build from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--depth", type=int, required=True)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), required=True)
    return parser.parse_args()


def serve(step: Callable[[], float], versions: str) -> None:
    """Answers each line of standard input with the seconds of a step; `step` returns its loss once it is done."""
    print(json.dumps({"ready": versions}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        loss = step()
        print(json.dumps({"seconds": time.perf_counter() - start, "loss": loss}), flush=True)
