"""Recognizes a network in a TF2 SavedModel, whose variables are named by their positions in lists.

A SavedModel's keys are the shortest paths to its variables. In the published exports, trained variables are
`trainable_variables_list/N`. The others (moving averages, and all variables of frozen layers) are
`model/resnet_model/variables/N` and `model/_projection_head/variables/N`. Both lists follow the order in which Keras
tracked the layers, which differs from the order of creation. A block of ResNet-18 or 34 tracks its shortcut last, a
block of a deeper network first. A projection layer tracks its batch norm before its dense kernel. So the reader works
out the whole sequence of shapes for each architecture that the kernels allow, and every shape must agree.
"""

from __future__ import annotations

import re

from simclr_tf.commands.convert.published import Unit, layout
from simclr_tf.commands.convert.recognize import (
    Found,
    Group,
    Shape,
    bookkeeping,
    matching_encoders,
    refuse_unknown,
)
from simclr_tf.core.errors import UserError

_TRAINED = re.compile(r"^trainable_variables(?:_list)?/(\d+)/\.ATTRIBUTES/VARIABLE_VALUE$")
_LISTED = re.compile(r"^(.*/)?(?:non_trainable_variables|variables)(?:_list)?/(\d+)/\.ATTRIBUTES/VARIABLE_VALUE$")
# The last frozen section: none (-1), the stem (0), or block group 1 to 4.
_SECTIONS = range(-1, 5)


def read_lists(shapes: dict[str, Shape], path: str) -> Found | None:
    """Reads a SavedModel's variables.

    Args:
      shapes: Key -> shape.
      path: The checkpoint, for messages.

    Returns:
      The variables found, or None if no key has a name of this kind.

    Raises:
      UserError: The names are of this kind, but no network fits.
    """
    trained: dict[int, str] = {}
    listed: dict[str, dict[int, str]] = {"encoder": {}, "head": {}, "classifier": {}}
    ignored: dict[str, int] = {}
    unknown = []
    for key in shapes:
        match = _TRAINED.match(key)
        if match:
            trained[int(match[1])] = key
            continue
        match = _LISTED.match(key)
        if match:
            listed[_part(match[1] or "")][int(match[2])] = key
            continue
        kind = bookkeeping(key)
        if kind:
            ignored[kind] = ignored.get(kind, 0) + 1
        else:
            unknown.append(key)
    if not trained and not any(listed.values()):
        return None
    refuse_unknown(unknown, path)
    sequences = {part: [keys[i] for i in sorted(keys)] for part, keys in listed.items()}
    found = _match([trained[i] for i in sorted(trained)], sequences, shapes)
    if found is None:
        raise UserError(
            f"{path} is a SavedModel of {len(trained)} trained and {len(shapes) - len(trained)} other variables whose "
            "order and shapes fit no SimCLR network that this project knows; give the training checkpoint it was made "
            "from"
        )
    return found._replace(ignored=ignored)


def _part(prefix: str) -> str:
    if "projection" in prefix or "contrastive" in prefix:
        return "head"
    return "classifier" if "supervised" in prefix else "encoder"


def _match(trained: list[str], listed: dict[str, list[str]], shapes: dict[str, Shape]) -> Found | None:
    for encoder in _encoders([*listed["encoder"], *trained], shapes):
        units = layout(**encoder)
        for frozen in _SECTIONS:
            is_frozen = [unit.section <= frozen for unit in units]
            places = _tracked(units)
            groups = [Group(f"unit {i}", {}) for i in range(len(units))]
            wanted = [
                (groups[i], leaf, shape) for i in places if not is_frozen[i] for leaf, shape in _trainable(units[i])
            ]
            rest = [
                (groups[i], leaf, shape)
                for i in places
                for leaf, shape in [*(_trainable(units[i]) if is_frozen[i] else ()), *_moving(units[i])]
            ]
            count = len(wanted)
            if not _assign(wanted, trained[:count], shapes) or not _assign(
                rest, listed["encoder"][: len(rest)], shapes
            ):
                continue
            # The rest of the encoder's list belongs to the heads.
            heads = _heads(
                trained[count:], [*listed["encoder"][len(rest) :], *listed["head"]], listed["classifier"], shapes
            )
            if heads is not None:
                dense, norms, classifier = heads
                return Found(
                    layout="SavedModel",
                    convs=[group for group, unit in zip(groups, units) if unit.is_conv],
                    norms=[group for group, unit in zip(groups, units) if not unit.is_conv],
                    dense=dense,
                    dense_norms=norms,
                    classifier=classifier,
                    ignored={},
                )
    return None


def _encoders(keys: list[str], shapes: dict[str, Shape]) -> list[dict]:
    """Returns the architectures whose kernels, in the order of tracking, have these shapes."""
    return matching_encoders([shapes[key] for key in keys if len(shapes[key]) == 4], _tracked)


def _tracked(units: list[Unit]) -> list[int]:
    """Returns the indices of the units in the order in which Keras tracked them."""
    basic = not any(unit.part == "branch" and unit.is_conv and unit.shape[0] == 1 for unit in units)
    parts = {"stem": 0, "shortcut": 2 if basic else 0, "branch": 1, "excite": 3}
    return sorted(range(len(units)), key=lambda i: (units[i].section, units[i].block, parts[units[i].part], i))


def _trainable(unit: Unit) -> list[tuple[str, Shape]]:
    if unit.is_conv:
        return [("kernel", unit.shape), *([("bias", unit.shape[-1:])] if unit.bias else [])]
    return [("gamma", unit.shape), ("beta", unit.shape)]


def _moving(unit: Unit) -> list[tuple[str, Shape]]:
    return [] if unit.is_conv else [("moving_mean", unit.shape), ("moving_variance", unit.shape)]


def _assign(wanted: list[tuple[Group, str, Shape]], keys: list[str], shapes: dict[str, Shape]) -> bool:
    """Gives each wanted leaf its key; returns False if the number or the shapes disagree."""
    if [shapes[key] for key in keys] != [shape for _, _, shape in wanted]:
        return False
    for (group, leaf, _), key in zip(wanted, keys):
        group.keys[leaf] = key
    return True


def _heads(
    trained: list[str], moving: list[str], frozen_classifier: list[str], shapes: dict[str, Shape]
) -> tuple[list[Group], list[Group], Group | None] | None:
    """Splits the variables after the encoder: projection layers (gamma, beta unless last, kernel), then classifier."""
    trained = [*trained, *frozen_classifier]
    dense, norms, place = [], [], 0
    ranks = [len(shapes[key]) for key in trained]
    while ranks[place : place + 1] == [1]:
        leaves = ["gamma", "beta"] if ranks[place + 1 : place + 2] == [1] else ["gamma"]
        kernel = place + len(leaves)
        if ranks[kernel : kernel + 1] != [2] or len(moving) < 2:
            return None
        norm = dict(zip([*leaves, "moving_mean", "moving_variance"], [*trained[place:kernel], *moving[:2]]))
        norms.append(Group(f"projection layer {len(norms)}", norm))
        dense.append(Group(f"projection layer {len(dense)}", {"kernel": trained[kernel]}))
        place, moving = kernel + 1, moving[2:]
    if moving:
        return None
    if ranks[place:] == [2, 1]:
        return dense, norms, Group("classifier", {"kernel": trained[place], "bias": trained[place + 1]})
    return (dense, norms, None) if not ranks[place:] else None
