"""Trained networks in the package: `embedded:NAME` stands for a workdir."""

from __future__ import annotations

import os

from simclr_tf.core.errors import UserError

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "embedded")
DEFAULT = "embedded:cifar10_student"
_PREFIX = "embedded:"


def names() -> list[str]:
    """Returns the names of the embedded networks, sorted."""
    return sorted(entry for entry in os.listdir(FOLDER) if os.path.exists(os.path.join(FOLDER, entry, "card.json")))


def is_embedded(workdir: str) -> bool:
    """Returns whether a workdir, or one of several separated by commas, is an embedded network."""
    return any(part.startswith(_PREFIX) for part in workdir.split(","))


def resolve(workdir: str, flag: str) -> str:
    """Replaces `embedded:NAME` by the network's folder, the workdir of a finished run; leaves other paths alone.

    Args:
      workdir: a workdir, or several separated by commas.
      flag: the flag that gave it, for messages.

    Raises:
      UserError: for an unknown name.
    """
    return ",".join(_resolve_one(part, flag) for part in workdir.split(","))


def _resolve_one(workdir: str, flag: str) -> str:
    if not workdir.startswith(_PREFIX):
        return workdir
    name = workdir[len(_PREFIX) :]
    if name not in names():
        raise UserError(f"{flag}={workdir} is unknown; choose embedded:{' or embedded:'.join(names())}")
    return os.path.join(FOLDER, name)
