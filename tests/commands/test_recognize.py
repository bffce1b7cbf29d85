"""Published checkpoints: fixtures filled by the reference folder's rule, networks of all kinds, and damaged files."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable

import published_checkpoints as fixtures
import pytest
import reference
from published_checkpoints import head_shapes, tf1_shapes, variables_of

from simclr_tf.commands.convert import convert, recognize
from simclr_tf.commands.convert.foreign_checkpoint import Source
from simclr_tf.commands.convert.published import layout
from simclr_tf.commands.convert.recognize import read_names, understand
from simclr_tf.commands.convert.saved_model_lists import read_lists
from simclr_tf.core.tf import tf
from simclr_tf.models.blocks import Conv
from simclr_tf.models.network import Network
from simclr_tf.models.resnet import ResNet

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
ENCODERS = [
    {"depth": 18, "width": 1, "sk_ratio": 0.0, "se_ratio": 0.0, "stem": "imagenet"},
    {"depth": 34, "width": 2, "sk_ratio": 0.0, "se_ratio": 0.0, "stem": "cifar"},
    {"depth": 50, "width": 4, "sk_ratio": 0.0, "se_ratio": 0.0, "stem": "imagenet"},
    {"depth": 50, "width": 1, "sk_ratio": 0.0625, "se_ratio": 0.0, "stem": "cifar"},
    {"depth": 101, "width": 2, "sk_ratio": 0.0625, "se_ratio": 0.0, "stem": "imagenet"},
    {"depth": 152, "width": 3, "sk_ratio": 0.0625, "se_ratio": 0.0, "stem": "imagenet"},
    {"depth": 200, "width": 1, "sk_ratio": 0.0, "se_ratio": 0.0, "stem": "imagenet"},
    {"depth": 50, "width": 0.5, "sk_ratio": 0.0, "se_ratio": 0.25, "stem": "imagenet"},
    {"depth": 18, "width": 0.25, "sk_ratio": 0.0, "se_ratio": 0.125, "stem": "cifar"},
    {"depth": 101, "width": 1, "sk_ratio": 0.25, "se_ratio": 0.0625, "stem": "imagenet"},
]


def name_of(encoder: dict) -> str:
    return "r{depth}_{width}x_sk{sk_ratio}_se{se_ratio}_{stem}".format(**encoder)


@functools.lru_cache(maxsize=None)
def built(description: str) -> tuple[Network, Callable]:
    """A network and its outputs in inference mode; tracing is what takes time here."""
    network = Network.from_description(json.loads(description))

    @tf.function
    def outputs(images):
        named = network.outputs(images, training=False)
        return {**named, "logits_from_head_layer_1": network.classifier(named["head_layer_1"])}

    return network, lambda images: {name: value.numpy() for name, value in outputs(images).items()}


def filled(source: str, image_size: int) -> tuple[Network, Callable]:
    """The network of a checkpoint, read as `convert` does, but not written."""
    opened = Source(source)
    found = read_names(opened.shapes, source, "auto") or read_lists(opened.shapes, source)
    architecture = understand(found, opened.shapes, source)
    description = {
        "encoder": architecture.encoder,
        "head": architecture.head,
        "num_classes": architecture.num_classes,
        "classifier_layer": 1,
        "image_size": image_size,
    }
    network, outputs = built(json.dumps(description))
    convert._fill(network, found, opened)
    return network, outputs


# Against the published implementation's numbers ----------------------------------------------------------------------


@pytest.mark.parametrize("path", reference.cases(), ids=lambda path: path.stem)
def test_tf1_checkpoints_agree(path, tmp_path):
    settings, arrays = reference.load(path)
    source = fixtures.write(tmp_path / "model.ckpt-1234", fixtures.tf1(settings["variables"]))
    network, outputs = filled(source, settings["image_size"])
    assert network.encoder.describe() == {
        "depth": settings["depth"],
        "width": settings["width"],
        "sk_ratio": settings["sk_ratio"],
        "se_ratio": 0.0,
        "stem": "cifar" if settings["cifar_stem"] else "imagenet",
    }
    images = reference.images(settings["seed"], 2 * settings["batch"], settings["image_size"])
    actual = outputs(images)
    errors = {
        name: reference.relative(actual[name[5:]], value)
        for name, value in arrays.items()
        if name[5:] in actual and name.startswith("eval/")
    }
    assert len(errors) >= 5
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("kind", ["checkpoint", "saved_model"])
@pytest.mark.parametrize("path", reference.official_cases(), ids=lambda path: path.stem)
def test_tf2_checkpoints_and_saved_models_agree(path, kind, tmp_path):
    case, arrays = reference.load(path)
    tensors = fixtures.tf2(case) if kind == "checkpoint" else fixtures.saved_model(case)
    _, outputs = filled(fixtures.write(tmp_path / "variables", tensors), case["image_size"])
    seed = int(arrays["seed"]) if "seed" in arrays else case["seed"]
    actual = outputs(reference.images(seed, 4, case["image_size"]))
    errors = {name: reference.relative(actual[name], arrays[name]) for name in arrays if name in actual}
    assert len(errors) == 3
    assert max(errors.values()) < 1e-5, errors


# Any depth, width and ratio, in each layout, by shapes alone ---------------------------------------------------------


@pytest.mark.parametrize("encoder", [e for e in ENCODERS if e["width"] <= 1 and e["depth"] < 101], ids=name_of)
def test_the_layout_is_that_of_the_network(encoder):
    encoder = {**encoder, "width": 0.125}
    size = 32

    @tf.function(input_signature=[tf.TensorSpec([2, size, size, 3])])
    def trace(images):
        return network(images)

    network = ResNet(**encoder)
    trace.get_concrete_function()
    actual = [tuple((unit.kernel if isinstance(unit, Conv) else unit.gamma).shape) for unit in network.units()]
    assert [unit.shape for unit in layout(**encoder)] == actual


def block_units(encoder: dict) -> list[list]:
    """The units of the stem and of each block."""
    groups: dict[tuple, list] = {}
    for unit in layout(**encoder):
        groups.setdefault((unit.section, unit.block), []).append(unit)
    return list(groups.values())


def saved_model_shapes(encoder: dict, *, layers=3, classes=1000, frozen_sections=0) -> dict[str, tuple]:
    """Lists in the order in which Keras tracks layers, written down from the two published key maps."""
    trained, rest = [], []
    for units in block_units(encoder):
        if encoder["depth"] < 50:  # conv2d_bn_layers, shortcut_layers, se_layer
            units = sorted(units, key=lambda unit: ("stem", "branch", "shortcut", "excite").index(unit.part))
        for unit in units:
            names = list(variables_of(unit).items())
            learned = [shape for leaf, shape in names if not leaf.startswith("moving")]
            moving = [shape for leaf, shape in names if leaf.startswith("moving")]
            if unit.section < frozen_sections:
                rest += [*learned, *moving]
            else:
                trained += learned
                rest += moving
    keys = {f"model/resnet_model/variables/{len(trained) + i}{VALUE}": shape for i, shape in enumerate(rest)}
    width = recognize.feature_dim(encoder)
    moving = []
    for kernel, center in head_shapes(width, layers):
        trained += [kernel[1:], *([kernel[1:]] if center else []), kernel]
        moving += [kernel[1:]] * 2
    first = 3 * layers - 1
    keys.update({f"model/_projection_head/variables/{first + i}{VALUE}": shape for i, shape in enumerate(moving)})
    if classes:
        trained += [(width, classes), (classes,)]
    keys.update({f"trainable_variables_list/{i}{VALUE}": shape for i, shape in enumerate(trained)})
    return keys


@pytest.mark.parametrize("encoder", ENCODERS, ids=name_of)
def test_any_architecture_is_recognized_by_tf1_names(encoder):
    shapes = tf1_shapes(encoder)
    found = read_names(shapes, "x", "auto")
    architecture = understand(found, shapes, "x")
    assert architecture.encoder == encoder
    assert architecture.head == {"num_layers": 3, "output_dim": 128, "used_layers": 3}
    assert (architecture.num_classes, architecture.classifier_layers[:3]) == (1000, (0, 1, 2))
    assert [group.path for group in found.convs][:2] == ["base_model/conv2d", "base_model/conv2d_1"]
    numbers = [int(group.path.rsplit("_", 1)[1]) for group in found.norms[1:]]
    assert numbers == list(range(1, len(found.norms)))


@pytest.mark.parametrize("frozen_sections", [0, 1, 4, 5])
@pytest.mark.parametrize("encoder", ENCODERS, ids=name_of)
def test_any_architecture_is_recognized_in_a_saved_model(encoder, frozen_sections):
    shapes = saved_model_shapes(encoder, frozen_sections=frozen_sections)
    found = read_lists(shapes, "x")
    architecture = understand(found, shapes, "x")
    assert architecture.encoder == encoder
    assert architecture.head["num_layers"] == 3
    assert architecture.num_classes == 1000
    keys = [
        key
        for group in [*found.convs, *found.norms, *found.dense, *found.dense_norms, found.classifier]
        for key in group.keys.values()
    ]
    assert sorted(keys) == sorted(shapes)


@pytest.mark.parametrize("layers, classes", [(0, 10), (1, 0), (2, 5), (4, 0)])
def test_heads_may_be_missing_or_of_other_depths(layers, classes):
    encoder = ENCODERS[1]
    for read, shapes in (
        (lambda s: read_names(s, "x", "auto"), tf1_shapes(encoder, layers=layers, classes=classes)),
        (lambda s: read_lists(s, "x"), saved_model_shapes(encoder, layers=layers, classes=classes)),
    ):
        architecture = understand(read(shapes), shapes, "x")
        assert (architecture.head or {"num_layers": 0})["num_layers"] == layers
        assert architecture.num_classes == classes
