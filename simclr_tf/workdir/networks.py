"""Loads networks from other runs' workdirs: a whole network, or the parts that fit an existing one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from absl import logging

from simclr_tf.core.errors import UserError, first_line
from simclr_tf.core.files import read_json, refusal
from simclr_tf.core.tf import tf
from simclr_tf.models.network import Network
from simclr_tf.workdir import records
from simclr_tf.workdir.checkpoints import _UNREADABLE, _tree, newest


def read_architecture(path: str, flag: str) -> dict:
    """Reads a workdir's `architecture.json`.

    Args:
      path: workdir of a run.
      flag: flag that `path` was given with, for messages.

    Raises:
      UserError: if `path` is not the workdir of a run, or the file is damaged.
    """
    file = os.path.join(path, records.ARCHITECTURE)
    if not tf.io.gfile.exists(file):
        found = "no such folder" if not tf.io.gfile.exists(path) else f"it has no {records.ARCHITECTURE}"
        raise UserError(f"{flag}={path} is not the workdir of a run ({found}); give the --workdir of an earlier run")
    try:
        description = read_json(file)
        description["network"]["encoder"], dict(description["data"])  # Checks that they are there.
        return description
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} cannot be understood ({first_line(error)}); restore it, or give another {flag}"
        ) from None


def initialize(
    items: dict[str, Any], init_from: str, *, required: tuple[str, ...], misfit: Callable[[str, dict], list[str]]
) -> tuple[set[str], list[str]]:
    """Restores the items that fit from another run.

    Args:
      items: objects that receive values, by path in the checkpoint, such as "head" or "memory/queue".
      init_from: workdir of the other run; needs a checkpoint.
      required: paths of the items that must fit.
      misfit: function of an item's path and the other run's `architecture.json` that lists why the item does not fit.

    Returns:
      The paths of the restored items, and the lines of a table: what was restored, what was skipped, what starts anew
      and why.

    Raises:
      UserError: if a required item is missing or has another architecture; the message names both sides.
    """
    description = read_architecture(init_from, "--init_from")
    path = newest(init_from)
    if path is None:
        raise UserError(f"--init_from={init_from} has no checkpoint; finish that run first, or give another")
    unlike = {name: misfit(name, description) for name in items}
    for name in required:
        if unlike.get(name):
            instead = "; Supervised.head_layer=0 starts from the encoder" if name == "head" else ""
            raise UserError(f"the {name} in --init_from={init_from} does not fit: {'; '.join(unlike[name])}{instead}")
    taken = {name: item for name, item in items.items() if not unlike[name]}
    try:
        reader = tf.compat.v1.train.NewCheckpointReader(path)
        read_matched(taken, path)
    except _UNREADABLE as error:
        raise refusal(path, error)(
            f"the checkpoint {path} cannot be read: {first_line(error)}; restore it, or give another"
        ) from None
    anew = {name: why for name, why in unlike.items() if why}
    return set(taken), _table(reader.get_variable_to_shape_map(), set(taken), anew)


def read_matched(items: dict[str, Any], path: str) -> None:
    """Restores every variable of `items` (by path) from a checkpoint, or fails; ignores other values there."""
    status = _tree(items).read(path)
    status.assert_existing_objects_matched()
    # Everything asked for was found; this silences the warnings about the rest (the optimizer, other parts).
    status.expect_partial()


def _table(shapes: dict[str, list[int]], taken: set[str], anew: dict[str, list[str]]) -> list[str]:
    counts: Counter = Counter()
    for key in shapes:
        first, second = [*key.split("/"), ""][:2]
        if first in ("_CHECKPOINTABLE_OBJECT_GRAPH", "step", "save_counter"):
            continue
        block = f"{first}/{second}" if first in ("encoder", "memory") else first
        if block not in anew:  # Told with the reason.
            counts[block, "restored" if {first, block} & taken else "skipped"] += 1
    rows = [f"  {block:<24} {what:<9} {count:>5} variables" for (block, what), count in sorted(counts.items())]
    rows += [f"  {name:<24} starts anew: {'; '.join(why)}" for name, why in anew.items()]
    return [*rows, "  learning rate, optimizer and order of images start anew"]


def load_network(
    workdir: str, *, precision: str = "float32", flag: str = "--workdir", momentum: bool = False
) -> tuple[Network, dict, str]:
    """Loads the network that a run trained; call this in the strategy's scope.

    Args:
      workdir: folder of the run, of any stage.
      precision: precision to compute in.
      flag: flag that `workdir` was given with, for messages.
      momentum: whether to load the memory's momentum network instead. It has no classifier, because that was trained on
        the online network.

    Returns:
      The network, the content of `architecture.json`, and the checkpoint's path.

    Raises:
      UserError: if there is no network, or it cannot be read.
    """
    description = read_architecture(workdir, flag)
    if description.get("assumed"):
        logging.warning("%s=%s: assuming that %s", flag, workdir, description["assumed"])
    path = newest(workdir)
    if path is None:
        raise UserError(f"{flag}={workdir} has no checkpoint; let its run reach one first, or give another")
    network = Network.from_description(description["network"], precision=precision)
    parts = network.parts()
    if momentum:
        # Descriptions of early runs do not tell.
        keys = tf.compat.v1.train.NewCheckpointReader(path).get_variable_to_shape_map()
        if not any(key.startswith("memory/network/encoder/") for key in keys):
            raise UserError(
                f"{flag}={workdir} was trained without a memory and has no momentum network; take the trained one"
            )
        network.classifier = None
        parts = {f"memory/network/{name}": part for name, part in network.parts().items()}
    try:
        read_matched(parts, path)
    except _UNREADABLE as error:
        raise refusal(path, error)(
            f"the checkpoint {path} cannot be read: {first_line(error)}; restore it, or give another"
        ) from None
    return network, description, path
