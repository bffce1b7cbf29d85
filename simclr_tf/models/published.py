"""Which of our variables the published SimCLRv2 (TF1) checkpoints call what.

They number convolutions and batch norms in the order of creation, with no number for the first:
`base_model/conv2d/kernel`, `base_model/conv2d_1/kernel`, `base_model/batch_normalization/gamma`, ...
"""

from __future__ import annotations

from simclr_tf.models.blocks import Conv
from simclr_tf.models.heads import Classifier, ProjectionHead
from simclr_tf.models.normalization import BatchNorm
from simclr_tf.models.resnet import ResNet
from simclr_tf.stack import tf


def _batch_norm(prefix: str, norm: BatchNorm) -> dict[str, tf.Variable]:
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    return {f"{prefix}/{name}": getattr(norm, name) for name in names if getattr(norm, name) is not None}


def encoder_variables(encoder: ResNet, prefix: str = "base_model") -> dict[str, tf.Variable]:
    """Returns published name -> variable for a built encoder."""
    named, counts = {}, {"conv2d": 0, "batch_normalization": 0}
    for unit in encoder.units():
        kind = "conv2d" if isinstance(unit, Conv) else "batch_normalization"
        number = counts[kind]
        counts[kind] += 1
        path = f"{prefix}/{kind}_{number}" if number else f"{prefix}/{kind}"
        if isinstance(unit, Conv):
            named[f"{path}/kernel"] = unit.kernel
            if unit.bias is not None:
                named[f"{path}/bias"] = unit.bias
        else:
            named.update(_batch_norm(path, unit))
    return named


def head_variables(head: ProjectionHead, prefix: str = "head_contrastive") -> dict[str, tf.Variable]:
    """Returns published name -> variable for a built projection head."""
    named = {}
    for i, layer in enumerate(head.projections):
        named[f"{prefix}/nl_{i}/dense/kernel"] = layer.dense.kernel
        named.update(_batch_norm(f"{prefix}/nl_{i}/batch_normalization", layer.norm))
    return named


def classifier_variables(classifier: Classifier, prefix: str = "head_supervised") -> dict[str, tf.Variable]:
    """Returns published name -> variable for a built classifier."""
    path = f"{prefix}/linear_layer/dense"
    return {f"{path}/kernel": classifier.dense.kernel, f"{path}/bias": classifier.dense.bias}
