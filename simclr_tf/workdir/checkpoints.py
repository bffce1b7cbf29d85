"""Checkpoints: resume, else initialize from another run, else start from scratch; and what matched."""

from __future__ import annotations

import os
import re
import tempfile
from typing import Any

from absl import logging

from simclr_tf.core.errors import StartAgain, UserError, first_line
from simclr_tf.core.files import is_passing, refusal, write_text
from simclr_tf.core.tf import tf
from simclr_tf.distribute import cluster

_FOLDER = "checkpoints"
# What TensorFlow raises for a checkpoint that is cut off, overwritten or gone.
_UNREADABLE = (tf.errors.OpError, ValueError, AssertionError)


# TensorFlow writes NAME_temp/, moves it to NAME.data-*, and writes NAME.index at last.
_OWN_FILE = re.compile(r"step-(\d+)(\.index|\.data-\d{5}-of-\d{5}|_temp)")


def _steps(folder: str) -> list[int]:
    """The steps of the checkpoints in a folder, newest first, whatever their state.

    What lies there counts, not TensorFlow's list of it (the file `checkpoint`), which can be lost or older.
    """
    try:
        names = tf.io.gfile.listdir(folder)
    except tf.errors.NotFoundError:
        return []
    # A bucket gives folders' names with a slash.
    matches = [_OWN_FILE.fullmatch(name.rstrip("/")) for name in names]
    return sorted({int(match[1]) for match in matches if match and match[2] == ".index"}, reverse=True)


def _prefix(folder: str, step: int) -> str:
    return os.path.join(folder, f"step-{step}")


def _damage(path: str) -> str | None:
    """Reads a whole checkpoint, which verifies its checksums; returns what is wrong with it, None where nothing is."""
    try:
        # `tf.train.load_checkpoint` does the same, but not on every file system.
        reader = tf.compat.v1.train.NewCheckpointReader(path)
        for name in sorted(reader.get_variable_to_shape_map()):  # As they lie in the file.
            reader.get_tensor(name)
    except (*_UNREADABLE, IndexError) as error:  # IndexError: "read less bytes than requested".
        if is_passing(path, error):  # Nothing is wrong with it, and nothing may be deleted for it.
            raise StartAgain(f"{path} cannot be read now ({first_line(error)}); give the same command again") from None
        return first_line(error)
    return None


def _readable(folder: str) -> tuple[int | None, list[int]]:
    """Finds the newest checkpoint that is whole; warns of those that are passed over.

    Returns:
      Its step, None where there is none; and the steps of those that are older.
    """
    steps = _steps(folder)
    for number, step in enumerate(steps):
        damage = _damage(_prefix(folder, step))
        if damage is None:
            return step, steps[number + 1 :]
        logging.warning("passing over the checkpoint %s, which cannot be read: %s", _prefix(folder, step), damage)
    if steps:
        raise UserError(
            f"none of the {len(steps)} checkpoint(s) in {folder} can be read; use another --workdir to start anew, or "
            "restore the files"
        )
    return None, []


def exists(workdir: str) -> bool:
    """Whether a workdir has checkpoints, whatever their state."""
    return bool(_steps(os.path.join(workdir, _FOLDER)))


def latest_step(workdir: str) -> int | None:
    """Returns the step of a workdir's newest checkpoint, whatever its state; None where it has none."""
    return next(iter(_steps(os.path.join(workdir, _FOLDER))), None)


def newest(workdir: str) -> str | None:
    """Returns the newest checkpoint of a workdir that is whole, None where it has none.

    Raises:
      UserError: where there are checkpoints, but none can be read.
    """
    folder = os.path.join(workdir, _FOLDER)
    step, _ = _readable(folder)
    return None if step is None else _prefix(folder, step)


class Checkpoints:
    """A run's own checkpoints."""

    def __init__(self, workdir: str, items: dict[str, tf.Module], *, keep: int, chief: bool = True):
        """Looks after `workdir`/checkpoints.

        Args:
          workdir: folder of the run.
          items: what to save, by name.
          keep: how many of the newest to keep.
          chief: whether this process's files are the ones that count. Saving is a collective act of all workers, but
            what the others write is thrown away.
        """
        # `write` and `read` leave out TensorFlow's count of saves, so that a checkpoint does not tell how often its run
        # was interrupted.
        self._checkpoint = tf.train.Checkpoint(**items)
        self._folder = os.path.join(workdir, _FOLDER)
        self._keep, self._chief = keep, chief
        self._good: list[int] = []

    def save(self, step: int) -> str:
        """Saves everything as of `step` steps taken, then deletes what is older than the newest few.

        Returns:
          The checkpoint's path.

        Raises:
          UserError: where it cannot be written; the checkpoints before it are still there.
        """
        if not self._chief:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    return self._checkpoint.write(os.path.join(folder, "step"))
                except (OSError, tf.errors.OpError) as error:
                    if isinstance(error, cluster.LOST_HOST):
                        raise
                    raise UserError(f"{folder} cannot be written ({first_line(error)}); make room there") from None
        path = _prefix(self._folder, step)
        if step in self._good:
            return path
        try:
            tf.io.gfile.makedirs(self._folder)
            self._checkpoint.write(path)
            good = sorted({*self._good, step}, reverse=True)[: self._keep]
            self._write_list(good)
        except (OSError, tf.errors.OpError) as error:
            self._remove({step})
            kept = f"the checkpoint of step {max(self._good)} is kept" if self._good else "there was none before"
            raise refusal(path, error)(
                f"the checkpoint {path} cannot be written ({first_line(error)}); {kept}: make room or restore the "
                "access, and give the same command again"
            ) from None
        self._good = good
        self._remove(None)
        return path

    def _write_list(self, steps: list[int]) -> None:
        """Writes the file by which `tf.train.latest_checkpoint` finds the newest checkpoint."""
        lines = [f'model_checkpoint_path: "step-{steps[0]}"']
        lines += [f'all_model_checkpoint_paths: "step-{step}"' for step in reversed(steps)]
        write_text(os.path.join(self._folder, "checkpoint"), "\n".join(lines) + "\n")

    def _remove(self, steps: set[int] | None) -> None:
        """Removes the files of some steps, or (None) of all not to be kept: older, unreadable or half-written."""
        try:
            names = [name.rstrip("/") for name in tf.io.gfile.listdir(self._folder)]
            # The index goes first: what has none is no checkpoint.
            for name in sorted(names, key=lambda name: not name.endswith(".index")):
                match = _OWN_FILE.fullmatch(name)
                if not match or (int(match[1]) in self._good if steps is None else int(match[1]) not in steps):
                    continue
                path = os.path.join(self._folder, name)
                tf.io.gfile.rmtree(path) if match[2] == "_temp" else tf.io.gfile.remove(path)
        except (OSError, tf.errors.OpError) as error:
            logging.warning("cannot remove old checkpoints in %s: %s", self._folder, first_line(error))

    def resume(self) -> str | None:
        """Restores the newest checkpoint that is whole; returns its path, or None where there is none.

        Raises:
          UserError: when there are checkpoints, but none of them can be read, or the newest that can is of another run;
            nothing is overwritten then.
        """
        step, older = _readable(self._folder)
        if step is None:
            return None
        path = _prefix(self._folder, step)
        try:
            self._checkpoint.read(path).assert_consumed()
        except _UNREADABLE as error:
            if is_passing(path, error):
                raise
            raise UserError(
                f"the checkpoint {path} does not fit this run ({first_line(error)}); use another --workdir, or the "
                "settings of the run that wrote it (see its config.gin)"
            ) from None
        self._good = [step, *older]
        return path


def _tree(items: dict[str, Any]) -> tf.train.Checkpoint:
    """Returns an object that has each item at its path."""
    here: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    for path, item in items.items():
        name, _, rest = path.partition("/")
        if rest:
            below.setdefault(name, {})[rest] = item
        else:
            here[name] = item
    return tf.train.Checkpoint(**here, **{name: _tree(inside) for name, inside in below.items()})
