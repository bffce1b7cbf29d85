"""`--mode=convert`: workdirs, paths of every kind, choices, kills, and what is refused."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import published_checkpoints as fixtures
import pytest
import reference
from command import simclr
from published_checkpoints import convert, tf1_shapes

from simclr_tf.commands.convert import recognize
from simclr_tf.commands.convert.convert import run_convert
from simclr_tf.commands.convert.foreign_checkpoint import Source
from simclr_tf.commands.convert.recognize import read_names
from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.settings.run_context import RunContext
from simclr_tf.workdir.networks import load_network

SMALL = {"depth": 10, "width": 0.125, "sk_ratio": 0.0, "se_ratio": 0.0, "stem": "cifar"}


def small_tf1(*, layers=3, classes=7, prefix="") -> dict[str, np.ndarray]:
    return fixtures.tf1(tf1_shapes(SMALL, layers=layers, classes=classes), prefix)


def test_a_converted_workdir_is_one_like_any_other(tmp_path, capsys):
    source = fixtures.write(tmp_path / "published" / "model.ckpt-1234", small_tf1())
    workdir = tmp_path / "run"
    convert(source, workdir)
    told = capsys.readouterr().out
    for words in (
        "ResNet-10 0.125x",
        "CIFAR stem",
        "3 layers to 128",
        "7 classes",
        "head layer 1",
        "optimizer slots",
        "step 1234",
    ):
        assert words in told
    network, description, path = load_network(str(workdir))
    assert path.endswith("step-1234")
    assert description["class_names"] == [f"class {i}" for i in range(7)]
    assert network.classifier_layer == 1
    np.testing.assert_array_equal(
        network.encoder.stem[0].conv.kernel, reference.value("base_model/conv2d/kernel", [3, 3, 3, 8])
    )
    assert sorted(os.listdir(workdir)) == ["architecture.json", "checkpoints"]
    with pytest.raises(UserError, match="already holds a run"):
        convert(source, workdir)
    with pytest.raises(UserError, match="is already a workdir of this project"):
        convert(workdir, tmp_path / "other")


@pytest.mark.parametrize("killed_at", ["rename", "write_json"])
def test_a_killed_conversion_starts_over(killed_at, tmp_path, monkeypatch):
    source = fixtures.write(tmp_path / "published" / "model.ckpt-1234", small_tf1())
    workdir = tmp_path / "run"
    workdir.mkdir()

    def kill(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if killed_at == "rename":
            patch.setattr(tf.io.gfile, "rename", kill)
        else:
            patch.setattr("simclr_tf.commands.convert.convert.write_json", kill)
        with pytest.raises(KeyboardInterrupt):
            convert(source, workdir)
    assert not (workdir / "architecture.json").exists()
    convert(source, workdir)
    assert sorted(os.listdir(workdir)) == ["architecture.json", "checkpoints"]
    assert load_network(str(workdir))[2].endswith("step-1234")


def test_checkpoints_of_something_else_are_left_alone(tmp_path):
    source = fixtures.write(tmp_path / "published" / "model.ckpt-1", small_tf1())
    mine = tmp_path / "run" / "checkpoints" / "mine"
    mine.parent.mkdir(parents=True)
    mine.write_text("x")
    with pytest.raises(UserError, match="already holds a run"):
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


def told(source, workdir, **settings) -> int:
    place = RunContext(str(workdir), tf.distribute.get_strategy(), source=str(source), dry_run=True)
    return run_convert(place, **settings)["classifier_layer"]


def test_which_layer_the_classifier_reads_can_be_said(tmp_path):
    source = fixtures.write(tmp_path / "pretrained" / "r18" / "model.ckpt-1", small_tf1())
    assert told(source, tmp_path / "w") == 0
    assert told(source, tmp_path / "w", classifier_layer=2) == 2
    with pytest.raises(UserError, match=r"fits only layer\(s\) 0, 1, 2"):
        told(source, tmp_path / "w", classifier_layer=3)
    assert not (tmp_path / "w").exists()


# Path -> head layer that the classifier reads, None where the path does not tell.
KINDS = {
    "simclrv2/finetuned_1pct/r10_1x_sk0": 1,
    "simclrv2/finetuned_10pct/r10_1x_sk0/hub": 1,
    "simclrv2/finetuned_100pct/r10_1x_sk0": 0,
    "simclrv2/distill_1pct/r10_1x_sk0": 0,
    "simclrv2/distill_10pct/r10_1x_sk0": 0,
    "simclrv2/pretrained/r10_1x_sk0": 0,
    "simclrv2/supervised/r10_1x_sk0/saved_model": 0,
    "simclrv1/finetune_10pct/1x": 0,
    "simclrv1/pretrain/1x": 0,
    "r10_finetuned_100pct": 0,
    "finetuned_10pct-r10": 1,
    "FINETUNED_100PCT/R10": 0,
    "Finetuned-10pct/r10": 1,
    "Distilled_10pct/r10": 0,
    "pretrained/simclrv2/finetuned_10pct/r10": 1,  # The deepest folder tells.
    "distill_of_mine/pretrained/r10": 0,
    "runs/mine": None,
    "my_supervised_runs/r10": None,
    "distill_of_mine/r10": None,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return fixtures.write(tmp_path_factory.mktemp("published") / "model.ckpt-1234", small_tf1(classes=10))


@pytest.mark.parametrize("folder", KINDS)
def test_the_path_tells_which_layer_the_classifier_reads(folder, published, tmp_path, capsys, monkeypatch):
    below = tmp_path / folder
    below.mkdir(parents=True)
    for name in os.listdir(os.path.dirname(published)):
        os.symlink(os.path.join(os.path.dirname(published), name), below / name)
    layer = told(below, tmp_path / "w")
    out = capsys.readouterr().out
    assert layer == (1 if KINDS[folder] is None else KINDS[folder])
    assert ("assumed" in out) == (KINDS[folder] is None)
    monkeypatch.chdir(below)
    assert told(".", tmp_path / "w") == layer


def test_what_was_assumed_is_said_whenever_the_classifier_is_used(published, tmp_path, caplog):
    """At once with the way to choose, and by every mode that uses the classifier afterwards."""
    run = tmp_path / "run"
    done = simclr("--mode=convert", f"--source={published}", f"--workdir={run}")
    assert "reads head layer 1 (assumed)" in done.out
    assert "--gin_param=convert.classifier_layer=0 (the encoder's output) or =2 (head layer 2)" in done.out
    few, layer_0 = "--gin_param=Data.eval_split='test[:32]'", "--gin_param=convert.classifier_layer=0"
    for arguments in (
        ["--mode=eval", f"--workdir={run}", few],
        ["--mode=export", f"--workdir={run}", "--dry_run"],
        ["--mode=distill", f"--teacher={run}", f"--workdir={tmp_path / 'student'}", "--dry_run"],
    ):
        caplog.clear()
        done = simclr(*arguments)
        assert done.code == 0, done.err
        assert "assuming that the classifier reads head layer 1" in caplog.text, arguments
    assert "reads head layer 1" in json.loads((run / "eval.json").read_text())["assumed"]
    chosen = simclr("--mode=convert", f"--source={published}", f"--workdir={tmp_path / 'other'}", layer_0)
    assert "reads the encoder's output (as asked)" in chosen.out
    assert "assumed" not in json.loads((tmp_path / "other" / "architecture.json").read_text())


def test_a_head_cut_off_tells_which_layer_the_classifier_reads(tmp_path):
    shortened = {key: value for key, value in small_tf1().items() if not re.search("nl_[12]", key)}
    assert told(fixtures.write(tmp_path / "model.ckpt-1", shortened), tmp_path / "w") == 1


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if not key.startswith(name)}


WRONG = {
    "unrelated": (lambda _: {"dense/kernel": np.zeros([3, 4], np.float32)}, "is not a SimCLR checkpoint"),
    "a missing convolution": (without("base_model/conv2d_9/"), "convolutions"),
    "a missing mean": (
        without("base_model/batch_normalization_4/moving_mean"),
        "has no base_model/batch_normalization_4/moving_mean",
    ),
    "a missing head kernel": (without("head_contrastive/nl_1/dense"), "dense layers"),
    "no encoder": (without("base_model/"), "no encoder"),
    "a stranger": (
        lambda t: {**t, "head_rotation/dense/kernel": np.zeros([3, 4], np.float32)},
        "variables that a SimCLR network lacks",
    ),
    "a stranger inside": (
        lambda t: {**t, "base_model/gate/kernel": np.zeros([3, 4], np.float32)},
        "variables that a SimCLR network lacks",
    ),
    "another shape": (
        lambda t: {**t, "base_model/conv2d_3/kernel": np.zeros([5, 5, 8, 8], np.float32)},
        r"ResNet-10 0.125x, CIFAR stem, has \[3, 3, 8, 8\] where base_model/conv2d_3/kernel is \[5, 5, 8, 8\]",
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
