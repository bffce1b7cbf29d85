"""`make demo`: the commands a user would type, one after the other, and a table of what came of them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time

from simclr_tf import records
from simclr_tf.errors import UserError
from simclr_tf.progress import duration


def _simclr(*arguments: str) -> None:
    print(f"\n$ simclr {shlex.join(arguments)}", flush=True)
    code = subprocess.call([sys.executable, "-m", "simclr_tf.cli", *arguments])
    if code:
        raise UserError(f"the demo stopped: simclr {shlex.join(arguments)} ended with exit code {code}")


def run(workdir: str) -> None:
    """Pretrains without labels, then compares the encoder with an untrained one by kNN and linear evaluation.

    Args:
      workdir: folder of the runs, one sub-folder each. What is finished there is not done again.
    """
    started = time.monotonic()
    pretrained, trained, untrained = (os.path.join(workdir, name) for name in ("pretrain", "linear", "untrained"))
    _simclr("--mode=pretrain", f"--workdir={pretrained}")
    _simclr("--mode=linear_eval", f"--init_from={pretrained}", f"--workdir={trained}")
    _simclr("--mode=linear_eval", f"--workdir={untrained}")
    for folder in (pretrained, untrained):
        _simclr("--mode=knn", f"--workdir={folder}")

    rows = []
    for name, encoder, linear in (("untrained", untrained, untrained), ("pretrained without labels", pretrained, trained)):
        knn = records.read_json(os.path.join(encoder, "knn.json"))["top_1"]
        top_1 = records.read_json(os.path.join(linear, records.RESULT))["evaluation"]["top_1"]
        rows.append(f"| {name:<26} | {100 * knn:>9.1f} % | {100 * top_1:>10.1f} % |")
    print(
        f"\nWhat the encoder knows of 1,000 test photographs in 10 classes (chance: 10 %), after {duration(time.monotonic() - started)}:\n\n"
        "| encoder                    | kNN top-1   | linear top-1 |\n"
        "| -------------------------- | ----------- | ------------ |\n" + "\n".join(rows) + f"\n\nAll runs are in {workdir}/."
    )
