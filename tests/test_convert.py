"""Published checkpoints: fixtures filled by the reference folder's rule, networks of all kinds, and damaged files."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable

import fixtures_published as fixtures
import numpy as np
import pytest
import reference
from command import simclr

from simclr_tf import checkpoint
from simclr_tf.convert import recognize, verb
from simclr_tf.convert.recognize import read_names, understand
from simclr_tf.convert.saved_model import read_lists
from simclr_tf.convert.source import Source
from simclr_tf.errors import UserError
from simclr_tf.models.blocks import Conv
from simclr_tf.models.network import Network
from simclr_tf.models.published import layout
from simclr_tf.models.resnet import ResNet
from simclr_tf.place import Place
from simclr_tf.stack import tf

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


def convert(source, workdir, **settings) -> dict:
    return verb.run_convert(Place(str(workdir), tf.distribute.get_strategy(), source=str(source)), **settings)


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
    verb._fill(network, found, opened)
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


# The verb ------------------------------------------------------------------------------------------------------------

SMALL = {"depth": 18, "width": 0.125, "sk_ratio": 0.0, "se_ratio": 0.0, "stem": "cifar"}


def small_tf1(*, layers=3, classes=7, prefix="") -> dict[str, np.ndarray]:
    return fixtures.tf1(tf1_shapes(SMALL, layers=layers, classes=classes), prefix)


def test_a_converted_workdir_is_one_like_any_other(tmp_path, capsys):
    source = fixtures.write(tmp_path / "published" / "model.ckpt-1234", small_tf1())
    workdir = tmp_path / "run"
    convert(source, workdir)
    told = capsys.readouterr().out
    for words in (
        "ResNet-18 0.125x",
        "CIFAR stem",
        "3 layers to 128",
        "7 classes",
        "head layer 1",
        "optimizer slots",
        "step 1234",
    ):
        assert words in told
    network, description, path = checkpoint.load_network(str(workdir))
    assert path.endswith("step-1234")
    assert description["class_names"] == [f"class {i}" for i in range(7)]
    assert network.classifier_layer == 1
    np.testing.assert_array_equal(
        network.encoder.stem[0].conv.kernel, reference.value("base_model/conv2d/kernel", [3, 3, 3, 8])
    )
    assert sorted(os.listdir(workdir)) == ["architecture.json", "checkpoints"]
    with pytest.raises(UserError, match="holds a run already"):
        convert(source, workdir)
    with pytest.raises(UserError, match="is a workdir of this project already"):
        convert(workdir, tmp_path / "other")


@pytest.mark.parametrize("killed_at", ["rename", "write_json"])
def test_a_killed_conversion_starts_over(killed_at, tmp_path, monkeypatch):
    source = fixtures.write(tmp_path / "published" / "model.ckpt-1234", small_tf1())
    workdir = tmp_path / "run"
    workdir.mkdir()

    def kill(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((tf.io.gfile, "rename") if killed_at == "rename" else (verb.records, "write_json")), kill)
        with pytest.raises(KeyboardInterrupt):
            convert(source, workdir)
    assert not (workdir / "architecture.json").exists()
    convert(source, workdir)
    assert sorted(os.listdir(workdir)) == ["architecture.json", "checkpoints"]
    assert checkpoint.load_network(str(workdir))[2].endswith("step-1234")


def test_checkpoints_of_something_else_are_left_alone(tmp_path):
    source = fixtures.write(tmp_path / "published" / "model.ckpt-1", small_tf1())
    mine = tmp_path / "run" / "checkpoints" / "mine"
    mine.parent.mkdir(parents=True)
    mine.write_text("x")
    with pytest.raises(UserError, match="holds a run already"):
        convert(source, tmp_path / "run")
    assert mine.read_text() == "x"


@pytest.mark.parametrize("given", ["prefix", "index", "folder", "hub", "parent of hub", "latest"])
def test_every_kind_of_path_is_found(given, tmp_path):
    tensors = {"global_step": np.int64(5), "base_model/conv2d/kernel": np.zeros([3, 3, 3, 8], np.float32)}
    folder = tmp_path / "published"
    if "hub" in given:
        prefix = fixtures.write(folder / "hub" / "variables" / "variables", tensors)
    else:
        prefix = fixtures.write(folder / "model.ckpt-20", tensors)
        fixtures.write(folder / "model.ckpt-9", {"other": np.zeros(1, np.float32)})
    path = {
        "prefix": prefix,
        "index": f"{prefix}.index",
        "hub": str(folder / "hub"),
        "latest": str(folder),
    }.get(given, str(folder))
    if given == "latest":
        (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-20"\n')
    assert Source(path).path == prefix
    assert Source(path).read_step(recognize.STEP_KEYS) == 5


def test_trained_weights_are_preferred_and_ema_ones_can_be_had(tmp_path):
    shapes = tf1_shapes(SMALL, classes=7)
    averaged = {
        f"ema_model/{name}": np.zeros(shape, np.float32) for name, shape in shapes.items() if "supervised" not in name
    }
    source = Source(fixtures.write(tmp_path / "both", {**fixtures.tf1(shapes), **averaged}))
    assert read_names(source.shapes, "x", "auto").convs[0].path == "base_model/conv2d"
    found = read_names(source.shapes, "x", "ema")
    assert found.convs[0].path == "ema_model/base_model/conv2d"
    assert found.classifier.path == "head_supervised/linear_layer/dense"
    only = Source(fixtures.write(tmp_path / "only", averaged))
    assert read_names(only.shapes, "x", "auto").variant == "ema"
    with pytest.raises(UserError, match="no trained weights"):
        read_names(only.shapes, "x", "trained")


def test_which_layer_the_classifier_reads_can_be_said(tmp_path):
    fixtures.write(tmp_path / "pretrained" / "r18" / "model.ckpt-1", small_tf1())
    place = Place(
        str(tmp_path / "w"), tf.distribute.get_strategy(), source=str(tmp_path / "pretrained" / "r18"), dry_run=True
    )
    assert verb.run_convert(place)["classifier_layer"] == 0
    assert verb.run_convert(place, classifier_layer=2)["classifier_layer"] == 2
    with pytest.raises(UserError, match=r"fits only layer\(s\) 0, 1, 2"):
        verb.run_convert(place, classifier_layer=3)
    assert not (tmp_path / "w").exists()


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if not key.startswith(name)}


WRONG = {
    "unrelated": (lambda _: {"dense/kernel": np.zeros([3, 4], np.float32)}, "is no SimCLR checkpoint"),
    "a missing convolution": (without("base_model/conv2d_9/"), "convolutions"),
    "a missing mean": (
        without("base_model/batch_normalization_4/moving_mean"),
        "has no base_model/batch_normalization_4/moving_mean",
    ),
    "a missing head kernel": (without("head_contrastive/nl_1/dense"), "dense layers"),
    "no encoder": (without("base_model/"), "no encoder"),
    "a stranger": (lambda t: {**t, "head_rotation/dense/kernel": np.zeros([3, 4], np.float32)}, "without a place"),
    "a stranger inside": (lambda t: {**t, "base_model/gate/kernel": np.zeros([3, 4], np.float32)}, "without a place"),
    "another shape": (
        lambda t: {**t, "base_model/conv2d_3/kernel": np.zeros([5, 5, 8, 8], np.float32)},
        r"ResNet-18 0.125x, CIFAR stem, has \[3, 3, 8, 8\] where base_model/conv2d_3/kernel is \[5, 5, 8, 8\]",
    ),
    "no numbers": (
        lambda t: {**t, "base_model/conv2d/kernel": np.full([3, 3, 3, 8], np.nan, np.float32)},
        "not finite",
    ),
    "a bias too many": (lambda t: {**t, "base_model/conv2d/bias": np.zeros([8], np.float32)}, "has no place"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_placed_is_refused_and_nothing_written(kind, tmp_path):
    change, message = WRONG[kind]
    source = fixtures.write(tmp_path / "ckpt", change(small_tf1()))
    with pytest.raises(UserError, match=message) as error:
        convert(source, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("cut", ["data", "index", "all data", "all index", "no data"])
def test_a_truncated_checkpoint_is_refused_and_nothing_written(cut, tmp_path):
    source = fixtures.write(tmp_path / "ckpt", small_tf1())
    file = tmp_path / ("ckpt.index" if "index" in cut else "ckpt.data-00000-of-00001")
    content = file.read_bytes()
    if cut == "no data":
        file.unlink()
    else:
        file.write_bytes(b"" if cut.startswith("all") else content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot be read") as error:
        convert(source, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_empty_and_missing_sources_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("nothing")
    for name, message in (
        ("empty", "has no checkpoint"),
        ("text", "is not a TensorFlow checkpoint"),
        ("gone", "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            convert(tmp_path / name, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_published_checkpoint_goes_all_the_way(tmp_path):
    """Through every stage that can start from it, to an export, that export's student and the student's export."""
    measured = ["--gin_param=Data.eval_split='test[:32]'"]
    few = {"Data.train_split": "'train[:64]'", "train.steps": 2, "train.epochs": None, "train.global_batch_size": 16}
    few.update({"train.precision": "'float32'", "train.board_images": 0})
    few = [*measured, *(f"--gin_param={name}={value}" for name, value in few.items())]

    def call(mode: str, workdir: str, params: tuple | list = (), **flags) -> str:
        sources = [f"--{name}={value}" for name, value in flags.items()]
        done = simclr(f"--mode={mode}", f"--workdir={tmp_path / workdir}", *sources, *params)
        assert done.code == 0, f"{mode}: {done.err}"
        return done.out

    source = fixtures.write(tmp_path / "published" / "model.ckpt-1234", small_tf1(classes=10))
    call("convert", "run", source=source)
    converted = tmp_path / "run"
    assert "head                     restored" in call("finetune", "finetuned", few, init_from=converted)
    assert "encoder/stem             restored" in call("linear_eval", "linear", few, init_from=converted)
    assert "encoder/stem             restored" in call("pretrain", "on", few, init_from=converted)
    assert "airplane" in call("eval", "run", measured)  # The checkpoint only numbers its classes.
    call("export", "run", output=tmp_path / "export")
    exported = tmp_path / "export" / "classifier" / "1234"
    for teacher, student in ((converted, "student"), (exported, "student_of_export")):
        call("distill", student, few, teacher=teacher)
    students = (tmp_path / name / "result.json" for name in ("student", "student_of_export"))
    last = [json.loads(path.read_text())["last_step"] for path in students]
    # Students start from other weights: reading the teacher draws random numbers, too.
    assert last[0]["teacher_accuracy"] == last[1]["teacher_accuracy"]
    assert last[0]["loss"] == pytest.approx(last[1]["loss"], rel=1e-2)
    call("export", "student", output=tmp_path / "again")
    call("distill", "grandchild", few, teacher=tmp_path / "again" / "classifier" / "2")
