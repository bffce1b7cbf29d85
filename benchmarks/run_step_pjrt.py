"""Runs an exported training step on any PJRT device, with JAX alone: no TensorFlow.

    python run.py --mode=export_step --stage=pretrain --workdir=runs/step --batches=5
    .venv-plan/bin/python benchmarks/run_step_pjrt.py runs/step --device=cpu

Feeds the real batches that the export wrote (batches.npz; after the last one the first one again), starts from its
first values (initial.npz), and prints a record a step, as training would have written it to metrics.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "simclr_tf", "plan"))
import pjrt  # The one file of the package that needs neither TensorFlow nor the package.


def _load(folder: str) -> tuple[bytes, dict, dict, list[dict]]:
    wanted = ("step.hlo", "manifest.json", "initial.npz", "batches.npz")
    missing = [name for name in wanted if not os.path.exists(os.path.join(folder, name))]
    if missing:
        raise SystemExit(
            f"{folder} has no {', '.join(missing)}; make them: python run.py --mode=export_step --workdir={folder} ..."
        )
    with open(os.path.join(folder, "step.hlo"), "rb") as file:
        module = file.read()
    with open(os.path.join(folder, "manifest.json")) as file:
        manifest = json.load(file)
    with np.load(os.path.join(folder, "initial.npz")) as file:
        initial = dict(file)
    batches: dict[int, dict] = {}
    with np.load(os.path.join(folder, "batches.npz")) as file:
        for name in file.files:
            step, _, rest = name.partition("/")
            batches.setdefault(int(step), {})[rest] = file[name]
    return module, manifest, initial, [batches[i] for i in sorted(batches)]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="what --mode=export_step wrote")
    parser.add_argument("--device", default="", help="cpu, gpu, cuda, tpu; the best one there is without it")
    parser.add_argument("--steps", type=int, help="how many steps; as many as there are batches without it")
    parser.add_argument("--save", help="write the variables' last values to this .npz")
    options = parser.parse_args()
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps is {options.steps}; use a positive number")
    if options.device:
        os.environ["JAX_PLATFORMS"] = options.device
    module, manifest, initial, batches = _load(options.folder)

    started = time.perf_counter()
    step = pjrt.Step(module, manifest, initial)
    print(f"{', '.join(map(str, step.devices))}: compiled in {time.perf_counter() - started:.1f} s", file=sys.stderr)
    count = options.steps or len(batches)
    seconds = []
    for i in range(count):
        started = time.perf_counter()
        record = step.run(i, batches[i % len(batches)])
        seconds.append(time.perf_counter() - started)
        print(json.dumps({"step": i, **record}), flush=True)
    if count > 1:
        # The first step fills caches.
        median = float(np.median(seconds[1:]))
        images = manifest["per_replica_batch_size"] * manifest["replicas"]
        print(f"{1000 * median:.1f} ms a step (median), {images / median:.1f} images/s", file=sys.stderr)
    if options.save:
        np.savez(options.save, **step.state())


if __name__ == "__main__":
    main()
