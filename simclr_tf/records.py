"""What a run writes down: metrics.jsonl, throughput.jsonl, result.json, TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator
from typing import Any

from simclr_tf import summaries
from simclr_tf.errors import StartAgain, UserError, first_line
from simclr_tf.stack import tf

METRICS, THROUGHPUT, RESULT, ARCHITECTURE = "metrics.jsonl", "throughput.jsonl", "result.json", "architecture.json"


# What a bucket answers, after TensorFlow's own retries, when it or the network is away for a while.
PASSING = (
    tf.errors.AbortedError,
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.ResourceExhaustedError,
)


def refusal(path: str, error: Exception) -> type[UserError]:
    """Returns what a failed write is to be raised as: `StartAgain` where a remote file system may be back soon."""
    return StartAgain if is_passing(path, error) else UserError


def is_passing(path: str, error: Exception) -> bool:
    """Whether a remote file system failed in a way that may be over soon."""
    return "://" in path and isinstance(error, PASSING)


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
    """Tells what the file system refuses within it (a full disk, a lost bucket, no rights) in one line."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        raise refusal(path, error)(
            f"{path} cannot be written ({first_line(error)}); make room or restore the access, and give the same "
            "command again: a training run goes on from its last checkpoint"
        ) from None


def board_writer(folder: str, **settings) -> tf.summary.SummaryWriter:
    """Opens a file of TensorBoard's.

    Where each flush uploads the whole file again, as to a bucket, many events make one.
    """
    if "://" in folder:
        # Half an hour at most: a thousand times more, in the microseconds that TensorFlow counts, is no int32.
        settings.update(max_queue=2**30, flush_millis=2_000_000)
    return tf.summary.create_file_writer(folder, **settings)


def write_text(path: str, text: str) -> None:
    """Writes a file aside and renames it, so that no reader and no crash ever sees half of it.

    Raises:
      UserError: where the file system refuses.
    """
    write_bytes(path, text.encode())


def write_bytes(path: str, content: bytes) -> None:
    """Writes any file as `write_text` does."""
    aside = f"{path}.{os.getpid()}.tmp"
    with writing(path):
        try:
            with tf.io.gfile.GFile(aside, "wb") as file:
                file.write(content)
            tf.io.gfile.rename(aside, path, overwrite=True)
        except tf.errors.OpError:
            with contextlib.suppress(tf.errors.OpError):
                tf.io.gfile.remove(aside)
            raise


_LEFTOVER = re.compile(r".*\.(json|jsonl|gin|png|html|txt|tsv|pbtxt)\.\d+\.tmp|checkpoint\.\d+\.tmp|\.writable\.\d+")


def remove_leftovers(workdir: str) -> None:
    """Removes what killed processes left half-written aside; for the one process that may write here."""
    for folder in (workdir, os.path.join(workdir, "checkpoints"), os.path.join(workdir, "tensorboard")):
        with contextlib.suppress(tf.errors.OpError):
            for name in tf.io.gfile.listdir(folder):
                if _LEFTOVER.fullmatch(name):
                    tf.io.gfile.remove(os.path.join(folder, name))


def set_aside_result(workdir: str, steps: int) -> None:
    """Renames the result of a run that goes on after its first length, so that it is not taken for the whole run's."""
    path = os.path.join(workdir, RESULT)
    with writing(workdir):
        if tf.io.gfile.exists(path):
            tf.io.gfile.rename(path, os.path.join(workdir, f"result.{steps}_steps.json"), overwrite=True)


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


def read_lines(path: str) -> list[dict[str, Any]]:
    """Reads a file of JSON lines, without what a kill cut off; empty where there is no file."""
    if not tf.io.gfile.exists(path):
        return []
    with tf.io.gfile.GFile(path, "rb") as file:
        lines = file.read().decode(errors="replace").splitlines()
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows


class Records:
    """A run's records in its workdir.

    `metrics.jsonl` holds what the seed determines, each recorded step once, also after a restart; what depends on the
    machine and the hour (images per second, waiting) goes to `throughput.jsonl`.
    """

    def __init__(self, workdir: str, *, first_step: int, num_steps: int, every_steps: int, constants: dict[str, float]):
        """Opens the records to continue at `first_step`; what was recorded of it and later steps is dropped.

        Args:
          workdir: folder of the run.
          first_step: the next step's number.
          num_steps: of the whole run; the last one is always recorded.
          every_steps: records steps whose number divides by this.
          constants: added to every record of metrics.

        Raises:
          UserError: where the file system refuses; `add`, `flush` and `close` likewise.
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
        """Records consecutive steps and how fast they went."""
        last = first_step + len(records) - 1
        with writing(self._workdir):
            for step, record in enumerate(records, start=first_step):
                if step % self._every_steps == 0 or step == self._last_step:
                    self._lines[METRICS].append(json_line({"step": step, **record, **self._constants}))
                    self._waiting += [(name, value, step) for name, value in record.items()]
            self._lines[THROUGHPUT].append(json_line({"step": last, **throughput}))
            self._waiting += [(f"throughput/{name}", value, last) for name, value in throughput.items()]
            if "://" not in self._workdir:
                self._hand_on()

    def _hand_on(self) -> None:
        """Gives the files and TensorBoard what waits for them; a remote file is uploaded whole each time."""
        for name, lines in self._lines.items():
            self._files[name].write("".join(lines))
            lines.clear()
        with self._board.as_default():
            for name, value, step in self._waiting:
                summaries.scalar(name, value, step=step)
        self._waiting = []

    def last(self) -> dict[str, float]:
        """Returns the run's last record, without the constants; to be called after its last step."""
        row = read_lines(os.path.join(self._workdir, METRICS))[-1]
        return {name: value for name, value in row.items() if name != "step" and name not in self._constants}

    def total(self, name: str) -> float:
        """Returns the sum of a number of `throughput.jsonl` over the whole run, interruptions and all."""
        return float(sum(row.get(name, 0.0) for row in read_lines(os.path.join(self._workdir, THROUGHPUT))))

    def flush(self) -> None:
        """Brings everything to disk; called before a checkpoint, which must never be ahead of its records."""
        with writing(self._workdir):
            self._hand_on()
            for file in self._files.values():
                file.flush()
            self._board.flush()

    def close(self, *, write: bool = True) -> None:
        """Closes the files; with `write` off without what waits, as they are another run's by now."""
        with writing(self._workdir):
            if write:
                self._hand_on()
            for file in self._files.values():
                file.close()
            self._board.close()
