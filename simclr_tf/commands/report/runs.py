"""Reads the files of runs for a report. A run may be of any stage, still going, and with or without labels."""

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
    """The files of one run.

    Attributes:
      name: A short name, different from those of the other runs.
      workdir: The run's folder.
      description: `architecture.json`.
      metrics: Name -> (steps [N], values [N], NaN for null), from `metrics.jsonl`.
      throughput: The same from `throughput.jsonl`.
      settings: Name -> value as text; see `saved_settings.parse`.
      planned_steps: The number of steps that the run is to take, None if unknown.
      result: `result.json`, None until the run ends.
      evaluation: `eval.json`, or None.
      knn: `knn.json`, or None.
      checkpoint: The path of the newest checkpoint, or None.
      seconds_since_record: The age of the last record in seconds, None without one.
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
        """The number of recorded steps."""
        return max([int(steps[-1]) + 1 for steps, _ in self.metrics.values() if len(steps)], default=0)

    def last(self, name: str) -> float | None:
        """Returns the last finite value of a metric, None if there is none."""
        values = self.metrics.get(name, (None, np.zeros(0)))[1]
        known = values[np.isfinite(values)]
        return float(known[-1]) if len(known) else None

    def setting(self, name: str, default: Any = None) -> Any:
        """Returns a setting as a plain value; see `saved_settings.value`."""
        return saved_settings.value(self.settings, name, default)


def find(workdir: str) -> list[str]:
    """Returns the workdirs that `--workdir` names: one, several separated by commas, or all in a folder.

    Raises:
      UserError: There is no run.
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
                f"--workdir={workdir}: there is no folder {path}; give the --workdir of a run, or several with commas "
                "between them"
            )
        inside = [os.path.join(path, name.rstrip("/")) for name in tf.io.gfile.listdir(path)]
        inside = [run for run in inside if tf.io.gfile.exists(os.path.join(run, records.ARCHITECTURE))]
        if not inside:
            raise UserError(
                f"--workdir={workdir}: {path} is not a run's folder and has none in it (no {records.ARCHITECTURE}); "
                "give the --workdir of a run that has begun"
            )
        found += sorted(inside, key=lambda run: (_modified(os.path.join(run, "config.gin")), run))
    return list(dict.fromkeys(path if "://" in path else os.path.normpath(path) for path in found))


def _modified(path: str) -> int:
    return tf.io.gfile.stat(path).mtime_nsec if tf.io.gfile.exists(path) else 0


def short_names(paths: list[str]) -> list[str]:
    """Names runs by the shortest ends of their paths that differ.

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
    """Reads the files of a run.

    Raises:
      UserError: `workdir` is not a run's, or a file in it cannot be read.
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
    for name in ("operative.gin", "config.gin"):  # A run writes operative.gin after its first step.
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
        raise UserError(f"{path} is not JSON ({error}); restore it, or move it away") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; restore it, or move it away")
    return value


def _columns(path: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads JSON lines with `step`; skips lines that a running process has half written or a crash has damaged."""
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
