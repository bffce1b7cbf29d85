"""The identity of a run: a workdir with checkpoints can only be resumed as the same run.

Settings that affect a step must not change: network, data, batch, seed, optimizer, augmentation. A change is refused by
name. Settings that affect no step are free: the strategy, the number of devices, the place of the data, how often to
save, record and draw. The run may get longer. `run.json` keeps its earlier lengths and the steps up to which they held,
so that every step's learning rate stays known.
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
# Settings that affect no step.
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
# Facts that may differ: the run may get longer, and the run that it started from may have been trained further.
_LOOSE = {"steps", "epochs", "earlier_lengths", "init_from_step"}
# Settings that the facts hold in resolved form: different settings, such as epochs and steps, can mean the same.
_RESOLVED = {"train.epochs", "train.global_batch_size", "train.precision", "train.seed", "train.steps"}


def identify(settings: dict[str, str], **facts: Any) -> dict[str, Any]:
    """Returns what `run.json` holds.

    Args:
      settings: name -> value as text, of all settings, including defaults.
      **facts: batch size, steps, seed and the like, as plain values.
    """
    kept = {name: settings[name] for name in sorted(settings) if name not in _HARMLESS | _RESOLVED}
    return {**facts, "settings": kept}


def _unlike(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Lists where two nested descriptions differ, ignoring keys that only one of them has."""
    both = sorted(there.keys() & here.keys())
    lines = []
    for name in both:
        if isinstance(there[name], dict) and isinstance(here[name], dict):
            lines += [f"{name}'s {line}" for line in differences(there[name], here[name])]
        else:
            lines += differences({name: there[name]}, {name: here[name]})
    return lines


def _tell_teachers_by_weights(sides: list[dict[str, Any]]) -> None:
    """Drops teachers' paths if both have fingerprints, because a teacher may have moved; else drops fingerprints."""
    teachers = [side.get("teacher") for side in sides]
    if not all(isinstance(teacher, dict) for teacher in teachers):
        return
    needless = "path" if all("fingerprint" in teacher for teacher in teachers) else "fingerprint"
    for side, teacher in zip(sides, teachers):
        side["teacher"] = {name: value for name, value in teacher.items() if name != needless}


def lengthen(identity: dict[str, Any], before: dict[str, Any], step: int) -> bool:
    """Adds the run's earlier lengths to its identity, as the list `identity["earlier_lengths"]`.

    Args:
      identity: identity of the run as asked for now.
      before: content of `run.json`; see `check`.
      step: number of steps taken.

    Returns:
      Whether the run is longer than before.
    """
    longer = "steps" in before and before["steps"] < identity["steps"]
    earlier = before.get("earlier_lengths", [])
    if longer:
        # After resuming from an older checkpoint, the steps taken again belong to the longer run.
        earlier = [{**length, "until_step": min(length["until_step"], step)} for length in earlier]
        epochs = before["steps"] * before["global_batch_size"] / before["num_examples"]
        earlier.append({"until_step": step, "steps": before["steps"], "epochs": before.get("epochs", epochs)})
    if earlier:
        identity["earlier_lengths"] = earlier
    return longer


def check(workdir: str, description: dict[str, Any], identity: dict[str, Any]) -> dict[str, Any]:
    """Refuses to resume a different run; otherwise returns the content of `run.json`, empty for a new run.

    Args:
      workdir: folder of the run. Without checkpoints it accepts any run, unless it has the results of a finished one.
      description: description of the stage, as in `architecture.json`.
      identity: identity of the run as asked for now; see `identify`.

    Raises:
      UserError: if the runs differ; the message names every difference.
    """
    if not checkpoints.exists(workdir):
        if tf.io.gfile.exists(os.path.join(workdir, records.RESULT)):
            raise UserError(
                f"--workdir={workdir} holds the results of a finished run, but its checkpoints are gone; use a new "
                "--workdir"
            )
        return {}
    unlike, there = [], {}
    if tf.io.gfile.exists(os.path.join(workdir, records.ARCHITECTURE)):
        trained = read_architecture(workdir, "--workdir")
        # The network is compared part by part below; the settings tell whether the data differ.
        nested = ("network", "data")
        plain = [{name: side[name] for name in side if name not in nested} for side in (trained, description)]
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
