"""Which variables take neither weight decay nor a trust ratio: chosen by the layer that owns them, never by name."""

from __future__ import annotations

from collections.abc import Iterable

from simclr_tf.models.heads import Classifier
from simclr_tf.models.normalization import BatchNorm
from simclr_tf.stack import tf


def excluded_variables(modules: Iterable[tf.Module]) -> set[int]:
    """Finds batch norm's variables, all biases and everything in a supervised head.

    Args:
      modules: built networks; they and all layers below them are searched.

    Returns:
      `id()`s of the variables.
    """
    found: set[int] = set()
    for root in modules:
        for module in (root, *root.submodules):
            if isinstance(module, (BatchNorm, Classifier)):
                found.update(id(variable) for variable in module.variables)
            elif getattr(module, "bias", None) is not None:
                found.add(id(module.bias))
    return found
