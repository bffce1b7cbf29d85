"""What makes a run this run: a workdir with checkpoints goes on only as what it was.

A change that would alter a single step is refused by name: the network, the data, the batch, the length (the learning
rate follows it), the seed, the optimizer, the augmentation. What cannot alter one is free: strategy and number of
devices, where the data lie, how often to save, to record and to look.
"""

from __future__ import annotations

import os
from typing import Any

from simclr_tf import checkpoint, records
from simclr_tf.errors import UserError
from simclr_tf.models.network import differences
from simclr_tf.stack import tf

RUN = "run.json"
# Settings that change no step.
_HARMLESS = {
    "train.board_images",
    "train.checkpoint_every_steps",
    "train.eval_batch_size",
    "train.jit_compile",
    "train.keep_checkpoints",
    "train.record_every_steps",
    "train.steps_per_call",
    "Data.download",
    "Data.eval_split",
    "Data.max_bad_images",
    "Pretrain.nt_xent",
    "ResNet.remat",
}
# Settings that the facts tell better: a number of epochs or "auto" may stand for the same as something else.
_RESOLVED = {"train.epochs", "train.global_batch_size", "train.precision", "train.seed", "train.steps"}


def identify(settings: dict[str, str], **facts: Any) -> dict[str, Any]:
    """Returns what `run.json` holds.

    Args:
      settings: name -> value as text, of all that was set, defaults included.
      **facts: batch, steps, seed and the like, as plain values.
    """
    kept = {name: settings[name] for name in sorted(settings) if name not in _HARMLESS | _RESOLVED}
    return {**facts, "settings": kept}


def _unlike(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Where two descriptions, parts within parts, disagree; what only one of them knows of is no disagreement."""
    both = sorted(there.keys() & here.keys())
    lines = []
    for name in both:
        if isinstance(there[name], dict) and isinstance(here[name], dict):
            lines += [f"{name}'s {line}" for line in differences(there[name], here[name])]
        else:
            lines += differences({name: there[name]}, {name: here[name]})
    return lines


def _tell_teachers_by_weights(sides: list[dict[str, Any]]) -> None:
    """Forgets where a teacher lies, which both sides may spell as they like, where its fingerprint is known."""
    teachers = [side.get("teacher") for side in sides]
    if not all(isinstance(teacher, dict) for teacher in teachers):
        return
    needless = "path" if all("fingerprint" in teacher for teacher in teachers) else "fingerprint"
    for side, teacher in zip(sides, teachers):
        side["teacher"] = {name: value for name, value in teacher.items() if name != needless}


def check(workdir: str, description: dict[str, Any], identity: dict[str, Any]) -> None:
    """Refuses to go on with another run.

    Args:
      workdir: may have checkpoints; without any, everything is allowed, unless they were deleted after the end.
      description: what the stage says of itself, as in `architecture.json`.
      identity: see `identify`.

    Raises:
      UserError: naming every difference.
    """
    if not checkpoint.exists(workdir):
        if tf.io.gfile.exists(os.path.join(workdir, records.RESULT)):
            raise UserError(
                f"--workdir={workdir} holds the results of a finished run, but no checkpoint of it any more; use a new "
                "--workdir"
            )
        return
    unlike = []
    if tf.io.gfile.exists(os.path.join(workdir, records.ARCHITECTURE)):
        there = checkpoint.read_architecture(workdir, "--workdir")
        apart = ("network", "data")
        plain = [{name: side[name] for name in side if name not in apart} for side in (there, description)]
        _tell_teachers_by_weights(plain)
        unlike += _unlike(*plain) + _unlike(there["network"], description["network"])
    path = os.path.join(workdir, RUN)
    if tf.io.gfile.exists(path):
        try:
            there = records.read_json(path)
            sides = [(there, identity), (there["settings"], identity["settings"])]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be understood ({error}); restore it, or use a new --workdir") from None
        facts = [{key: value for key, value in side.items() if key != "settings"} for side in sides[0]]
        unlike += _unlike(*facts) + _unlike(*sides[1])
    if unlike:
        raise UserError(
            f"--workdir={workdir} holds another run: {'; '.join(dict.fromkeys(unlike))}; use a new --workdir, or the "
            "settings of that run (see its config.gin)"
        )


def save(workdir: str, identity: dict[str, Any]) -> None:
    """Writes `run.json`."""
    records.write_json(os.path.join(workdir, RUN), identity)
