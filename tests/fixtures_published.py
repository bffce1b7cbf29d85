"""Checkpoints as the published code writes them, filled by the reference folder's rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import reference

from simclr_tf.stack import tf

STEP = 1234


def write(prefix: Path, tensors: dict[str, np.ndarray]) -> str:
    """Writes a checkpoint with these keys and no others."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(tensors[name]) for name in names],
    )
    return str(prefix)


def tf1(shapes: dict[str, list[int]], prefix: str = "", slots: bool = True) -> dict[str, np.ndarray]:
    """A TF1 training checkpoint: the rule's values, with LARS's slots and the step."""
    tensors = {}
    for name, shape in shapes.items():
        tensors[prefix + name] = reference.value(name, shape)
        if slots and "moving" not in name:
            tensors[f"{prefix}{name}/Momentum"] = np.full(shape, 7, np.float32)
    if slots:
        tensors["global_step"] = np.int64(STEP)
    return tensors


def tf2(case: dict) -> dict[str, np.ndarray]:
    """A TF2 training checkpoint of a reference case; the rule applies to the whole key."""
    tensors = {}
    for key, shape in case["checkpoint_keys"].items():
        if not shape and not key.startswith("optimizer/"):
            tensors[key] = np.int64(STEP)
        elif "OPTIMIZER_SLOT" in key or key.startswith("optimizer/"):
            tensors[key] = np.full(shape, 7, np.float32)
        else:
            tensors[key] = reference.value(key, shape)
    return tensors


def saved_model(case: dict) -> dict[str, np.ndarray]:
    """The variables of a TF2 SavedModel of the same case."""
    return {key: reference.value(name, case["checkpoint_keys"][name]) for key, name in case["saved_model_keys"].items()}
