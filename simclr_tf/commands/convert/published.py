"""The order and names of a network's variables in published SimCLR checkpoints.

The TF1 code numbers convolutions and batch norms in the order of creation and leaves out the first number:
`base_model/conv2d/kernel`, `base_model/conv2d_1/kernel`, `base_model/batch_normalization/gamma`, ... `ResNet.units()`
has the same order, and `layout()` lists it without building a network.
"""

from __future__ import annotations

from typing import NamedTuple

from simclr_tf.core.tf import tf
from simclr_tf.models.blocks import Conv, SelectiveKernel, basic_block, squeezed_filters
from simclr_tf.models.heads import Classifier, ProjectionHead
from simclr_tf.models.normalization import BatchNorm
from simclr_tf.models.resnet import DEPTHS, ResNet

NORM_LEAVES = ("gamma", "beta", "moving_mean", "moving_variance")


class Unit(NamedTuple):
    """A convolution or a batch norm of an encoder.

    Attributes:
      shape: The shape of a convolution's kernel, [k, k, in, out], or of a batch norm's variables, [channels].
      section: 0 for the stem, 1-4 for the block groups.
      block: The number of the block in its group.
      part: "stem", "shortcut", "branch" or "excite".
      ratio: "sk" or "se" for the convolution whose width that ratio determines, else "".
      bias: Whether the convolution has a bias.
    """

    shape: tuple[int, ...]
    section: int = 0
    block: int = 0
    part: str = "stem"
    ratio: str = ""
    bias: bool = False

    @property
    def is_conv(self) -> bool:
        """Whether the unit is a convolution."""
        return len(self.shape) == 4


def _conv_norm(kernel: int, inputs: int, outputs: int, **where) -> list[Unit]:
    return [Unit((kernel, kernel, inputs, outputs), **where), Unit((outputs,), **where)]


def _stem(base: int, sk: bool, stem: str) -> list[Unit]:
    if stem == "cifar":
        return _conv_norm(3, 3, base)
    if sk:
        half = base // 2
        return [*_conv_norm(3, 3, half), *_conv_norm(3, half, half), *_conv_norm(3, half, base)]
    return _conv_norm(7, 3, base)


def _branch(basic: bool, inputs: int, filters: int, sk_ratio: float, where: dict) -> list[Unit]:
    if basic:
        return [*_conv_norm(3, inputs, filters, **where), *_conv_norm(3, filters, filters, **where)]
    units = _conv_norm(1, inputs, filters, **where)
    if sk_ratio > 0:
        reduced = max(int(filters * sk_ratio), SelectiveKernel.MIN_REDUCED_FILTERS)
        units += _conv_norm(3, filters, 2 * filters, **where)
        units += [Unit((1, 1, filters, reduced), ratio="sk", **where), Unit((reduced,), **where)]
        units += [Unit((1, 1, reduced, 2 * filters), **where)]
    else:
        units += _conv_norm(3, filters, filters, **where)
    return units + _conv_norm(1, filters, 4 * filters, **where)


def layout(depth: int, width: float, sk_ratio: float, se_ratio: float, stem: str) -> list[Unit]:
    """Lists an encoder's convolutions and batch norms in the order of `ResNet.units()`.

    Args:
      depth: The depth, as in `ResNet`; likewise the other arguments.
      width: The multiplier of the channels.
      sk_ratio: The ratio of selective kernels; 0 for none.
      se_ratio: The ratio of squeeze-and-excitation; 0 for none.
      stem: "imagenet" or "cifar".

    Returns:
      The units, without any variables created.
    """
    make_block, expansion, counts = DEPTHS[depth]
    basic, base = make_block is basic_block, int(64 * width)
    units, channels = _stem(base, sk_ratio > 0, stem), base
    for group, count in enumerate(counts):
        filters = base * 2**group
        outputs = filters * expansion
        for block in range(count):
            where = {"section": group + 1, "block": block}
            if block == 0:
                units += _conv_norm(1, channels, outputs, part="shortcut", **where)
            units += _branch(basic, channels, filters, sk_ratio, {"part": "branch", **where})
            if se_ratio > 0:
                reduced = squeezed_filters(filters, se_ratio)
                where = {"part": "excite", "bias": True, **where}
                units += [Unit((1, 1, outputs, reduced), ratio="se", **where), Unit((1, 1, reduced, outputs), **where)]
            channels = outputs
    return units


def _batch_norm(prefix: str, norm: BatchNorm) -> dict[str, tf.Variable]:
    return {f"{prefix}/{name}": getattr(norm, name) for name in NORM_LEAVES if getattr(norm, name) is not None}


def encoder_variables(encoder: ResNet, prefix: str = "base_model") -> dict[str, tf.Variable]:
    """Returns a built encoder's variables by their published names."""
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
    """Returns a built projection head's variables by their published names."""
    named = {}
    for i, layer in enumerate(head.projections):
        named[f"{prefix}/nl_{i}/dense/kernel"] = layer.dense.kernel
        named.update(_batch_norm(f"{prefix}/nl_{i}/batch_normalization", layer.norm))
    return named


def classifier_variables(classifier: Classifier, prefix: str = "head_supervised") -> dict[str, tf.Variable]:
    """Returns a built classifier's variables by their published names."""
    path = f"{prefix}/linear_layer/dense"
    return {f"{path}/kernel": classifier.dense.kernel, f"{path}/bias": classifier.dense.bias}
