"""Runs an exported training step on any PJRT device, with JAX alone: no TensorFlow.

    python run.py --mode=export_step --stage=pretrain --workdir=runs/step --batches=5
    .venv-plan/bin/python benchmarks/run_step_pjrt.py runs/step --device=cpu

Feeds the real batches that the export wrote (batches.npz; after the last one the first one again), starts from its
first values (initial.npz), and prints a record a step, as training would have written it to metrics.jsonl.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
import zipfile

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "simclr_tf", "commands", "plan"))
import pjrt  # The one file of the package that needs neither TensorFlow nor the package.


def _load(folder: str) -> tuple[bytes, dict, dict, list[dict]]:
    wanted = ("step.hlo", "manifest.json", "initial.npz", "batches.npz")
    missing = [name for name in wanted if not os.path.exists(os.path.join(folder, name))]
    if missing:
        raise SystemExit(
            f"{folder} has no {', '.join(missing)}; make them: python run.py --mode=export_step --workdir={folder} ..."
        )
    again = f"write it again: python run.py --mode=export_step --workdir={folder} ..."
    try:
        with open(os.path.join(folder, "step.hlo"), "rb") as file:
            module = file.read()
        with open(os.path.join(folder, "manifest.json")) as file:
            manifest = json.load(file)
        arrays = []
        for name in ("initial.npz", "batches.npz"):
            with np.load(os.path.join(folder, name)) as file:
                arrays.append(dict(file))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise SystemExit(f"{folder} cannot be read ({str(error).splitlines()[0]}); {again}") from None
    # An export that was stopped half-way leaves files of two.
    sha256 = hashlib.sha256(module).hexdigest()
    of = {
        "manifest.json": manifest.get("hlo_sha256"),
        **{n: str(a.pop("hlo_sha256", "")) for n, a in zip(wanted[2:], arrays)},
    }
    others = [name for name, found in of.items() if found != sha256]
    if others:
        raise SystemExit(f"{folder}: {', '.join(others)} does not belong to this step.hlo; {again}")
    batches: dict[int, dict] = {}
    for name, value in arrays[1].items():
        step, _, rest = name.partition("/")
        batches.setdefault(int(step), {})[rest] = value
    return module, manifest, arrays[0], [batches[i] for i in sorted(batches)]


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
    if options.save and not os.path.isdir(os.path.dirname(os.path.abspath(options.save))):
        parser.error(f"--save={options.save}: there is no such folder")
    if options.device:
        os.environ["JAX_PLATFORMS"] = options.device
    module, manifest, initial, batches = _load(options.folder)

    started = time.perf_counter()
    try:
        step = pjrt.Step(module, manifest, initial)
    except ImportError as error:
        raise SystemExit(
            f"{error}; run this with a Python that has JAX, such as that of `make plan-env`: .venv-plan/bin/python"
        ) from None
    except (RuntimeError, ValueError) as error:
        raise SystemExit(f"the step cannot run here ({str(error).splitlines()[0]}); try another --device") from None
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
