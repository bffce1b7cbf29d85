"""Recognizing a network in a TF2 SavedModel, whose variables are named by their place in lists.

A SavedModel's keys are the shortest paths to its variables. For the published exports these are
`trainable_variables_list/N` (all that was trained), and `model/resnet_model/variables/N` and
`model/_projection_head/variables/N` for the rest: each layer's moving averages, and all variables of layers that were
frozen. Both count in the order in which Keras tracked the layers, which differs from the order of creation: a
ResNet-18's or 34's block tracks its shortcut last, a deeper net's first; a projection layer tracks its batch norm
before its dense kernel. So for each architecture that the kernels allow the whole sequence of shapes is worked out, and
must agree to the last.
"""

from __future__ import annotations

import re

from simclr_tf.commands.convert.published import Unit, layout
from simclr_tf.commands.convert.recognize import Found, Group, Shape, bookkeeping, matching_encoders
from simclr_tf.core.errors import UserError

_TRAINED = re.compile(r"^trainable_variables(?:_list)?/(\d+)/\.ATTRIBUTES/VARIABLE_VALUE$")
_LISTED = re.compile(r"^(.*/)?(?:non_trainable_variables|variables)(?:_list)?/(\d+)/\.ATTRIBUTES/VARIABLE_VALUE$")
# Frozen up to: nothing, the stem, block group 1, .. 4.
_SECTIONS = range(-1, 5)


def read_lists(shapes: dict[str, Shape], path: str) -> Found | None:
    """Reads a SavedModel's variables.

    Args:
      shapes: key -> shape.
      path: the checkpoint, for messages.

    Returns:
      What was found, None where nothing is named so.

    Raises:
      UserError: where it is so named, but no network fits.
    """
    trained: dict[int, str] = {}
    listed: dict[str, dict[int, str]] = {"encoder": {}, "head": {}, "classifier": {}}
    ignored: dict[str, int] = {}
    strangers = []
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
            strangers.append(key)
    if not trained and not any(listed.values()):
        return None
    if strangers:
        raise UserError(
            f"{path} has variables without a place in a SimCLR network, such as {sorted(strangers)[0]}; give another"
        )
    sequences = {part: [keys[i] for i in sorted(keys)] for part, keys in listed.items()}
    found = _match([trained[i] for i in sorted(trained)], sequences, shapes)
    if found is None:
        raise UserError(
            f"{path} is a SavedModel of {len(trained)} trained and {len(shapes) - len(trained)} other variables whose "
            "order and shapes are those of no SimCLR network that this project knows; give the training checkpoint it "
            "was made from"
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
            fixed = [unit.section <= frozen for unit in units]
            places = _tracked(units)
            groups = [Group(f"unit {i}", {}) for i in range(len(units))]
            wanted = [(groups[i], leaf, shape) for i in places if not fixed[i] for leaf, shape in _trainable(units[i])]
            rest = [
                (groups[i], leaf, shape)
                for i in places
                for leaf, shape in [*(_trainable(units[i]) if fixed[i] else ()), *_moving(units[i])]
            ]
            count = len(wanted)
            if not _assign(wanted, trained[:count], shapes) or not _assign(
                rest, listed["encoder"][: len(rest)], shapes
            ):
                continue
            # Whatever else is listed without a part of its own belongs to the heads.
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
    """The architectures that the kernels allow in the order of tracking."""
    return matching_encoders([shapes[key] for key in keys if len(shapes[key]) == 4], _tracked)


def _tracked(units: list[Unit]) -> list[int]:
    """Places of the units in the order in which Keras tracked them."""
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
    """Gives each wanted leaf its key; False where number or shapes disagree."""
    if [shapes[key] for key in keys] != [shape for _, _, shape in wanted]:
        return False
    for (group, leaf, _), key in zip(wanted, keys):
        group.keys[leaf] = key
    return True


def _heads(
    trained: list[str], moving: list[str], frozen_classifier: list[str], shapes: dict[str, Shape]
) -> tuple[list[Group], list[Group], Group | None] | None:
    """Takes apart what follows the encoder: projection layers (gamma, beta, kernel; the last: no beta), classifier."""
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
