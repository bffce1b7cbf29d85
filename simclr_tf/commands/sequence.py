"""`--mode=all`: runs the paper's three stages one after the other and prints a table of the results."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable

from simclr_tf.core.errors import UsageError, UserError
from simclr_tf.core.files import read_json
from simclr_tf.core.text import magnitude
from simclr_tf.distribute import preemption
from simclr_tf.settings import gin_config
from simclr_tf.workdir import records

STAGES = ("pretrain", "finetune", "distill")
# Configurables that only one stage has: their bindings need no `STAGE:` prefix.
_OWNERS = {"Pretrain": "pretrain", "Memory": "pretrain", "Supervised": "finetune", "Distill": "distill"}


def run_command(*arguments: str) -> None:
    """Prints a `simclr` command and runs it in its own process.

    Raises:
      UserError: The command failed; its own message is already on the screen.
    """
    print(f"\n$ simclr {shlex.join(arguments)}", flush=True)
    # The child must import this package, whatever the current folder is.
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "simclr_tf.cli", *arguments]
    code = preemption.call(command, {**os.environ, "PYTHONPATH": paths})
    if code:
        raise UserError(
            f"the last command ended with exit code {code}; fix what it reported, and run the same command again",
            exit_code=code if code > 0 else 128 - code,  # A negative code is a signal; shells report 128 + signal.
        )


def for_stage(values: Iterable[str], stage: str) -> list[str]:
    """Selects a stage's values: `STAGE:VALUE` is for that stage alone, any other value for all stages.

    Raises:
      UsageError: A prefix looks like a stage but is not one.
    """
    picked = []
    for value in values:
        prefix, colon, rest = value.partition(":")
        if colon and prefix.isidentifier() and "=" not in prefix and not rest.startswith("//"):
            if prefix not in STAGES:
                raise UsageError(f"{value!r} is for a stage {prefix!r}, but --mode=all has {', '.join(STAGES)}")
            if prefix == stage:
                picked.append(rest)
        else:
            picked.append(value)
    return picked


def params_for_stage(params: Iterable[str], stage: str) -> list[str]:
    """Selects bindings like `for_stage`, without those of configurables that only another stage has."""
    return [
        param
        for param in for_stage(params, stage)
        if _OWNERS.get(param.partition("=")[0].split("/")[-1].partition(".")[0].strip(), stage) == stage
    ]


def run_all(workdir: str, *, gin_files: list[str], gin_params: list[str], others: list[str]) -> None:
    """Pretrains, fine-tunes on the labeled subset and distills, each in a subfolder; skips finished stages.

    Args:
      workdir: The folder of the three runs.
      gin_files: Files for every stage, or `STAGE:FILE` for one stage.
      gin_params: Bindings for every stage, or `STAGE:BINDING` for one stage.
      others: Flags for every stage.
    """
    folders = {stage: os.path.join(workdir, stage) for stage in STAGES}
    starts = {
        "pretrain": [],
        "finetune": [f"--init_from={folders['pretrain']}"],
        "distill": [f"--teacher={folders['finetune']}"],
    }
    settings = {
        stage: [
            *(f"--gin_file={value}" for value in for_stage(gin_files, stage)),
            *(f"--gin_param={value}" for value in params_for_stage(gin_params, stage)),
        ]
        for stage in STAGES
    }
    for stage in STAGES:  # Find a misspelled setting of the last stage now, not after days of training.
        gin_config.parse(stage, for_stage(gin_files, stage), params_for_stage(gin_params, stage))
    for stage in STAGES:
        run_command(f"--mode={stage}", f"--workdir={folders[stage]}", *starts[stage], *settings[stage], *others)
    print(f"\n{table([(stage, folders[stage]) for stage in STAGES])}\n\nAll runs are in {workdir}/.")


def table(rows: list[tuple[str, str]]) -> str:
    """Formats finished runs side by side.

    Args:
      rows: The name and workdir of each run.

    Returns:
      A Markdown table of top-1 accuracy, encoder parameters, and images per second in training.
    """
    lines = [("run", "top-1", "encoder", "images/s in training"), ("---", "---:", "---:", "---:")]
    for name, workdir in rows:
        result = read_json(os.path.join(workdir, records.RESULT))
        top_1 = result.get("evaluation", {}).get("top_1")
        lines.append(
            (
                name,
                "no labels" if top_1 is None else f"{100 * top_1:.1f} %",
                magnitude(result["encoder_parameters"]),
                f"{result['images_per_second']:,.0f}",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines[1] = tuple(rule)
    cells = [
        [line[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(line[1:], widths[1:]))] for line in lines
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
