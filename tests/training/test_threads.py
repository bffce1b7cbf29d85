"""Numbers of threads that this machine does not have: some of oneDNN's gradients go wrong at certain ones alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHILD = ROOT / "tests" / "support" / "stages_on_threads.py"


def run(threads: int, *arguments: str) -> None:
    paths = os.pathsep.join([str(ROOT), str(CHILD.parent)])
    env = {**os.environ, "PYTHONPATH": paths, "TF_NUM_INTRAOP_THREADS": str(threads), "TF_ENABLE_ONEDNN_OPTS": "1"}
    done = subprocess.run([sys.executable, str(CHILD), *arguments], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [3, 6, 8, 12, 16])
def test_the_demos_stages(threads, tmp_path):
    run(threads, str(tmp_path))


@pytest.mark.slow
def test_odd_batches(tmp_path):
    """25 examples over 8 threads; an export whose last batch has 13."""
    run(8, str(tmp_path), "--extras")
