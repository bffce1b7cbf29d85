"""Looks for convolutions that die or compute something else: forward and both gradients, each case in its own process.

    python benchmarks/convolution_sweep.py --samples=4 --onednn=1
    python benchmarks/convolution_sweep.py --samples=4 --onednn=1 --python=.venv312/bin/python --isa=AVX2
    python benchmarks/convolution_sweep.py --control --onednn=1    # strided 1x1 kernels as TensorFlow has them
    python benchmarks/convolution_sweep.py --table

The shapes are those that the project's networks ask for at `WIDTHS` of their width. Each is tried in float32 and
bfloat16, `--samples` times, every time with a batch size and a number of intra-op threads drawn by lot from the case's
own name: more samples go on where fewer ended. A process that waits with TensorFlow imported forks for every case, with
glibc's checks of the heap switched on; values are compared with float64 sums. What was tried is kept in runs/ and not
tried again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "runs" / "convolution_sweep"
SHAPES = LOGS / "shapes.json"

WIDTHS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
# Other depths have these blocks more often, and other stems the same ones on smaller maps.
NETWORKS = (
    {"depth": 18, "se_ratio": 1 / 16, "stem": "cifar"},
    {"depth": 50, "stem": "cifar"},
    {"depth": 50, "sk_ratio": 1 / 16, "stem": "cifar"},
)
STEMS = ({"depth": 18}, {"depth": 50, "sk_ratio": 1 / 16})
PIXELS = 32
BATCHES = (*range(1, 34), 64, 128, 250)
THREADS = range(1, 33)
MOST_FLOPS = 5e8
# Relative to the norm. TensorFlow's own kernels sum in bfloat16 itself and lose up to all of a long sum.
TOLERANCE = {"float32": 1e-4, "bfloat16": 1.0}
# For one case.
PATIENCE_S = 120


class Case(NamedTuple):
    """One convolution."""

    kernel: int
    stride: int
    channels: int
    filters: int
    size: int
    dtype: str
    batch: int
    threads: int
    control: bool


def shapes() -> list[tuple[int, ...]]:
    """Returns kernel, stride, channels in and out, and the map's size of every convolution of the networks offered.

    Leaves this process's networks maimed.
    """
    from simclr_tf.core.tf import tf
    from simclr_tf.models import blocks, convolution, resnet

    found = set()
    convolve = convolution.convolve

    def note(inputs, kernel, *, strides=1):
        found.add((kernel.shape[0], strides, inputs.shape[3], kernel.shape[3], inputs.shape[1]))
        return convolve(inputs, kernel, strides=strides)

    def without_norm(layer, inputs, training=False):
        return layer.conv(inputs)

    convolution.convolve, blocks.ConvNorm.call = note, without_norm  # Norms change no shape.
    for depth, (block, expansion, _) in resnet.DEPTHS.items():
        resnet.DEPTHS[depth] = block, expansion, (2, 2, 2, 2)  # Further blocks are like the second.
    with tf.Graph().as_default():
        images = tf.zeros([1, PIXELS, PIXELS, 3])
        for width in WIDTHS:
            for network in NETWORKS:
                resnet.ResNet(**network, width=width)(images)
            for network in STEMS:
                maps = images
                for layer in resnet.ResNet(**network, width=width).stem:
                    maps = layer(maps)
    return sorted(found)


def cases(samples: int, control: bool) -> Iterator[Case]:
    """Yields `samples` cases of each shape and type, a round of all shapes after the other."""
    for sample in range(samples):
        found = json.loads(SHAPES.read_text())
        random.Random(sample).shuffle(found)  # A run that is stopped early has seen some of every kind.
        for shape in found:
            kernel, stride, channels, filters, size = shape
            if control and (kernel > 1 or stride == 1):
                continue
            flops = 2 * kernel**2 * channels * filters * (-(-size // stride)) ** 2
            batches = [batch for batch in BATCHES if batch * flops <= MOST_FLOPS] or [1, 3]
            for dtype in TOLERANCE:
                lot = random.Random(f"{shape} {dtype} {sample}")
                yield Case(*shape, dtype, lot.choice(batches), lot.choice(THREADS), control)


def expected(x, kernel, upstream, stride: int):
    """Returns outputs and both gradients, summed in float64, one place of the kernel after the other."""
    import numpy as np

    k, size = kernel.shape[0], upstream.shape[1]
    before = (k - 1) // 2
    around = (before, k - 1 - before)
    padded = np.pad(x, [(0, 0), around, around, (0, 0)])
    outputs, to_padded, to_kernel = np.zeros(upstream.shape), np.zeros(padded.shape), np.zeros(kernel.shape)
    for i in range(k):
        for j in range(k):
            reached = (slice(None), *(slice(at, at + stride * (size - 1) + 1, stride) for at in (i, j)))
            outputs += padded[reached] @ kernel[i, j]
            to_kernel[i, j] = np.tensordot(padded[reached], upstream, [(0, 1, 2)] * 2)
            to_padded[reached] += upstream @ kernel[i, j].T
    end = before + x.shape[1]
    return outputs, to_padded[:, before:end, before:end], to_kernel


def compute(case: Case) -> float:
    """Computes a case as the project does, in and out of its training loop; returns the greatest relative error."""
    import numpy as np

    from simclr_tf.core.tf import tf
    from simclr_tf.models.convolution import convolve, cpu_kernel_gradients

    tf.config.threading.set_intra_op_parallelism_threads(case.threads)
    rng = np.random.default_rng(0)
    size = -(-case.size // case.stride)
    extents = (
        (case.batch, case.size, case.size, case.channels),
        (case.kernel, case.kernel, case.channels, case.filters),
        (case.batch, size, size, case.filters),
    )
    operands = [tf.cast(rng.normal(size=extent), case.dtype) for extent in extents]
    exact = expected(*(tf.cast(value, tf.float64).numpy() for value in operands), case.stride)
    worst = 0.0
    for own in (False,) if case.control else (False, True):

        @tf.function(autograph=False)
        def run(x, kernel, upstream, own=own):
            with cpu_kernel_gradients(own), tf.GradientTape() as tape:
                tape.watch([x, kernel])
                if case.control:
                    outputs = tf.nn.conv2d(x, kernel, case.stride, "VALID")
                else:
                    outputs = convolve(x, kernel, strides=case.stride)
            return outputs, *tape.gradient(outputs, [x, kernel], output_gradients=upstream)

        for _ in range(2):  # What the first one spoiled the second one meets.
            for actual, right in zip(run(*operands), exact):
                error = np.linalg.norm(tf.cast(actual, tf.float64).numpy() - right) / max(np.linalg.norm(right), 1e-9)
                worst = max(worst, float(error) if np.isfinite(error) else float("inf"))
    return worst


def judge(case: Case) -> str:
    """Returns "ok", "wrong: ERROR", "hung", or what the case's process died of."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=lambda: sender.send(compute(case)))
    process.start()
    sender.close()
    error = float("nan")
    if receiver.poll(PATIENCE_S):
        with contextlib.suppress(EOFError):
            error = receiver.recv()
        process.join(PATIENCE_S)
    if process.exitcode is None:
        process.kill()
        process.join()
        return "hung"
    if process.exitcode:
        return signal.Signals(-process.exitcode).name if process.exitcode < 0 else f"exit code {process.exitcode}"
    return "ok" if error <= TOLERANCE[case.dtype] else f"wrong: {error:.2g}"


def sweep(log: Path, samples: int, control: bool, seconds: float) -> None:
    """Tries what the log lacks, for so many seconds at most."""
    done = {tuple(entry[:-1]) for entry in read(log)}
    wanted = [case for case in cases(samples, control) if tuple(case) not in done]
    end = time.monotonic() + seconds
    with open(log, "a") as file:
        for i, case in enumerate(wanted):
            if time.monotonic() > end:
                print(f"{len(wanted) - i} cases are left; the same command goes on")
                return
            outcome = judge(case)
            file.write(json.dumps([*case, outcome]) + "\n")
            file.flush()
            if outcome != "ok":
                print(f"{outcome}: {case}", flush=True)
    print("all cases were tried")


def read(log: Path) -> list[list]:
    """Returns what was tried: a case's values and what came of it."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def table() -> str:
    """Sums up every log as Markdown."""
    from benchmarks import _common

    rows = []
    for log in sorted(LOGS.glob("*.jsonl")):
        tf_version, onednn, isa = log.stem.split("_")
        groups: dict[tuple, Counter] = {}
        for *values, outcome in read(log):
            case = Case(*values)
            way = "as TensorFlow has it" if case.control else "the project's"
            kind = f"{case.kernel}x{case.kernel}, stride {case.stride}"
            groups.setdefault((kind, way, case.dtype), Counter())[outcome.split(":")[0]] += 1
        for group, outcomes in sorted(groups.items()):
            bad = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()) if name != "ok") or "none"
            rows.append((tf_version, onednn, isa, *group, sum(outcomes.values()), bad))
    return _common.table(("TensorFlow", "oneDNN", "up to", "kernel", "way", "type", "cases", "faults"), rows)


def prepare(options: argparse.Namespace) -> None:
    """Starts again with the environment asked for, which TensorFlow and glibc read at their start."""
    wanted = {
        "TF_ENABLE_ONEDNN_OPTS": options.onednn,
        "ONEDNN_MAX_CPU_ISA": options.isa,
        "LD_PRELOAD": "libc_malloc_debug.so.0",  # Where glibc is 2.34 or newer its checks are in a library apart.
        "MALLOC_CHECK_": "3",
        "MALLOC_PERTURB_": "165",
        "CUDA_VISIBLE_DEVICES": "-1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    if os.environ.get("MALLOC_CHECK_") == "3":
        return
    if not SHAPES.exists():
        LOGS.mkdir(parents=True, exist_ok=True)
        SHAPES.write_text(json.dumps(shapes()))
    os.execve(options.python, [options.python, *sys.argv], {**os.environ, **wanted})


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1, help="cases of each shape and type")
    parser.add_argument("--control", action="store_true", help="strided 1x1 kernels as TensorFlow has them")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these")
    parser.add_argument("--python", default=sys.executable, help="of another TensorFlow")
    parser.add_argument("--onednn", choices=("0", "1"), default="1", help="TF_ENABLE_ONEDNN_OPTS")
    parser.add_argument("--isa", default="ALL", help="ONEDNN_MAX_CPU_ISA, such as AVX2")
    parser.add_argument("--table", action="store_true", help="print what was found and try nothing")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if not options.table:
        prepare(options)
        from simclr_tf.core.tf import tf

        name = f"{tf.__version__}_{'on' if options.onednn == '1' else 'off'}_{options.isa}.jsonl"
        sweep(LOGS / name, options.samples, options.control, options.seconds)
    print(table())


if __name__ == "__main__":
    main()
