"""What the memory is worth at equal steps: CIFAR-10, two batch sizes, with and without, three seeds.

    python benchmarks/memory_ablation.py --data_dir=DIR --workdir=runs/memory_ablation

Each of the twelve runs is `--mode=pretrain` of recipes/pretrain/cifar10_small_memory, then `--mode=knn`. A run that was
taken before is looked up, one that was stopped goes on; the table in docs/memory.md holds what there is so far.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAGE = os.path.join(ROOT, "docs", "memory.md")
BEGIN, END = "<!-- table: benchmarks/memory_ablation.py -->", "<!-- end of table -->"
RECIPE = "recipes/pretrain/cifar10_small_memory"


def run(arguments: list[str]) -> None:
    """Calls the command line and passes its output on.

    Raises:
      SystemExit: where it fails.
    """
    done = subprocess.run([sys.executable, os.path.join(ROOT, "run.py"), *arguments], check=False)
    if done.returncode:
        raise SystemExit(f"run.py {' '.join(arguments)} ended with {done.returncode}")


def one(chosen: argparse.Namespace, batch: int, memory: bool, seed: int) -> dict:
    """Takes a run or looks it up; returns `probe` and `knn`, top-1 in [0, 1], and `seconds`."""
    workdir = os.path.join(chosen.workdir, f"batch{batch}_{'memory' if memory else 'plain'}_seed{seed}")
    paths = {name: os.path.join(workdir, f"{name}.json") for name in ("result", "knn")}
    where = [f"--workdir={workdir}", f"--data_dir={chosen.data_dir}"]
    if not os.path.exists(paths["result"]):
        settings = [f"BATCH_SIZE={batch}", f"train.steps={chosen.steps}", f"train.seed={seed}"]
        settings += [] if memory else ["Pretrain.make_memory=None"]
        run(["--mode=pretrain", f"--gin_file={RECIPE}", *(f"--gin_param={setting}" for setting in settings), *where])
    if not os.path.exists(paths["knn"]):
        run(["--mode=knn", "--gin_param=Data.train_split='train[:10000]'", "--gin_param=knn.num_neighbors=20", *where])
    found = {}
    for name, path in paths.items():
        with open(path) as file:
            found[name] = json.load(file)
    result = found["result"]
    return {"probe": result["evaluation"]["top_1"], "knn": found["knn"]["top_1"], "seconds": result["seconds"]}


def table(rows: dict[tuple[int, bool], list[dict]], steps: int) -> str:
    """Returns the rows as Markdown: mean and range over the seeds."""

    def show(values: list[float]) -> str:
        low, high = min(values), max(values)
        return f"{100 * statistics.mean(values):.1f} ({100 * low:.1f}-{100 * high:.1f})"

    lines = ["| batch | memory | seeds | k-NN, % | linear probe, % | seconds |"]
    lines.append("| ---: | --- | ---: | --- | --- | ---: |")
    for (batch, memory), found in rows.items():
        knn, probe, seconds = ([row[name] for row in found] for name in ("knn", "probe", "seconds"))
        lines.append(
            f"| {batch} | {'yes' if memory else 'no'} | {len(found)} | {show(knn)} | {show(probe)} "
            f"| {statistics.median(seconds):.0f} |"
        )
    note = f"{steps} steps each, on {os.cpu_count()} CPU cores, Python {platform.python_version()}; mean and range."
    return "\n".join([*lines, "", note])


def write(text: str) -> None:
    """Puts the table into the page, between its marks."""
    with open(PAGE) as file:
        before, rest = file.read().split(BEGIN)
    after = rest.split(END)[1]
    with open(f"{PAGE}.tmp", "w") as file:
        file.write(f"{before}{BEGIN}\n{text}\n{END}{after}")
    os.replace(f"{PAGE}.tmp", PAGE)


def main() -> None:
    """Takes what is missing and writes the table after each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--workdir", default=os.path.join(ROOT, "runs", "memory_ablation"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batches", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    rows: dict[tuple[int, bool], list[dict]] = {}
    for seed in range(chosen.seeds):  # All of one seed first, so that an unfinished table compares like with like.
        for batch in chosen.batches:
            for memory in (False, True):
                rows.setdefault((batch, memory), []).append(one(chosen, batch, memory, seed))
                write(table(rows, chosen.steps))
    print(table(rows, chosen.steps))


if __name__ == "__main__":
    main()
