"""The most memory of a pretraining step on the CPU, beside a stand-in for the published one.

    python benchmarks/memory.py                      # ResNet-18, CIFAR stem, 256 images: 512 views
    python benchmarks/memory.py --images=1024 --repeats=1

Each measurement is a process of its own: it builds a step, notes what it holds, takes three steps and reports how much
more it held at most. Variables, optimizer and TensorFlow itself are in what it held before; activations, gradients and
workspaces of oneDNN in what came on top. Prints a Markdown table, medians with their range.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import _common

# Name -> precision and options of `step.Ours`; None for the stand-in.
WAYS = {
    "published, stand-in": None,
    "float32": {"precision": "float32"},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, recomputed blocks": {"precision": "bfloat16", "remat": True},
    "bfloat16, micro-batches of an eighth": {"precision": "bfloat16", "micro_batch_size": 8},
}


def measure(way: str, options: argparse.Namespace) -> float:
    """Takes steps in this process; returns the MiB above what was held before the first."""
    import numpy as np

    from benchmarks import _published, step
    from simclr_tf.core.tf import tf

    settings = WAYS[way]
    if settings is None:
        batch = step.noise(options.images, options.size)
        views = tf.constant(np.concatenate([batch["view_1"], batch["view_2"]]).astype(np.float32) / 255)
        labels = tf.constant(batch["label"])
        published = _published.Step(options.depth, options.size, options.images, width=options.width)

        def run():
            return published.run(views, labels).numpy()
    else:
        settings = dict(settings)
        if "micro_batch_size" in settings:
            settings["micro_batch_size"] = options.images // settings["micro_batch_size"]
        run = step.Ours(settings.pop("precision"), options, **settings).run
    before = _common.forget_peak()
    for _ in range(3):
        run()
    return _common.peak() - before


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256, help="images of a step, a multiple of 8")
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--depth", type=int, default=18, choices=(18, 34))
    parser.add_argument("--width", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--xla", action="store_true", help="compile our step with XLA")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options)))
        return
    print(
        f"{_common.machine()}\nResNet-{options.depth}, width {options.width}, {options.size} pixels, "
        f"{options.images} images ({2 * options.images} views)",
        flush=True,
    )
    mib: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        for way, found in mib.items():
            command = [sys.executable, __file__, *sys.argv[1:], f"--way={way}"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    usual = statistics.median(mib["published, stand-in"])
    rows = [(way, _common.spread(found, 0), f"{statistics.median(found) / usual:.2f}") for way, found in mib.items()]
    print(_common.table(("step", "MiB above the start", "times the published"), rows))


if __name__ == "__main__":
    main()
