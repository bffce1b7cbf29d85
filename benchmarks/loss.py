"""NT-Xent as a whole matrix and tile by tile: time and extra memory of one forward and backward pass.

    python benchmarks/loss.py                     # 256 to 4,096 images both ways, 32,768 in tiles
    python benchmarks/loss.py --images=2048 --queue=65536 --kinds=tiled --xla

Each row is a process of its own, so that its peak memory is its own; prints a Markdown table, medians of `--repeats`
passes after one to warm up, with their range.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from simclr_tf.losses.nt_xent import NtXentKeys, nt_xent

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import _common

PLAIN_UP_TO = 4096


def measure(images: int, dim: int, queue: int, kind: str, xla: bool, repeats: int) -> dict:
    """Runs the loss and its gradient in this process.

    Args:
      images: of the batch.
      dim: width of the projections.
      queue: keys of a full memory; 0 for none.
      kind: "plain" or "tiled".
      xla: whether to compile.
      repeats: passes that are timed.

    Returns:
      `seconds`, one per pass, `mib`, the peak above what was there before, and `loss`.
    """
    import numpy as np

    from simclr_tf.core.tf import tf

    rng = np.random.default_rng(0)

    def rows(count: int) -> tf.Tensor:
        return tf.math.l2_normalize(tf.constant(rng.normal(size=(count, dim)).astype(np.float32)), axis=1)

    views = rows(images), rows(images)
    keys = NtXentKeys(rows(images), rows(images), rows(queue), tf.constant(queue)) if queue else None

    @tf.function(jit_compile=xla)
    def run(view_1, view_2):
        with tf.GradientTape() as tape:
            tape.watch([view_1, view_2])
            contrast = nt_xent(view_1, view_2, temperature=0.1, keys=keys, kind=kind)
            loss = tf.reduce_mean(contrast.loss)
        metrics = [tf.reduce_mean(value) for value in contrast[1:]]
        return loss, tape.gradient(loss, [view_1, view_2]), metrics

    tf.matmul(views[0][:64], views[1][:64], transpose_b=True)  # Starts the threads.
    gpu = bool(tf.config.list_logical_devices("GPU"))
    if gpu:
        tf.config.experimental.reset_memory_stats("GPU:0")
        before = tf.config.experimental.get_memory_info("GPU:0")["current"] / 2**20
    else:
        before = _common.forget_peak()
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        loss = float(run(*views)[0])
        seconds.append(time.perf_counter() - start)
    peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20 if gpu else _common.peak()
    return {"seconds": seconds[1:] or seconds, "mib": peak - before, "loss": loss}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="*", default=[256, 1024, 4096, 32768])
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--queue", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=["plain", "tiled"])
    parser.add_argument("--xla", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.row:
        print(json.dumps(measure(**json.loads(chosen.row))))
        return
    print(
        f"{_common.machine()}; {chosen.dim} dimensions, queue of {chosen.queue}, {'XLA' if chosen.xla else 'no XLA'}\n"
    )
    print("| images | way | seconds (range) | extra memory, MiB | loss |\n| ---: | --- | --- | ---: | ---: |")
    for images in chosen.images:
        for kind in chosen.kinds:
            if kind == "plain" and images > PLAIN_UP_TO:
                continue
            repeats = chosen.repeats if images <= PLAIN_UP_TO else 1
            row = {"images": images, "dim": chosen.dim, "queue": chosen.queue, "kind": kind}
            row.update(xla=chosen.xla, repeats=repeats)
            command = [sys.executable, __file__, f"--row={json.dumps(row)}"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            times = found["seconds"]
            print(
                f"| {images:,} | {kind} | {statistics.median(times):.3g} ({min(times):.3g}-{max(times):.3g}) "
                f"| {found['mib']:.0f} | {found['loss']:.5f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
