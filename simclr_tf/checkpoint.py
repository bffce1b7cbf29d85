"""Checkpoints: resume, else initialize from another run, else start from scratch; and what matched."""

from __future__ import annotations

import os
from collections import Counter

from absl import logging

from simclr_tf import records
from simclr_tf.errors import UserError
from simclr_tf.models.network import Network
from simclr_tf.stack import tf

_FOLDER = "checkpoints"
# What TensorFlow raises for a checkpoint that is cut off, overwritten or gone.
_UNREADABLE = (tf.errors.OpError, ValueError, AssertionError)


def newest(path: str) -> str | None:
    """Returns the newest checkpoint of a workdir, None where it has none."""
    return tf.train.latest_checkpoint(os.path.join(path, _FOLDER))


class Checkpoints:
    """A run's own checkpoints."""

    def __init__(self, workdir: str, items: dict[str, tf.Module], *, keep: int):
        """Looks after `workdir`/checkpoints.

        Args:
          workdir: folder of the run.
          items: what to save, by name.
          keep: how many of the newest to keep.
        """
        self._checkpoint = tf.train.Checkpoint(**items)
        folder = os.path.join(workdir, _FOLDER)
        self._manager = tf.train.CheckpointManager(self._checkpoint, folder, max_to_keep=keep, checkpoint_name="step")

    def save(self, step: int) -> None:
        """Saves everything as of `step` steps taken."""
        self._manager.save(checkpoint_number=step)

    def resume(self) -> str | None:
        """Restores the newest checkpoint that can be read; returns its path, or None where there is none.

        Raises:
          UserError: when there are checkpoints, but none of them can be read; nothing is overwritten then.
        """
        paths = list(reversed(self._manager.checkpoints))
        for path in paths:
            try:
                status = self._checkpoint.restore(path)
                status.assert_consumed()
                return path
            except _UNREADABLE as error:
                logging.warning("passing over the checkpoint %s, which cannot be read: %s", path, _first_line(error))
        if paths:
            raise UserError(
                f"none of the {len(paths)} checkpoint(s) in {os.path.dirname(paths[0])} can be read or fits this run; "
                "use another --workdir to start anew, or restore the files"
            )
        return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_architecture(path: str, flag: str) -> dict:
    """Reads what a workdir says of its network.

    Raises:
      UserError: where `path` is not a workdir of this project.
    """
    file = os.path.join(path, records.ARCHITECTURE)
    if not tf.io.gfile.exists(file):
        found = "no such folder" if not tf.io.gfile.exists(path) else f"it has no {records.ARCHITECTURE}"
        raise UserError(f"{flag}={path} is not the workdir of a run ({found}); give the --workdir of an earlier run")
    try:
        description = records.read_json(file)
        description["network"]["encoder"]  # noqa: B018  (looked up to see whether it is there)
        return description
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be understood ({_first_line(error)}); restore it, or give another {flag}") from None


def initialize(network: Network, init_from: str, *, required: tuple[str, ...], optional: tuple[str, ...]) -> str:
    """Takes parts of a network from another run.

    Args:
      network: receives the values.
      init_from: a workdir with a checkpoint.
      required: parts that must be there.
      optional: parts that are taken when they are there and fit.

    Returns:
      A table of what was restored, skipped and missing, by block.

    Raises:
      UserError: when a required part is missing or of another architecture, naming both sides.
    """
    description = read_architecture(init_from, "--init_from")["network"]
    path = newest(init_from)
    if path is None:
        raise UserError(f"--init_from={init_from} has no checkpoint; finish that run first, or give another")
    parts, taken = network.parts(), {}
    for name in (*required, *optional):
        if name not in parts:
            continue
        unlike = network.mismatch(name, description)
        if not unlike:
            taken[name] = parts[name]
        elif name in required:
            raise UserError(f"the {name} in --init_from={init_from} does not fit: {'; '.join(unlike)}")
    try:
        reader = tf.train.load_checkpoint(path)
        tf.train.Checkpoint(**taken).restore(path).assert_existing_objects_matched()
    except _UNREADABLE as error:
        raise UserError(f"the checkpoint {path} cannot be read: {_first_line(error)}; restore it, or give another") from None
    missing = [name for name in parts if name not in taken]
    return _table(reader.get_variable_to_shape_map(), set(taken), missing)


def _table(shapes: dict[str, list[int]], taken: set[str], missing: list[str]) -> str:
    counts: Counter = Counter()
    for key in shapes:
        path = key.split("/")
        if path[0] in ("_CHECKPOINTABLE_OBJECT_GRAPH", "step", "save_counter"):
            continue
        block = "/".join(path[:2]) if path[0] == "encoder" else path[0]
        counts[block, "restored" if path[0] in taken else "skipped"] += 1
    rows = [f"  {block:<24} {what:<9} {count:>5} variables" for (block, what), count in sorted(counts.items())]
    rows += [f"  {name:<24} missing, starts anew" for name in missing]
    return "\n".join(rows)


def load_network(workdir: str, *, precision: str = "float32", flag: str = "--workdir") -> tuple[Network, dict, str]:
    """Loads the network that a run trained; to be called inside a strategy's scope.

    Args:
      workdir: folder of the run, of any stage.
      precision: to compute in.
      flag: what `workdir` was given as, for messages.

    Returns:
      The network, all of `architecture.json`, and the checkpoint's path.

    Raises:
      UserError: where there is none, or it cannot be read.
    """
    description = read_architecture(workdir, flag)
    path = newest(workdir)
    if path is None:
        raise UserError(f"{flag}={workdir} has no checkpoint; let its run reach one first, or give another")
    network = Network.from_description(description["network"], precision=precision)
    try:
        tf.train.Checkpoint(**network.parts()).restore(path).assert_existing_objects_matched()
    except _UNREADABLE as error:
        raise UserError(f"the checkpoint {path} cannot be read: {_first_line(error)}; restore it, or give another") from None
    return network, description, path
