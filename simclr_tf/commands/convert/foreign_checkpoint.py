"""Finds and reads a foreign checkpoint, given by any kind of path to it."""

from __future__ import annotations

import os
import re

import numpy as np

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf

# TensorFlow's exceptions for a checkpoint that is cut off, overwritten, gone, or in another format.
_UNREADABLE = (tf.errors.OpError, ValueError, RuntimeError, IndexError)
_INDEX = ".index"
# Subfolders that hold a published checkpoint beside, or instead of, a training checkpoint.
_FOLDERS = ("variables", "saved_model", "hub")


class Source:
    """The variables of a checkpoint: reads shapes at once, values one by one.

    Attributes:
      path: The checkpoint's file prefix.
      shapes: Key -> shape.
    """

    def __init__(self, path: str):
        """Opens a checkpoint.

        Args:
          path: A file prefix, one of its files, or a folder with a checkpoint, a SavedModel or a TF1 hub module.

        Raises:
          UserError: There is no checkpoint, or it is unreadable or empty.
        """
        self.path = _find(path)
        try:
            self._reader = tf.train.load_checkpoint(self.path)
            self.shapes: dict[str, tuple[int, ...]] = {
                key: tuple(shape) for key, shape in self._reader.get_variable_to_shape_map().items()
            }
            self._dtypes = self._reader.get_variable_to_dtype_map()
        except _UNREADABLE as error:
            raise UserError(
                f"the checkpoint {self.path} cannot be read ({_first_line(error)}); copy it again"
            ) from None
        if not self.shapes:
            raise UserError(f"the checkpoint {self.path} is empty; give --source a published SimCLR checkpoint")

    def read(self, key: str) -> np.ndarray:
        """Returns the value of a variable as float32.

        Raises:
          UserError: The file is cut off, or the value is not floating or not finite.
        """
        if not self._dtypes[key].is_floating:
            raise UserError(
                f"{key} in {self.path} is of type {self._dtypes[key].name}, but weights are floating; give another "
                "checkpoint"
            )
        value = np.asarray(self._tensor(key), np.float32)
        if not np.all(np.isfinite(value)):
            raise UserError(f"{key} in {self.path} has values that are not finite; give another checkpoint")
        return value

    def read_step(self, keys: list[str]) -> int:
        """Returns the value of the first of `keys` that the checkpoint has as a whole number, else 0."""
        for key in keys:
            if self.shapes.get(key) == () and self._dtypes[key].is_integer:
                return max(0, int(self._tensor(key)))
        return 0

    def _tensor(self, key: str) -> np.ndarray:
        try:
            return self._reader.get_tensor(key)
        except _UNREADABLE as error:
            raise UserError(
                f"the checkpoint {self.path} is damaged: {key} cannot be read ({_first_line(error)}); copy it again"
            ) from None


def _find(path: str) -> str:
    """Returns the prefix of the checkpoint at `path`."""
    prefix = re.sub(r"(\.index|\.meta|\.data-\d+-of-\d+)$", "", path)
    if tf.io.gfile.exists(prefix + _INDEX):
        return prefix
    if not tf.io.gfile.exists(path):
        raise UserError(
            f"--source={path} does not exist; give a checkpoint's prefix (as in model.ckpt-250228), its folder, or "
            "a SavedModel's or hub module's folder"
        )
    if not tf.io.gfile.isdir(path):
        raise UserError(
            f"--source={path} is not a TensorFlow checkpoint (there is no {os.path.basename(prefix)}{_INDEX})"
        )
    found = _in_folder(path)
    if found is None:
        raise UserError(
            f"--source={path} has no checkpoint (no *{_INDEX} file and no variables folder in it); give the folder of "
            "a published checkpoint"
        )
    return found


def _in_folder(path: str) -> str | None:
    try:
        newest = tf.train.latest_checkpoint(path)
    except _UNREADABLE:  # The state file is damaged or names other files: look at the files themselves.
        newest = None
    if newest is not None:
        return newest
    names = [name.rstrip("/") for name in tf.io.gfile.listdir(path)]
    prefixes = [name[: -len(_INDEX)] for name in names if name.endswith(_INDEX)]
    if prefixes:
        return os.path.join(path, max(prefixes, key=_step))
    for name in _FOLDERS:
        inner = os.path.join(path, name)
        if name in names and tf.io.gfile.isdir(inner):
            found = _in_folder(inner)
            if found is not None:
                return found
    return None


def _step(prefix: str) -> tuple[int, str]:
    """A sorting key: the step in a checkpoint's name."""
    number = re.search(r"(\d+)$", prefix)
    return (int(number.group(1)) if number else -1, prefix)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
