"""Checkpoints as the published code writes them, filled by the reference folder's rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import reference

from simclr_tf.commands.convert import recognize
from simclr_tf.commands.convert.convert import run_convert
from simclr_tf.commands.convert.published import layout
from simclr_tf.core.tf import tf
from simclr_tf.settings.run_context import RunContext

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


def variables_of(unit) -> dict[str, tuple]:
    if unit.is_conv:
        return {"kernel": unit.shape, **({"bias": unit.shape[-1:]} if unit.bias else {})}
    return dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), unit.shape)


def head_shapes(width: int, layers: int) -> list[tuple[tuple, bool]]:
    return [((width, 128 if i == layers - 1 else width), i < layers - 1) for i in range(layers)]


def tf1_shapes(encoder: dict, *, layers=3, classes=1000) -> dict[str, tuple]:
    units = layout(**encoder)
    shapes, counts = {}, {"conv2d": 0, "batch_normalization": 0}
    for unit in units:
        kind = "conv2d" if unit.is_conv else "batch_normalization"
        suffix = f"_{counts[kind]}" if counts[kind] else ""
        counts[kind] += 1
        shapes.update({f"base_model/{kind}{suffix}/{leaf}": shape for leaf, shape in variables_of(unit).items()})
    width = recognize.feature_dim(encoder)
    for i, (kernel, center) in enumerate(head_shapes(width, layers)):
        shapes[f"head_contrastive/nl_{i}/dense/kernel"] = kernel
        for leaf in ("gamma", "beta", "moving_mean", "moving_variance"):
            if center or leaf != "beta":
                shapes[f"head_contrastive/nl_{i}/batch_normalization/{leaf}"] = kernel[1:]
    if classes:
        shapes["head_supervised/linear_layer/dense/kernel"] = (width, classes)
        shapes["head_supervised/linear_layer/dense/bias"] = (classes,)
    return shapes


def convert(source, workdir, **settings) -> dict:
    return run_convert(RunContext(str(workdir), tf.distribute.get_strategy(), source=str(source)), **settings)
