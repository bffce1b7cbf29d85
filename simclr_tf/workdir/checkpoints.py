"""A run's checkpoints: saves them, finds the newest that is whole, restores it."""

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
# What TensorFlow raises if a checkpoint is truncated, overwritten or missing.
_UNREADABLE = (tf.errors.OpError, ValueError, AssertionError)
# TensorFlow writes NAME_temp/, moves its content to NAME.data-*, and writes NAME.index last.
_OWN_FILE = re.compile(r"step-(\d+)(\.index|\.data-\d{5}-of-\d{5}|_temp)")


def _steps(folder: str) -> list[int]:
    """Lists the steps of a folder's checkpoints, newest first, whether they can be read or not.

    The files themselves count. TensorFlow's list of them (the file `checkpoint`) can be missing or out of date.
    """
    try:
        names = tf.io.gfile.listdir(folder)
    except tf.errors.NotFoundError:
        return []
    # Buckets list folders with a trailing slash.
    matches = [_OWN_FILE.fullmatch(name.rstrip("/")) for name in names]
    return sorted({int(match[1]) for match in matches if match and match[2] == ".index"}, reverse=True)


def _prefix(folder: str, step: int) -> str:
    return os.path.join(folder, f"step-{step}")


def _damage(path: str) -> str | None:
    """Reads a whole checkpoint, which verifies its checksums; returns what is wrong with it, or None."""
    try:
        # `tf.train.load_checkpoint` does the same, but fails on some file systems.
        reader = tf.compat.v1.train.NewCheckpointReader(path)
        for name in sorted(reader.get_variable_to_shape_map()):  # In the order of the file.
            reader.get_tensor(name)
    except (*_UNREADABLE, IndexError) as error:  # IndexError: "read less bytes than requested".
        if is_passing(path, error):  # The checkpoint may be good, so it must not count as damaged and be deleted.
            raise StartAgain(f"{path} cannot be read now ({first_line(error)}); give the same command again") from None
        return first_line(error)
    return None


def _readable(folder: str) -> tuple[int | None, list[int]]:
    """Finds the newest checkpoint that can be read whole; warns of newer ones that cannot.

    Returns:
      Its step, or None if there are no checkpoints; and the steps of older ones.

    Raises:
      UserError: if there are checkpoints, but none can be read.
    """
    steps = _steps(folder)
    for number, step in enumerate(steps):
        damage = _damage(_prefix(folder, step))
        if damage is None:
            return step, steps[number + 1 :]
        logging.warning("skipping the checkpoint %s, which cannot be read: %s", _prefix(folder, step), damage)
    if steps:
        raise UserError(
            f"none of the {len(steps)} checkpoint(s) in {folder} can be read; use another --workdir to start anew, or "
            "restore the files"
        )
    return None, []


def exists(workdir: str) -> bool:
    """Whether a workdir has checkpoints, readable or not."""
    return bool(_steps(os.path.join(workdir, _FOLDER)))


def latest_step(workdir: str) -> int | None:
    """Returns the step of a workdir's newest checkpoint, readable or not; None if it has none."""
    return next(iter(_steps(os.path.join(workdir, _FOLDER))), None)


def newest(workdir: str) -> str | None:
    """Returns the path of a workdir's newest checkpoint that can be read whole; None if it has no checkpoints.

    Raises:
      UserError: if there are checkpoints, but none can be read.
    """
    folder = os.path.join(workdir, _FOLDER)
    step, _ = _readable(folder)
    return None if step is None else _prefix(folder, step)


class Checkpoints:
    """Saves and restores the checkpoints of a run."""

    def __init__(self, workdir: str, items: dict[str, tf.Module], *, keep: int, chief: bool = True):
        """Prepares to save to `workdir`/checkpoints.

        Args:
          workdir: folder of the run.
          items: objects to save, by name.
          keep: number of newest checkpoints to keep.
          chief: whether this process writes the checkpoints that are kept. All workers have to take part in saving, but
            the others' files are thrown away.
        """
        # `write` and `read`, unlike `save` and `restore`, leave out TensorFlow's count of saves. A checkpoint therefore
        # has the same bits however often its run was interrupted.
        self._checkpoint = tf.train.Checkpoint(**items)
        self._folder = os.path.join(workdir, _FOLDER)
        self._keep, self._chief = keep, chief
        self._good: list[int] = []

    def save(self, step: int) -> str:
        """Saves a checkpoint after `step` steps, then deletes all but the newest few.

        Returns:
          The checkpoint's path.

        Raises:
          UserError: if it cannot be written; earlier checkpoints are still there.
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
        """Writes the file in which `tf.train.latest_checkpoint` looks up the newest checkpoint."""
        lines = [f'model_checkpoint_path: "step-{steps[0]}"']
        lines += [f'all_model_checkpoint_paths: "step-{step}"' for step in reversed(steps)]
        write_text(os.path.join(self._folder, "checkpoint"), "\n".join(lines) + "\n")

    def _remove(self, steps: set[int] | None) -> None:
        """Removes the files of these steps; with None, of all checkpoints but the good ones, and half-written files."""
        try:
            names = [name.rstrip("/") for name in tf.io.gfile.listdir(self._folder)]
            # The index goes first: after a kill in between, the rest does not count as a checkpoint.
            for name in sorted(names, key=lambda name: not name.endswith(".index")):
                match = _OWN_FILE.fullmatch(name)
                if not match or (int(match[1]) in self._good if steps is None else int(match[1]) not in steps):
                    continue
                path = os.path.join(self._folder, name)
                tf.io.gfile.rmtree(path) if match[2] == "_temp" else tf.io.gfile.remove(path)
        except (OSError, tf.errors.OpError) as error:
            logging.warning("cannot remove old checkpoints in %s: %s", self._folder, first_line(error))

    def resume(self) -> str | None:
        """Restores the newest checkpoint that can be read whole; returns its path, or None if there are no checkpoints.

        Raises:
          UserError: if there are checkpoints, but none can be read, or the newest readable one is another run's.
            Nothing is overwritten then.
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
    """Returns a checkpoint object that holds each item at its path, such as "memory/queue"."""
    here: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    for path, item in items.items():
        name, _, rest = path.partition("/")
        if rest:
            below.setdefault(name, {})[rest] = item
        else:
            here[name] = item
    return tf.train.Checkpoint(**here, **{name: _tree(inside) for name, inside in below.items()})
