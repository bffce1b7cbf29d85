"""Compiles every ImageNet row of SimCLRv2 for four TPUs and writes docs/planning.md: `make planning`.

Each row runs `--mode=plan` with its recipe on 128 replicas of a TPU with 32 images each. Where that does not fit,
blocks are recomputed; where that is not enough, 256 replicas take 16 images each. docs/planning.json keeps the answers
row by row, so a stopped run can continue. A row that was not compiled says so.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RESULTS, PAGE = os.path.join(ROOT, "docs", "planning.json"), os.path.join(ROOT, "docs", "planning.md")
BEGIN, END = "<!-- table: benchmarks/plan_table.py -->", "<!-- end of table -->"

# TPUs whose compiler counts copies into on-chip memory as traffic; see `copies_on_chip` in commands/plan/chips.py.
ESTIMATED = ("v4", "v5e", "v6e")

# Network, a file of gin/models -> name in the paper, smallest first.
with open(os.path.join(ROOT, "docs", "table1.json")) as _file:
    _PARAMETERS = {name: figures[0] for name, figures in json.load(_file)["rows"].items()}
ROWS = {
    name: re.sub(r"r(\d+)(_\dx)?(_sk)?", lambda m: f"R{m[1]} {(m[2] or '_1x')[1:]}{'+SK' if m[3] else ''}", name)
    for name in sorted(_PARAMETERS, key=_PARAMETERS.get)
}
# TPU -> its slices of 128 and of 256 replicas.
TPUS = {
    "v3": ("v3-128", "v3-256"),
    "v5e": ("v5e-128", "v5e-256"),
    "v4": ("v4-256", "v4-512"),
    "v6e": ("v6e-128", "v6e-256"),
}
# Slice of `TPUS` and further bindings, in the order in which they are tried.
ATTEMPTS = ((0, ()), (0, ("ResNet.remat = True",)), (1, ("ResNet.remat = True",)))


def load() -> dict[str, dict]:
    """Returns the known answers: "network/TPU" -> `plans` of the attempts, in order."""
    if not os.path.exists(RESULTS):
        return {}
    with open(RESULTS) as file:
        return json.load(file)


def keep(results: dict[str, dict]) -> None:
    """Writes the known answers."""
    with open(f"{RESULTS}.tmp", "w") as file:
        json.dump(results, file, indent=1, sort_keys=True)
        file.write("\n")
    os.replace(f"{RESULTS}.tmp", RESULTS)


def compute(network: str, tpu: str, workdir: str, prefix: list[str]) -> list[dict]:
    """Plans one row with the commands that a user would give; returns the attempts up to the first that fits."""
    attempts: list[dict] = []
    for slice_index, bindings in ATTEMPTS:
        folder = os.path.join(workdir, network, tpu)
        command = [
            *prefix,
            sys.executable,
            os.path.join(ROOT, "run.py"),
            "--mode=plan",
            "--nosearch",
            f"--workdir={folder}",
            "--gin_file=recipes/pretrain/imagenet",
            f"--gin_file=models/{network}",
            f"--topology={TPUS[tpu][slice_index]}",
            *(f"--gin_param={binding}" for binding in bindings),
        ]
        print(" ".join(command), flush=True)
        if subprocess.run(command, cwd=ROOT).returncode:
            raise SystemExit(f"{network} on {tpu} could not be planned")
        with open(os.path.join(folder, "plan.json")) as file:
            attempts += json.load(file)["plans"]
        if attempts[-1]["fits"]:
            break
    return attempts


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:.1f}"


def table(results: dict[str, dict]) -> str:
    """Returns the table of all rows, in Markdown."""
    lines = [
        "| net | TPU | slice | images per replica | fits | memory per replica, GB of | TFLOP, GB moved per step | "
        "step, ms (by) | hours, 800 epochs | chip-hours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for network, name in ROWS.items():
        for tpu in sorted(TPUS):
            attempts = results.get(f"{network}/{tpu}")
            if not attempts:
                lines.append(f"| {name} | {tpu} | {TPUS[tpu][0]} | 32 | not compiled yet | | | | | |")
                continue
            last, tried = attempts[-1], []
            for attempt in attempts[:-1]:
                needs = f"{_gb(attempt['needed_bytes'])} GB" if "needed_bytes" in attempt else "more"
                how = f"{attempt['per_replica_batch_size']} images" + (", recomputed" if attempt["remat"] else "")
                tried.append(f"{how}: no, needs {needs}")
            how = "yes" if last["fits"] else "no"
            if last["fits"] and last["remat"]:
                how = "yes, blocks recomputed"
            how += f" ({'; '.join(tried)})" if tried else ""
            start = f"| {name} | {tpu} | {last['topology']} | {last['per_replica_batch_size']} | {how} | "
            if not last["fits"]:
                needed = _gb(last["needed_bytes"]) if "needed_bytes" in last else "more"
                lines.append(start + f"{needed} of {_gb(last['memory_bytes_per_replica'])} | | | | |")
                continue
            bound = last["bound"]
            sign, surely = "≥", ""
            if bound["bound_by"] == "memory" and tpu in ESTIMATED:
                certain = max(bound["seconds"]["arithmetic"], bound["seconds"]["interconnect"])
                sign, surely = "≈", f" (≥ {bound['hours'] * certain / bound['step_seconds']:.1f})"
            lines.append(
                start + f"{_gb(last['memory']['total'])} of {_gb(last['memory_bytes_per_replica'])} | "
                f"{last['flops'] / 1e12:.2f}, {_gb(last['bytes_accessed'])} | "
                f"{sign} {1000 * bound['step_seconds']:.1f} ({bound['bound_by']}) | "
                f"{sign} {bound['hours']:.1f}{surely} | {sign} {bound['chip_hours']:.0f} |"
            )
    return "\n".join(lines)


def write_page(results: dict[str, dict]) -> None:
    """Replaces the table in docs/planning.md."""
    with open(PAGE) as file:
        before, rest = file.read().split(BEGIN)
    _, after = rest.split(END)
    done = sum(1 for network in ROWS for tpu in TPUS if f"{network}/{tpu}" in results)
    versions = sorted({json.dumps(plan["compiler"], sort_keys=True) for plans in results.values() for plan in plans})
    told = "; ".join(", ".join(f"{name} {version}" for name, version in json.loads(text).items()) for text in versions)
    counted = f"{done} of {len(ROWS) * len(TPUS)} rows compiled here, by {told}." if done else "No row is compiled yet."
    with open(PAGE, "w") as file:
        file.write(f"{before}{BEGIN}\n\n{counted}\n\n{table(results)}\n\n{END}{after}")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default=os.path.join(ROOT, "runs", "planning"), help="folder for compilations")
    parser.add_argument("--rows", default=",".join(ROWS), help="networks, separated by commas")
    parser.add_argument("--tpus", default=",".join(TPUS), help="TPUs, separated by commas")
    parser.add_argument("--again", action="store_true", help="compile rows that docs/planning.json has, too")
    parser.add_argument("--page_only", action="store_true", help="only write the page, from docs/planning.json")
    parser.add_argument("--prefix", default="", help="prefix of every compiling command, such as 'nice -n 10'")
    options = parser.parse_args()
    rows, tpus = options.rows.split(","), options.tpus.split(",")
    for unknown in [name for name in rows if name not in ROWS] + [name for name in tpus if name not in TPUS]:
        parser.error(f"{unknown} is not a row or TPU; choose from {', '.join((*ROWS, *TPUS))}")
    if not options.page_only:
        for network in rows:
            for tpu in tpus:
                row = f"{network}/{tpu}"
                if row in load() and not options.again:
                    continue
                found = compute(network, tpu, options.workdir, options.prefix.split())
                results = {**load(), row: found}  # Another process may have added rows meanwhile.
                keep(results)
                write_page(results)
    write_page(load())


if __name__ == "__main__":
    main()
