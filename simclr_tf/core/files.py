"""Files that are written completely or not at all, and errors of file systems in one line."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from typing import Any

from simclr_tf.core.errors import StartAgain, UserError, first_line
from simclr_tf.core.tf import tf

# Errors of a bucket or network that is away for a while. TensorFlow has retried before it raises them.
PASSING = (
    tf.errors.AbortedError,
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.ResourceExhaustedError,
)


def refusal(path: str, error: Exception) -> type[UserError]:
    """Returns the exception class for a failed write: `StartAgain` where a remote file system may be back soon."""
    return StartAgain if is_passing(path, error) else UserError


def is_passing(path: str, error: Exception) -> bool:
    """Whether a remote file system failed in a way that may pass soon."""
    return "://" in path and isinstance(error, PASSING)


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
    """Turns an error of the file system inside the block (disk full, bucket lost, no rights) into one line."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        raise refusal(path, error)(
            f"{path} cannot be written ({first_line(error)}); make room or restore the access, and give the same "
            "command again: a training run goes on from its last checkpoint"
        ) from None


def write_text(path: str, text: str) -> None:
    """Writes a file under another name and renames it, so that nobody ever reads half a file, even after a crash.

    Raises:
      UserError: where the file system refuses.
    """
    write_bytes(path, text.encode())


def write_bytes(path: str, content: bytes) -> None:
    """Writes bytes as `write_text` writes text."""
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


def write_json(path: str, value: Any) -> None:
    """Writes an indented JSON file; see `write_text`."""
    write_text(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


def read_json(path: str) -> Any:
    """Reads a JSON file."""
    with tf.io.gfile.GFile(path) as file:
        return json.load(file)


def json_line(record: dict[str, Any]) -> str:
    """Returns one line of strict JSON, in which numbers that are not finite become null."""
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(clean) + "\n"


def read_lines(path: str) -> list[dict[str, Any]]:
    """Reads a file of JSON records with a `step`, skipping lines that a kill cut off; empty without a file."""
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
