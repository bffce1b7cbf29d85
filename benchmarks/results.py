"""Does what the paper says hold here? Trains what is needed on CIFAR-10, and writes `docs/results.md`.

    python benchmarks/results.py --data_dir=DIR                    # all studies: many hours on two cores
    python benchmarks/results.py --data_dir=DIR --studies=memory   # one of them
    python benchmarks/results.py --write                           # the page and its plots again, from results/

A run that was taken before is looked up in `results/`, one that was stopped goes on, and the page is written after
each: it shows what there is so far. `results/STUDY/RUN/seedN.json` keeps the run's title and what the run and its k-NN
classifier said.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import _common, _results_page
from benchmarks._studies import STUDIES, Run, Shared, Study

RAW = _common.ROOT / "results"


def folder_name(title: str) -> str:
    """Returns a run's title as a folder's name: lower-case letters, digits and hyphens alone."""
    words = title.lower().replace("%", " percent ").replace("/", " of ")
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


# Where kept commands say that they trained.
_TOLD = Path("runs/results")


class Task(NamedTuple):
    """A run of a study with one seed."""

    study: str
    name: str
    run: Run
    seed: int

    @property
    def raw(self) -> Path:
        """Where its figures are kept."""
        return RAW / self.study / folder_name(self.name) / f"seed{self.seed}.json"

    def workdir(self, root: Path) -> Path:
        """Where it trains."""
        return root / self.study / folder_name(self.name) / f"seed{self.seed}"


def resolve(study: str, name: str) -> tuple[str, str, Run]:
    """Follows a run that studies share to the one that takes it."""
    run = STUDIES[study].runs[name]
    return resolve(*run) if isinstance(run, Shared) else (study, name, run)


def call(arguments: list[str]) -> None:
    """Calls the command line and passes its output on.

    Raises:
      SystemExit: where it fails.
    """
    print("$ simclr", *arguments, flush=True)
    done = subprocess.run([sys.executable, str(_common.ROOT / "run.py"), *arguments], check=False)
    if done.returncode:
        raise SystemExit(f"run.py {' '.join(arguments)} ended with {done.returncode}")


def sources(task: Task) -> dict[str, Task]:
    """The runs that a task starts from, by flag; where fewer seeds were trained of them, tasks share them."""
    found = {}
    for flag, source in task.run.sources.items():
        if not isinstance(source, str):
            study, name, run = resolve(*source)
            found[flag] = Task(study, name, run, task.seed % run.seeds)
    return found


def command(task: Task, root: Path, data_dir: str) -> list[str]:
    """Returns the arguments that train a task."""
    run = task.run
    params = [*run.params, f"train.seed={task.seed}", "train.board_images=0"]
    if run.subset:
        params.append(f"Data.subset_seed={task.seed}")
    return [
        *(
            f"--mode={run.mode}",
            f"--gin_file={run.recipe}",
            f"--workdir={task.workdir(root)}",
            f"--data_dir={data_dir}",
        ),
        *(f"--{flag}={source.workdir(root)}" for flag, source in sources(task).items()),
        *(f"--{flag}={source}" for flag, source in run.sources.items() if isinstance(source, str)),
        *(f"--gin_param={param}" for param in params),
    ]


def take(task: Task, root: Path, data_dir: str) -> None:
    """Takes a run, after those that it starts from; what is finished in its workdir is not trained again."""
    for source in sources(task).values():
        if not (source.workdir(root) / "result.json").exists():  # Figures alone do not start another run.
            take(source, root, data_dir)
    arguments = command(task, root, data_dir)
    workdir = task.workdir(root)
    call(arguments)
    # Without this machine's folders.
    kept = {
        "run": task.name,
        "command": ["simclr", *command(task, _TOLD, "DATA_DIR")],
        "result": json.loads((workdir / "result.json").read_text()),
    }
    if task.run.knn is not None:
        params = [f"--gin_param={setting}" for setting in task.run.knn]
        call(["--mode=knn", f"--workdir={workdir}", f"--data_dir={data_dir}", *params])
        kept["knn"] = json.loads((workdir / "knn.json").read_text())
        kept["knn"]["checkpoint"] = kept["knn"]["checkpoint"].replace(str(root), str(_TOLD), 1)
    kept["machine"] = _common.machine()
    task.raw.parent.mkdir(parents=True, exist_ok=True)
    unfinished = task.raw.with_suffix(".tmp")
    unfinished.write_text(json.dumps(kept, indent=1) + "\n")
    unfinished.replace(task.raw)


def tasks(names: list[str]) -> list[Task]:
    """All runs of studies; all of one seed first, so that an unfinished table compares like with like."""
    found = []
    for study in names:
        runs = [resolve(study, name) for name in STUDIES[study].runs]
        for seed in range(max(run.seeds for _, _, run in runs)):
            found += [Task(*run, seed) for run in runs if seed < run[-1].seeds]
    return found


def figures(name: str, study: Study) -> dict[str, list[dict]]:
    """Reads what is kept of a study: run -> what each seed said."""
    found = {}
    for run in study.runs:
        origin, original, _ = resolve(name, run)
        found[run] = [
            json.loads(path.read_text()) for path in sorted((RAW / origin / folder_name(original)).glob("seed*.json"))
        ]
    return found


def write() -> None:
    """Writes the page from all that is kept."""
    _results_page.write({name: figures(name, study) for name, study in STUDIES.items()})


def main() -> None:
    """Takes what is missing, and writes the page after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="folder in which tensorflow-datasets keeps CIFAR-10")
    parser.add_argument("--workdir", type=Path, default=_common.ROOT / "runs" / "results")
    parser.add_argument("--studies", default=",".join(STUDIES), help=f"of {', '.join(STUDIES)}, with commas")
    parser.add_argument("--write", action="store_true", help="train nothing, write the page")
    options = parser.parse_args()
    chosen = options.studies.split(",")
    unknown = set(chosen) - STUDIES.keys()
    if unknown:
        parser.error(f"--studies names {', '.join(sorted(unknown))}; choose of {', '.join(STUDIES)}")
    if not options.write:
        if options.data_dir is None:
            parser.error("--data_dir is missing: the folder in which tensorflow-datasets keeps CIFAR-10")
        for task in tasks(chosen):
            if not task.raw.exists():
                take(task, options.workdir, options.data_dir)
                write()
    write()


if __name__ == "__main__":
    main()
