"""Trained networks that come with the package: `embedded:NAME`, where a workdir is wanted."""

from __future__ import annotations

import os

from simclr_tf.core.errors import UserError

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "embedded")
DEFAULT = "embedded:cifar10_student"
_PREFIX = "embedded:"


def names() -> list[str]:
    """Returns the names of what is embedded."""
    return sorted(entry for entry in os.listdir(FOLDER) if os.path.exists(os.path.join(FOLDER, entry, "card.json")))


def is_embedded(workdir: str) -> bool:
    """Whether a flag's value names an embedded network, or several workdirs with one among them."""
    return any(part.startswith(_PREFIX) for part in workdir.split(","))


def resolve(workdir: str, flag: str) -> str:
    """Returns the folder of an embedded network, which is a finished run's workdir; anything else as it is.

    Args:
      workdir: a flag's value; of several with commas between them each is resolved.
      flag: what it was given as, for messages.

    Raises:
      UserError: for an unknown name.
    """
    return ",".join(_resolve_one(part, flag) for part in workdir.split(","))


def _resolve_one(workdir: str, flag: str) -> str:
    if not workdir.startswith(_PREFIX):
        return workdir
    name = workdir[len(_PREFIX) :]
    if name not in names():
        raise UserError(f"{flag}={workdir} is unknown; there is embedded:{', embedded:'.join(names())}")
    return os.path.join(FOLDER, name)
