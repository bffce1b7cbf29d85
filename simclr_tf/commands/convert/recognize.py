"""Recognizes a SimCLR network in a published checkpoint by the names and shapes of its variables.

Checkpoints come in three layouts. Each has its own reader, which sorts the variables into one common order; after that,
shapes alone determine the architecture. The layouts name variables as follows:

- TF1 checkpoints and hub modules by scope: `base_model/conv2d_7/kernel`.
- TF2 training checkpoints by the path of attributes: `model/resnet_model/block_groups/0/layers/1/...`.
- TF2 SavedModels by the shortest such path, a position in a list: `trainable_variables_list/19`,
  `model/_projection_head/variables/10`. The lists are in the order of tracking (see `saved_model_lists.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from simclr_tf.commands.convert.published import NORM_LEAVES, Unit, layout
from simclr_tf.core.errors import UserError
from simclr_tf.models.blocks import basic_block
from simclr_tf.models.resnet import DEPTHS

Shape = tuple  # of ints

DEFAULT_SK_RATIO = 0.0625
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


class Group(NamedTuple):
    """The variables of one layer.

    Attributes:
      path: The common part of their names.
      keys: Leaf ("kernel", "gamma", ..) -> key in the checkpoint.
    """

    path: str
    keys: dict[str, str]


class Found(NamedTuple):
    """The variables that a reader found.

    Attributes:
      layout: The name of the layout, for the report.
      convs: The encoder's convolutions in the order of `ResNet.units()`.
      norms: The encoder's batch norms, in the same order.
      dense: The projection head's dense layers, first to last.
      dense_norms: The batch norms of these layers.
      classifier: The linear classifier, or None.
      ignored: Kind (optimizer slots, steps, ..) -> number of keys that do not belong to a network.
      variant: "", or "ema" for moving averages of the weights.
      others: The variants that the checkpoint has as well.
    """

    layout: str
    convs: list[Group]
    norms: list[Group]
    dense: list[Group]
    dense_norms: list[Group]
    classifier: Group | None
    ignored: dict[str, int]
    variant: str = ""
    others: tuple[str, ...] = ()


class Architecture(NamedTuple):
    """The architecture that the shapes imply.

    Attributes:
      encoder: The keywords of `ResNet`.
      head: The keywords of `ProjectionHead` without its input's width, or None.
      num_classes: The number of classes of the classifier, 0 for no classifier.
      classifier_layers: The layers whose width fits the classifier; 0 is the encoder's output.
    """

    encoder: dict
    head: dict | None
    num_classes: int
    classifier_layers: tuple[int, ...]


def published_order(units: list[Unit]) -> list[int]:
    """Returns the order of creation, which is that of `layout`."""
    return list(range(len(units)))


def matching_encoders(kernels: list[Shape], order: Callable[[list[Unit]], list[int]] = published_order) -> list[dict]:
    """Returns the keywords of every `ResNet` whose convolutions have these shapes.

    Args:
      kernels: The shapes of the convolutions' kernels.
      order: A function from units in the order of `layout` to their indices in the order of `kernels`.
    """
    return [encoder for encoder in _candidates(kernels, order) if _kernels(encoder, order) == kernels]


def _convs(encoder: dict, order: Callable) -> list[Unit]:
    units = layout(**encoder)
    return [units[i] for i in order(units) if units[i].is_conv]


def _kernels(encoder: dict, order: Callable) -> list[Shape]:
    return [unit.shape for unit in _convs(encoder, order)]


def _candidates(kernels: list[Shape], order: Callable = published_order) -> list[dict]:
    """Returns the architectures with as many convolutions, and with the width and ratios that the shapes imply."""
    if not kernels or len(kernels[0]) != 4 or kernels[0][2] != 3:
        return []
    first = kernels[0][3]
    found = []
    for depth in DEPTHS:
        for stem in ("imagenet", "cifar"):
            for sk in (False,) if DEPTHS[depth][0] is basic_block else (False, True):
                # ResNet-D's stem, which comes with selective kernels, starts at half the width.
                base = 2 * first if sk and stem == "imagenet" else first
                if base % 2:
                    continue
                width = base / 64
                shape = {"depth": depth, "width": int(width) if width == int(width) else width, "stem": stem}
                for se in (False, True):
                    ratios = {"sk": float(sk) and DEFAULT_SK_RATIO, "se": float(se) and 0.25}
                    found += _with_ratios(shape, ratios, kernels, order)
    return found


def _with_ratios(shape: dict, ratios: dict[str, float], kernels: list[Shape], order: Callable) -> list[dict]:
    convs = _convs({**shape, "sk_ratio": ratios["sk"], "se_ratio": ratios["se"]}, order)
    if len(convs) != len(kernels):
        return []
    options = {"sk": [ratios["sk"]], "se": [ratios["se"]]}
    for kind in options:
        places = [i for i, unit in enumerate(convs) if unit.ratio == kind]
        if not places or len(kernels[places[-1]]) != 4:
            continue
        # The widest block determines the ratio best. Half a channel more makes up for rounding down.
        _, _, inputs, reduced = kernels[places[-1]]
        if kind == "se":  # Relative to the channels inside the block, not to its output.
            inputs //= DEPTHS[shape["depth"]][1]
        if inputs > 0:
            options[kind] += [r for r in (reduced / inputs, (reduced + 0.5) / inputs) if 0 < r <= 1]
        if kind == "se":  # Unlike `sk`, it has no published default: the value given only laid out the units.
            options[kind] = options[kind][1:]
    return [{**shape, "sk_ratio": sk, "se_ratio": se} for sk in _unique(options["sk"]) for se in _unique(options["se"])]


def _unique(values: list[float]) -> list[float]:
    return list(dict.fromkeys(values))


def understand(found: Found, shapes: dict[str, Shape], path: str) -> Architecture:
    """Derives the architecture, and checks that every variable it needs exists and has the right shape.

    Args:
      found: The result of a reader.
      shapes: Key -> shape.
      path: The checkpoint, for messages.

    Returns:
      The architecture.

    Raises:
      UserError: This project cannot build the network.
    """
    kernels = [_shape(group, "kernel", shapes, path) for group in found.convs]
    encoders = matching_encoders(kernels)
    if not encoders:
        raise UserError(_no_match(found, kernels, path))
    encoder = encoders[0]
    units = layout(**encoder)
    _check_biases(found, [unit for unit in units if unit.is_conv], shapes, path)
    norms = [unit for unit in units if not unit.is_conv]
    if len(found.norms) != len(norms):
        raise UserError(
            f"{path} looks like ResNet-{encoder['depth']}, which has {len(norms)} batch norms, but {len(found.norms)} "
            "were found; it is incomplete: copy it again, or give another --source"
        )
    for group, unit in zip(found.norms, norms):
        _check_norm(group, unit.shape, shapes, path)
    head = _head(found, encoder, shapes, path)
    classes, layers = _classifier(found, encoder, shapes, path)
    return Architecture(encoder, head, classes, layers)


def feature_dim(encoder: dict) -> int:
    """Returns the width of an encoder's output."""
    return [unit for unit in layout(**encoder) if unit.part == "branch"][-1].shape[-1]


def _shape(group: Group, leaf: str, shapes: dict[str, Shape], path: str) -> Shape:
    if leaf not in group.keys:
        raise UserError(f"{path} has no {group.path}/{leaf}; it is incomplete: copy it again, or give another --source")
    return shapes[group.keys[leaf]]


def _check_norm(group: Group, shape: Shape, shapes: dict[str, Shape], path: str, center: bool = True) -> None:
    for leaf in NORM_LEAVES:
        if leaf == "beta" and not center:
            continue
        actual = _shape(group, leaf, shapes, path)
        if actual != shape:
            raise UserError(
                f"{group.keys[leaf]} in {path} has shape {list(actual)}, not {list(shape)}; give another --source"
            )


def _check_biases(found: Found, convs: list[Unit], shapes: dict[str, Shape], path: str) -> None:
    for group, unit in zip(found.convs, convs):
        if unit.bias and _shape(group, "bias", shapes, path) != unit.shape[-1:]:
            raise UserError(f"{group.keys['bias']} in {path} does not fit its kernel; give another --source")
        if "bias" in group.keys and not unit.bias:
            raise UserError(
                f"{group.keys['bias']} in {path} has no place: this convolution has no bias in SimCLR networks"
            )


def _no_match(found: Found, kernels: list[Shape], path: str) -> str:
    """Describes the nearest architecture and the first difference from it."""
    candidates = [(encoder, _kernels(encoder, published_order)) for encoder in _candidates(kernels)]
    text = f"{path} has {len(kernels)} convolutions under {found.layout} names"
    if candidates:
        agreeing = [next(i for i, (a, b) in enumerate(zip(shape, kernels)) if a != b) for _, shape in candidates]
        best = max(range(len(candidates)), key=agreeing.__getitem__)
        place = agreeing[best]
        encoder, expected = candidates[best]
        return (
            f"{text}; the nearest network, {describe_encoder(encoder)}, has {list(expected[place])} where "
            f"{found.convs[place].keys['kernel']} is {list(kernels[place])}; no network of this project fits"
        )
    counts = [sum(unit.is_conv for unit in layout(depth, 1, 0.0, 0.0, "cifar")) for depth in DEPTHS]
    return (
        f"{text}, and no ResNet of depth {', '.join(map(str, DEPTHS))} has that many (plain ones have "
        f"{', '.join(map(str, counts))}); it is incomplete or another network: give another --source"
    )


def describe_encoder(encoder: dict) -> str:
    """Names an encoder in words."""
    text = f"ResNet-{encoder['depth']} {encoder['width']:g}x"
    text += f" with selective kernels (ratio {encoder['sk_ratio']:g})" if encoder["sk_ratio"] else ""
    text += f" with squeeze-and-excitation (ratio {encoder['se_ratio']:g})" if encoder["se_ratio"] else ""
    return f"{text}, {'ImageNet' if encoder['stem'] == 'imagenet' else 'CIFAR'} stem"


def _head(found: Found, encoder: dict, shapes: dict[str, Shape], path: str) -> dict | None:
    if not found.dense:
        return None
    if len(found.dense) != len(found.dense_norms):
        raise UserError(
            f"{path} has {len(found.dense)} dense layers, but {len(found.dense_norms)} batch norms in its projection "
            "head; each layer must have one of each"
        )
    width = inputs = feature_dim(encoder)
    for i, (dense, norm) in enumerate(zip(found.dense, found.dense_norms)):
        kernel = _shape(dense, "kernel", shapes, path)
        last = "beta" not in norm.keys
        if "bias" in dense.keys:
            raise UserError(
                f"{dense.keys['bias']} in {path} has no place: dense layers of projection heads have no bias here"
            )
        if last != (i == len(found.dense) - 1) and last:
            raise UserError(
                f"{norm.path} in {path} has no beta, but only the last layer of a projection head may lack one"
            )
        if len(kernel) != 2 or kernel[0] != inputs or (not last and kernel[1] != width):
            raise UserError(
                f"{dense.keys['kernel']} in {path} is {list(kernel)}, not [{inputs}, {'any' if last else width}], "
                "so this project cannot build the projection head"
            )
        _check_norm(norm, kernel[1:], shapes, path, center=not last)
        inputs = kernel[1]
    layers = len(found.dense)
    if (
        "beta" in found.dense_norms[-1].keys
    ):  # The checkpoint keeps only hidden layers; the published head has three layers in all.
        return {"num_layers": max(3, layers + 1), "output_dim": 128, "used_layers": layers}
    return {"num_layers": layers, "output_dim": inputs, "used_layers": layers}


def _classifier(found: Found, encoder: dict, shapes: dict[str, Shape], path: str) -> tuple[int, tuple[int, ...]]:
    if found.classifier is None:
        return 0, ()
    kernel = _shape(found.classifier, "kernel", shapes, path)
    bias = _shape(found.classifier, "bias", shapes, path)
    widths = [feature_dim(encoder)]
    widths += [shapes[dense.keys["kernel"]][1] for dense in found.dense]
    layers = tuple(i for i, width in enumerate(widths) if len(kernel) == 2 and kernel[0] == width)
    if not layers or bias != kernel[1:]:
        raise UserError(
            f"{found.classifier.keys['kernel']} in {path} has shape {list(kernel)} (bias {list(bias)}), which fits no "
            f"output of this network ({', '.join(str(w) for w in widths)} wide)"
        )
    return kernel[1], layers


# The readers ----------------------------------------------------------------------------------------------------------

_TF1 = re.compile(
    r"^(?P<prefix>(?:.*/)?)(?P<scope>base_model|head_contrastive|head_supervised)/(?P<layer>.+)/"
    r"(?P<leaf>kernel|bias|gamma|beta|moving_mean|moving_variance)$"
)
_TF2 = re.compile(
    r"^(?P<prefix>(?:.*/)?)(?P<scope>resnet_model|_projection_head|supervised_head)/(?P<layer>.+)/"
    r"(?P<leaf>kernel|bias|gamma|beta|moving_mean|moving_variance)" + re.escape(_VALUE) + "$"
)
_BOOKKEEPING = (
    (
        "optimizer slots",
        re.compile(r"/\.OPTIMIZER_SLOT/|/(Momentum|LARSOptimizer|ExponentialMovingAverage|Adam(_1)?)$"),
    ),
    ("optimizer values", re.compile(r"(^|/)optimizer/|^(beta[12]_power|learning_rate)$")),
    ("steps", re.compile(r"^(global_step|step|save_counter|train_steps)(" + re.escape(_VALUE) + r")?$")),
    ("memory of past keys", re.compile(r"(^|/|_)(memory|queue)(_|/|$)")),
    ("object graph", re.compile(r"^_CHECKPOINTABLE_OBJECT_GRAPH$")),
)
STEP_KEYS = [name + suffix for name in ("global_step", "step", "save_counter") for suffix in ("", _VALUE)]


def bookkeeping(key: str) -> str | None:
    """Returns the kind of a key that does not belong to a network, or None if it does."""
    return next((kind for kind, pattern in _BOOKKEEPING if pattern.search(key)), None)


def read_names(shapes: dict[str, Shape], path: str, weights: str) -> Found | None:
    """Reads TF1 and TF2 training checkpoints, whose names identify each variable.

    Args:
      shapes: Key -> shape.
      path: The checkpoint, for messages.
      weights: "auto", "trained" or "ema".

    Returns:
      The variables found, or None if no key has a name of these kinds.

    Raises:
      UserError: Some keys have such names, but other keys have no place in a network.
    """
    for name, pattern, order in (("TF1", _TF1, _tf1_unit), ("TF2", _TF2, _tf2_unit)):
        matches = {
            key: match for key, match in ((k, pattern.match(k)) for k in shapes) if match and not bookkeeping(key)
        }
        if not matches:
            continue
        scopes = [m["scope"] for m in matches.values()]
        if "base_model" not in scopes and "resnet_model" not in scopes:
            raise UserError(
                f"{path} has heads but no encoder (no base_model/ or resnet_model/ variables); give another checkpoint"
            )
        ignored: dict[str, int] = {}
        unknown = []
        for key in shapes:
            if key not in matches:
                kind = bookkeeping(key) or _slot(key, matches)
                ignored[kind] = ignored.get(kind, 0) + 1
                unknown += [key] if not kind else []
        refuse_unknown(unknown, path)
        return _sort(name, matches, order, ignored, path, weights)
    return None


def _slot(key: str, matches: dict) -> str:
    """Recognizes an optimizer's slot, which is stored under the name of its variable."""
    return "optimizer slots" if key.rsplit("/", 1)[0] in matches else ""


def refuse_unknown(unknown: list[str], path: str) -> None:
    """Raises a UserError if there are keys without a place in a network."""
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(
            f"{path} has variables that a SimCLR network lacks: {sorted(unknown)[0]}{more}; give another checkpoint"
        )


def _sort(name: str, matches: dict, order, ignored: dict[str, int], path: str, weights: str) -> Found:
    prefixes = sorted({m["prefix"] for m in matches.values() if m["scope"] in ("base_model", "resnet_model")}, key=len)
    variants = {("ema" if "ema" in prefix else "trained"): prefix for prefix in reversed(prefixes)}
    if len(variants) < len(prefixes):
        raise UserError(
            f"{path} has several networks ({', '.join(p or '(no prefix)' for p in prefixes)}); give another checkpoint"
        )
    wanted = "trained" if weights == "auto" and "trained" in variants else "ema" if weights == "auto" else weights
    if wanted not in variants:
        raise UserError(f"{path} has no {wanted} weights, only {', '.join(variants)}; set convert.weights to 'auto'")
    prefix = variants[wanted]
    groups: dict[str, dict[tuple, Group]] = {"encoder": {}, "head": {}, "classifier": {}}
    left_out = 0
    for key, match in matches.items():
        part = {
            "base_model": "encoder",
            "resnet_model": "encoder",
            "head_contrastive": "head",
            "_projection_head": "head",
        }
        part = part.get(match["scope"], "classifier")
        # The published code averages the encoder and the projection head, never the classifier.
        if match["prefix"] != prefix and not (part == "classifier" and not _has(matches, prefix, "supervised")):
            left_out += 1
            continue
        place = order(match["scope"], match["layer"])
        if place is None:
            refuse_unknown([key], path)
        group = groups[part].setdefault(place, Group(key[: match.end("layer")], {}))
        group.keys[match["leaf"]] = key
    if left_out:
        ignored[f"variables of the {'trained' if wanted == 'ema' else 'ema'} weights"] = left_out

    def kind(part: str, which: str) -> list[Group]:
        chosen = {
            place: group
            for place, group in groups[part].items()
            if (not _NORM.isdisjoint(group.keys)) == (which == "norm")
        }
        return [chosen[place] for place in sorted(chosen)]

    classifiers = kind("classifier", "dense")
    return Found(
        layout=name,
        convs=kind("encoder", "conv"),
        norms=kind("encoder", "norm"),
        dense=kind("head", "dense"),
        dense_norms=kind("head", "norm"),
        classifier=classifiers[0] if classifiers else None,
        ignored=ignored,
        variant="ema" if wanted == "ema" else "",
        others=tuple(v for v in variants if v != wanted),
    )


_NORM = frozenset(NORM_LEAVES)


def _has(matches: dict, prefix: str, word: str) -> bool:
    return any(m["prefix"] == prefix and word in m["scope"] for m in matches.values())


def _tf1_unit(scope: str, layer: str) -> tuple | None:
    """Returns a layer's place in its scope, or None if the published code makes no such layer."""
    if scope == "base_model":
        match = re.fullmatch(r"(?:conv2d|batch_normalization)(?:_(\d+))?", layer)
        # Convolutions and batch norms are numbered separately.
        return (layer.startswith("batch"), int(match[1] or 0)) if match else None
    if scope == "head_contrastive":
        match = re.fullmatch(r"n?l_(\d+)/(dense|batch_normalization)(?:_\d+)?", layer)
        return (match[2] != "dense", int(match[1])) if match else None
    return (0,) if re.fullmatch(r"linear_layer/dense(?:_\d+)?", layer) else None


# The order inside a layer that has several convolutions: selective kernels and squeeze-and-excitation.
_INNER = {
    "conv2d": 0,
    "conv2d_fixed_padding/conv2d": 0,
    "batch_norm_relu/bn": 1,
    "conv2d_0": 2,
    "batch_norm_relu_1/bn": 3,
    "conv2d_1": 4,
    "bn": 0,
    "se_reduce": 5,
    "se_expand": 6,
}
_SHORTCUTS = ("shortcut_layers", "projection_layers")


def _tf2_unit(scope: str, layer: str) -> tuple | None:
    if scope == "resnet_model":
        match = re.fullmatch(r"initial_conv_relu_max_pool/(\d+)/(.+)", layer)
        if match:
            return _placed((0, 0, 0, int(match[1])), match[2])
        match = re.fullmatch(r"block_groups/(\d+)/layers/(\d+)/(\w+?_layers)/(\d+)/(.+)", layer)
        if match:
            part = 0 if match[3] in _SHORTCUTS else 1
            return _placed((int(match[1]) + 1, int(match[2]), part, int(match[4])), match[5])
        match = re.fullmatch(r"block_groups/(\d+)/layers/(\d+)/se_layer/(.+)", layer)
        return _placed((int(match[1]) + 1, int(match[2]), 2, 0), match[3]) if match else None
    if scope == "_projection_head":
        match = re.fullmatch(r"linear_layers/(\d+)/(dense|bn_relu/bn)", layer)
        return (match[2] != "dense", int(match[1])) if match else None
    return (0,) if layer == "linear_layer/dense" else None


def _placed(place: tuple, inner: str) -> tuple | None:
    return (*place, _INNER[inner]) if inner in _INNER else None
