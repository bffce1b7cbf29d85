"""What lies in workdirs, read for a report. A run may still be going, of any stage, with or without labels."""

from __future__ import annotations

import json
import os
import time
from typing import Any, NamedTuple

import numpy as np

from simclr_tf.commands.report import saved_settings
from simclr_tf.core.errors import UserError
from simclr_tf.core.files import read_json
from simclr_tf.core.tf import tf
from simclr_tf.workdir import checkpoints, records
from simclr_tf.workdir.networks import read_architecture


class Run(NamedTuple):
    """One run's records.

    Attributes:
      name: short, unlike the other runs'.
      workdir: its folder.
      description: `architecture.json`.
      metrics: name -> (steps [N], values [N] with nan where there is none), from `metrics.jsonl`.
      throughput: the same from `throughput.jsonl`.
      settings: name -> value as text; see `settings.parse`.
      planned_steps: how many steps the run is to have, None where it is not known.
      result: `result.json`, None while the run goes on.
      evaluation: `eval.json`, or None.
      knn: `knn.json`, or None.
      checkpoint: path of the newest, or None.
      seconds_since_record: age of the last record, None without one.
    """

    name: str
    workdir: str
    description: dict
    metrics: dict[str, tuple[np.ndarray, np.ndarray]]
    throughput: dict[str, tuple[np.ndarray, np.ndarray]]
    settings: dict[str, str]
    planned_steps: int | None
    result: dict | None
    evaluation: dict | None
    knn: dict | None
    checkpoint: str | None
    seconds_since_record: float | None

    @property
    def steps(self) -> int:
        """How many steps are recorded."""
        return max([int(steps[-1]) + 1 for steps, _ in self.metrics.values() if len(steps)], default=0)

    def last(self, name: str) -> float | None:
        """The last value of a metric, None where it was never recorded."""
        values = self.metrics.get(name, (None, np.zeros(0)))[1]
        known = values[np.isfinite(values)]
        return float(known[-1]) if len(known) else None

    def setting(self, name: str, default: Any = None) -> Any:
        """A setting as a plain value; see `settings.value`."""
        return saved_settings.value(self.settings, name, default)


def find(workdir: str) -> list[str]:
    """Returns the workdirs that a flag names: one, several with commas between them, or a folder of them.

    Raises:
      UserError: where there is no run.
    """
    if tf.io.gfile.isdir(workdir):
        given = [workdir]
    else:
        given = [path for path in workdir.split(",") if path]
    found: list[str] = []
    for path in given:
        if tf.io.gfile.exists(os.path.join(path, records.ARCHITECTURE)):
            found.append(path)
            continue
        if not tf.io.gfile.isdir(path):
            raise UserError(
                f"--workdir={workdir}: there is no folder {path}; give the --workdir of a run, or several with commas"
            )
        inside = [os.path.join(path, name.rstrip("/")) for name in tf.io.gfile.listdir(path)]
        inside = [run for run in inside if tf.io.gfile.exists(os.path.join(run, records.ARCHITECTURE))]
        if not inside:
            raise UserError(
                f"--workdir={workdir}: {path} is no run's folder and has none in it (no {records.ARCHITECTURE}); "
                "give the --workdir of a run that has begun"
            )
        found += sorted(inside, key=lambda run: (_modified(os.path.join(run, "config.gin")), run))
    unlike = list(dict.fromkeys(os.path.normpath(path) if "://" not in path else path for path in found))
    return unlike


def _modified(path: str) -> int:
    return tf.io.gfile.stat(path).mtime_nsec if tf.io.gfile.exists(path) else 0


def short_names(paths: list[str]) -> list[str]:
    """Names runs by the last parts of their paths that tell them apart.

    >>> short_names(["/runs/a/pretrain", "/runs/b/pretrain"])
    ['a/pretrain', 'b/pretrain']
    """
    parts = [path.rstrip("/").split("/") for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-count:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return paths


def read(workdir: str, name: str) -> Run:
    """Reads a run.

    Raises:
      UserError: where `workdir` is no run's, or a file in it cannot be understood.
    """
    description = read_architecture(workdir, "--workdir")
    metrics_path = os.path.join(workdir, records.METRICS)
    age = None
    if tf.io.gfile.exists(metrics_path):
        age = max(0.0, time.time() - tf.io.gfile.stat(metrics_path).mtime_nsec / 1e9)
    return Run(
        name=name,
        workdir=workdir,
        description=description,
        metrics=_columns(metrics_path),
        throughput=_columns(os.path.join(workdir, records.THROUGHPUT)),
        settings=_settings(workdir),
        planned_steps=(_json(workdir, "run.json") or {}).get("steps"),
        result=_json(workdir, records.RESULT),
        evaluation=_json(workdir, "eval.json"),
        knn=_json(workdir, "knn.json"),
        checkpoint=checkpoints.newest(workdir),
        seconds_since_record=age,
    )


def _settings(workdir: str) -> dict[str, str]:
    for name in ("operative.gin", "config.gin"):  # The first is written after a run's first step.
        path = os.path.join(workdir, name)
        if tf.io.gfile.exists(path):
            with tf.io.gfile.GFile(path) as file:
                return saved_settings.parse(file.read())
    return {}


def _json(workdir: str, name: str) -> dict | None:
    path = os.path.join(workdir, name)
    if not tf.io.gfile.exists(path):
        return None
    try:
        value = read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); restore it, or move it away") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; restore it, or move it away")
    return value


def _columns(path: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads JSON lines with `step`; what a run that goes on has written half, or a crash has spoilt, is left out."""
    rows = []
    if tf.io.gfile.exists(path):
        with tf.io.gfile.GFile(path) as file:
            for line in file:
                try:
                    row = json.loads(line)
                    rows.append((int(row.pop("step")), {k: v for k, v in row.items() if _is_number(v) or v is None}))
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue
    columns: dict[str, tuple[list[int], list[float]]] = {}
    for step, row in rows:
        for name, value in row.items():
            steps, values = columns.setdefault(name, ([], []))
            steps.append(step)
            values.append(float("nan") if value is None else float(value))
    return {name: (np.array(steps), np.array(values)) for name, (steps, values) in columns.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
