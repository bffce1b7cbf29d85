"""What a run writes down: metrics.jsonl, throughput.jsonl, result.json, TensorBoard."""

from __future__ import annotations

import json
import math
import os
from typing import Any

from simclr_tf.stack import tf

METRICS, THROUGHPUT, RESULT, ARCHITECTURE = "metrics.jsonl", "throughput.jsonl", "result.json", "architecture.json"


def write_text(path: str, text: str) -> None:
    """Writes a file aside and renames it, so that no reader and no crash ever sees half of it."""
    aside = f"{path}.{os.getpid()}.tmp"
    with tf.io.gfile.GFile(aside, "w") as file:
        file.write(text)
    tf.io.gfile.rename(aside, path, overwrite=True)


def write_json(path: str, value: Any) -> None:
    """Writes a JSON file, readable by people; see `write_text`."""
    write_text(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


def read_json(path: str) -> Any:
    """Reads a JSON file."""
    with tf.io.gfile.GFile(path) as file:
        return json.load(file)


def json_line(record: dict[str, Any]) -> str:
    """One line of strict JSON: a number that is not finite becomes null."""
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(clean) + "\n"


class Records:
    """A run's records in its workdir.

    `metrics.jsonl` holds what the seed determines, each recorded step once, also after a restart; what depends on the
    machine and the hour (images per second, waiting) goes to `throughput.jsonl`.
    """

    def __init__(self, workdir: str, *, first_step: int, every_steps: int, constants: dict[str, float]):
        """Opens the records to continue at `first_step`; what was recorded of it and later steps is dropped.

        Args:
          workdir: folder of the run.
          first_step: the next step's number.
          every_steps: records steps whose number divides by this.
          constants: added to every record of metrics.
        """
        self._every_steps, self._constants = every_steps, constants
        self._metrics = self._reopen(os.path.join(workdir, METRICS), first_step)
        self._throughput = self._reopen(os.path.join(workdir, THROUGHPUT), first_step)
        self._board = tf.summary.create_file_writer(os.path.join(workdir, "tensorboard"))

    @staticmethod
    def _reopen(path: str, first_step: int) -> tf.io.gfile.GFile:
        kept = []
        if tf.io.gfile.exists(path):
            with tf.io.gfile.GFile(path) as file:
                for line in file:
                    try:
                        keep = json.loads(line)["step"] < first_step
                    except (ValueError, KeyError, TypeError):  # Cut off by a kill; its step will be taken again.
                        keep = False
                    if keep:
                        kept.append(line)
            write_text(path, "".join(kept))
        return tf.io.gfile.GFile(path, "a")

    def add(self, first_step: int, records: list[dict[str, float]], throughput: dict[str, float]) -> None:
        """Records consecutive steps and how fast they went."""
        with self._board.as_default():
            for step, record in enumerate(records, start=first_step):
                if step % self._every_steps == 0:
                    self._metrics.write(json_line({"step": step, **record, **self._constants}))
                    for name, value in record.items():
                        tf.summary.scalar(name, value, step=step)
            last = first_step + len(records) - 1
            self._throughput.write(json_line({"step": last, **throughput}))
            for name, value in throughput.items():
                tf.summary.scalar(f"throughput/{name}", value, step=last)

    def flush(self) -> None:
        """Brings everything to disk; called before a checkpoint, which must never be ahead of its records."""
        self._metrics.flush()
        self._throughput.flush()
        self._board.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        self.flush()
        self._metrics.close()
        self._throughput.close()
        self._board.close()
