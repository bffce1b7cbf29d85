"""What makes a run this run: a workdir with checkpoints goes on only as what it was.

A change that would alter a single step is refused by name: the network, the data, the batch, the seed, the optimizer,
the augmentation. What cannot alter one is free: strategy and number of devices, where the data lie, how often to save,
to record and to look. The length may grow: `run.json` keeps the earlier lengths and the steps up to which they held, so
that the learning rate of every step stays known.
"""

from __future__ import annotations

import os
from typing import Any

from simclr_tf.core.errors import UserError
from simclr_tf.core.files import read_json, write_json
from simclr_tf.core.tf import tf
from simclr_tf.models.network import differences
from simclr_tf.workdir import checkpoints, records
from simclr_tf.workdir.networks import read_architecture

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
# Facts that may differ: the length may grow, and what a run started from may have gone on.
_LOOSE = {"steps", "epochs", "earlier_lengths", "init_from_step"}
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


def lengthen(identity: dict[str, Any], before: dict[str, Any], step: int) -> bool:
    """Adds to a run's identity the lengths that it had before, of which `identity["earlier_lengths"]` is a list.

    Args:
      identity: of the run as asked for now.
      before: what `run.json` says; see `check`.
      step: how many steps were taken.

    Returns:
      Whether the run is longer than before.
    """
    longer = "steps" in before and before["steps"] < identity["steps"]
    earlier = before.get("earlier_lengths", [])
    if longer:
        # From an older checkpoint than the last one, the steps that are taken again are the longer run's.
        earlier = [{**length, "until_step": min(length["until_step"], step)} for length in earlier]
        epochs = before["steps"] * before["global_batch_size"] / before["num_examples"]
        earlier.append({"until_step": step, "steps": before["steps"], "epochs": before.get("epochs", epochs)})
    if earlier:
        identity["earlier_lengths"] = earlier
    return longer


def check(workdir: str, description: dict[str, Any], identity: dict[str, Any]) -> dict[str, Any]:
    """Refuses to go on with another run, and returns what `run.json` says: nothing where no run goes on.

    Args:
      workdir: may have checkpoints; without any, everything is allowed, unless they were deleted after the end.
      description: what the stage says of itself, as in `architecture.json`.
      identity: see `identify`.

    Raises:
      UserError: naming every difference.
    """
    if not checkpoints.exists(workdir):
        if tf.io.gfile.exists(os.path.join(workdir, records.RESULT)):
            raise UserError(
                f"--workdir={workdir} holds the results of a finished run, but no checkpoint of it any more; use a new "
                "--workdir"
            )
        return {}
    unlike, there = [], {}
    if tf.io.gfile.exists(os.path.join(workdir, records.ARCHITECTURE)):
        trained = read_architecture(workdir, "--workdir")
        apart = ("network", "data")
        plain = [{name: side[name] for name in side if name not in apart} for side in (trained, description)]
        _tell_teachers_by_weights(plain)
        unlike += _unlike(*plain) + _unlike(trained["network"], description["network"])
    path = os.path.join(workdir, RUN)
    if tf.io.gfile.exists(path):
        try:
            there = read_json(path)
            sides = [(there, identity), (there["settings"], identity["settings"])]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be understood ({error}); restore it, or use a new --workdir") from None
        facts = [{key: side[key] for key in side if key not in {"settings", *_LOOSE}} for side in sides[0]]
        unlike += _unlike(*facts) + _unlike(*sides[1])
        if {"steps"} <= there.keys() & identity.keys() and identity["steps"] < there["steps"]:
            unlike.append(f"steps is {there['steps']} there, {identity['steps']} here (a run may grow, not shrink)")
    if unlike:
        raise UserError(
            f"--workdir={workdir} holds another run: {'; '.join(dict.fromkeys(unlike))}; use a new --workdir, or the "
            "settings of that run (see its config.gin)"
        )
    return there


def save(workdir: str, identity: dict[str, Any]) -> None:
    """Writes `run.json`."""
    write_json(os.path.join(workdir, RUN), identity)
