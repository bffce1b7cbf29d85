"""The records of a run: metrics.jsonl, throughput.jsonl, result.json, TensorBoard."""

from __future__ import annotations

import contextlib
import os
import re

from simclr_tf.core.files import json_line, read_lines, write_text, writing
from simclr_tf.core.tf import tf
from simclr_tf.workdir import tensorboard
from simclr_tf.workdir.tensorboard import board_writer

METRICS, THROUGHPUT, RESULT, ARCHITECTURE = "metrics.jsonl", "throughput.jsonl", "result.json", "architecture.json"
_LEFTOVER = re.compile(r".*\.(json|jsonl|gin|png|html|txt|tsv|pbtxt)\.\d+\.tmp|checkpoint\.\d+\.tmp|\.writable\.\d+")


def remove_leftovers(workdir: str) -> None:
    """Removes temporary files of killed processes; only for the process that holds the workdir's lock."""
    for folder in (workdir, os.path.join(workdir, "checkpoints"), os.path.join(workdir, "tensorboard")):
        with contextlib.suppress(tf.errors.OpError):
            for name in tf.io.gfile.listdir(folder):
                if _LEFTOVER.fullmatch(name):
                    tf.io.gfile.remove(os.path.join(folder, name))


def set_aside_result(workdir: str, steps: int) -> None:
    """Renames the result of a run that gets longer, so that it is not mistaken for the longer run's."""
    path = os.path.join(workdir, RESULT)
    with writing(workdir):
        if tf.io.gfile.exists(path):
            tf.io.gfile.rename(path, os.path.join(workdir, f"result.{steps}_steps.json"), overwrite=True)


class Records:
    """Writes a run's records to its workdir.

    `metrics.jsonl` holds values that the seed determines, each recorded step once, even after a restart. Values that
    depend on the machine and the hour (images per second, waiting) go to `throughput.jsonl`.
    """

    def __init__(self, workdir: str, *, first_step: int, num_steps: int, every_steps: int, constants: dict[str, float]):
        """Opens the records to continue at `first_step`; drops earlier records of this and later steps.

        Args:
          workdir: folder of the run.
          first_step: number of the next step.
          num_steps: number of steps of the whole run; the last one is always recorded.
          every_steps: interval of the recorded steps.
          constants: values to add to every record of the metrics.

        Raises:
          UserError: if the files cannot be written; `add`, `flush` and `close` likewise.
        """
        self._workdir, self._every_steps, self._constants = workdir, every_steps, constants
        self._last_step = num_steps - 1
        self._files = {name: self._reopen(os.path.join(workdir, name), first_step) for name in (METRICS, THROUGHPUT)}
        with writing(os.path.join(workdir, "tensorboard")):
            self._board = board_writer(os.path.join(workdir, "tensorboard"))
        self._waiting: list[tuple[str, float, int]] = []
        self._lines: dict[str, list[str]] = {name: [] for name in self._files}

    @staticmethod
    def _reopen(path: str, first_step: int) -> tf.io.gfile.GFile:
        kept = [row for row in read_lines(path) if row["step"] < first_step]
        write_text(path, "".join(map(json_line, kept)))
        return tf.io.gfile.GFile(path, "a")

    def add(self, first_step: int, records: list[dict[str, float]], throughput: dict[str, float]) -> None:
        """Records consecutive steps and their speed."""
        last = first_step + len(records) - 1
        with writing(self._workdir):
            for step, record in enumerate(records, start=first_step):
                if step % self._every_steps == 0 or step == self._last_step:
                    self._lines[METRICS].append(json_line({"step": step, **record, **self._constants}))
                    self._waiting += [(name, value, step) for name, value in record.items()]
            self._lines[THROUGHPUT].append(json_line({"step": last, **throughput}))
            self._waiting += [(f"throughput/{name}", value, last) for name, value in throughput.items()]
            if "://" not in self._workdir:
                self._write_waiting()

    def _write_waiting(self) -> None:
        """Writes waiting records to the files and to TensorBoard; each flush of a remote file uploads all of it."""
        for name, lines in self._lines.items():
            self._files[name].write("".join(lines))
            lines.clear()
        with self._board.as_default():
            for name, value, step in self._waiting:
                tensorboard.scalar(name, value, step=step)
        self._waiting = []

    def last(self) -> dict[str, float]:
        """Returns the run's last record without the constants; call this after the last step."""
        row = read_lines(os.path.join(self._workdir, METRICS))[-1]
        return {name: value for name, value in row.items() if name != "step" and name not in self._constants}

    def total(self, name: str) -> float:
        """Returns the sum of a value of `throughput.jsonl` over the whole run, with all its interruptions."""
        return float(sum(row.get(name, 0.0) for row in read_lines(os.path.join(self._workdir, THROUGHPUT))))

    def flush(self) -> None:
        """Writes everything to disk; called before each checkpoint, which must never be ahead of the records."""
        with writing(self._workdir):
            self._write_waiting()
            for file in self._files.values():
                file.flush()
            self._board.flush()

    def close(self, *, write: bool = True) -> None:
        """Closes the files; with `write` off, drops waiting records, because the files belong to another run by now."""
        with writing(self._workdir):
            if write:
                self._write_waiting()
            for file in self._files.values():
                file.close()
            self._board.close()
