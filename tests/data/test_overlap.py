"""Pictures that are trained on and measured: never inherited, never without a word; and what is opened is told."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from command import simclr

from simclr_tf.analysis import knn
from simclr_tf.core.tf import tf
from simclr_tf.data.dataset import Data
from simclr_tf.data.sources import overlap
from simclr_tf.data.sources.open import open_source
from simclr_tf.data.sources.subset import labelled_subset
from simclr_tf.settings import gin_config
from simclr_tf.settings.run_context import RunContext
from simclr_tf.training import opened
from simclr_tf.workdir import inherited_splits

Image = pytest.importorskip("PIL.Image")
TINY = ("--gin_file=embedded_small", "--gin_file=smoke", "--gin_param=Data.eval_split='test'")
NEXT = ("BATCH_SIZE=8", "EPOCHS=None", "LEARNING_RATE=0.1", "train.steps=1", "train.board_images=0")
ALL = "--gin_param=Data.train_split='all'"


def gin(*params: str) -> tuple[str, ...]:
    return tuple(f"--gin_param={param}" for param in params)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """60 pictures of noise in classes drawn by lot, some of them odd, beside what is passed over."""
    root = tmp_path_factory.mktemp("lots")
    rng = np.random.default_rng(0)
    for i, number in enumerate(rng.permutation(60)):
        of_class = root / "abc"[number % 3]
        of_class.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (10, 200, 3) if i % 6 == 0 else (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(of_class / f"{i}.png")
    for i in range(3):
        (root / f"{i}.HEIC").touch()
    return root


@pytest.fixture(scope="module")
def pretrained(folder, tmp_path_factory):
    """A run that saw all pictures, and what it said."""
    workdir = tmp_path_factory.mktemp("runs") / "pretrain"
    done = simclr("--mode=pretrain", f"--workdir={workdir}", *TINY, *gin(f"Data.source='folder:{folder}'"), ALL)
    assert done.code == 0, done.err
    return workdir, done.out


def test_what_is_opened_is_told(pretrained):
    workdir, out = pretrained
    lines = [line.strip() for line in out.splitlines()]
    assert "splits: train 54, test 6" in lines
    assert any(line.startswith("classes: 3, ") for line in lines)
    assert "passed over: 3 .heic" in lines
    sizes = next(line for line in lines if line.startswith("sizes of 32 looked at: from 20 x 20 to 200 x 10 pixels"))
    assert re.search("; [0-9]+ smaller than the network.s 16, so enlarged; [0-9]+ over 4 times as long as wide", sizes)
    assert "trained on: 6 of the 6 pictures that are measured, with their labels" in out
    told = json.loads((workdir / "result.json").read_text())["evaluation"]["overlap"]
    assert told == {"count": 6, "of": 6, "labels": True}


@pytest.mark.parametrize("mode", ["finetune", "linear_eval"])
def test_labels_to_measure_are_not_inherited(mode, pretrained, tmp_path):
    start = (f"--mode={mode}", f"--init_from={pretrained[0]}", f"--workdir={tmp_path}/w", "--dry_run")
    done = simclr(*start, *gin(*NEXT, "Data.label_fraction=None"))
    assert done.code == 0, done.err
    assert "Data.train_split='all' of --init_from would train on 6 of the 6 pictures that are measured" in done.out
    assert f"{mode}: 54 images of " in done.out and "trained on: " not in done.out
    assert "--init_from was trained on 6 of the 6 pictures that are measured, without their labels" in done.out
    asked = simclr(*start, *gin(*NEXT, "Data.label_fraction=None"), ALL)
    assert f"{mode}: 60 images of " in asked.out
    assert "trained on: 6 of the 6 pictures that are measured, with their labels" in asked.out


def test_neighbours_are_others(pretrained):
    top_1 = {}
    for name, more in (("inherited", ()), ("asked for", (ALL,))):
        done = simclr("--mode=knn", f"--workdir={pretrained[0]}", *gin("knn.num_neighbors=1"), *more)
        assert done.code == 0, done.err
        report = json.loads((pretrained[0] / "knn.json").read_text())
        assert ("overlap" in report) == bool(more)
        assert ("Data.train_split='all' of --workdir would train on" in done.out) != bool(more)
        top_1[name] = report["top_1"]
    assert max(top_1.values()) < 1  # Labels by lot.


def test_planners_inherit_as_training_does(pretrained, tmp_path):
    flags = ("--mode=export_step", "--stage=finetune", f"--init_from={pretrained[0]}", f"--workdir={tmp_path}/step")
    done = simclr(*flags, "--batches=0", *gin(*NEXT))  # Too few, which is said when all has been settled.
    assert "Data.train_split='all' of --init_from would train on 6 of the 6" in done.out and done.code == 1


def test_a_probe_learns_from_labels(pretrained, folder):
    test = open_source(f"folder:{folder}", "test")
    found = [opened.of_run(str(pretrained[0]), "--x", test, None, with_probe=one) for one in (False, True)]
    assert found == [(6, 6, False), (6, 6, True)]


def test_a_classifier_is_measured_on_what_it_learnt(pretrained):
    done = simclr("--mode=eval", f"--workdir={pretrained[0]}", "--gin_param=Data.eval_split='train[:20]'")
    assert done.code == 0, done.err
    assert "trained on: 20 of the 20 pictures that are measured" in done.out
    assert json.loads((pretrained[0] / "eval.json").read_text())["overlap"]["count"] == 20
    page = pretrained[0] / "report.html"
    done = simclr("--mode=report", f"--workdir={pretrained[0]}", *gin("report.map='pca'", "report.max_images=8"))
    assert done.code == 0, done.err
    assert "This run was trained on 6 of the 6 pictures that are measured" in page.read_text()
    assert "This run was trained on 20 of the 20 pictures that are measured" in page.read_text()


def test_classes_that_one_side_lacks(folder, tmp_path, capsys):
    for name in ("train/cat/1", "train/cat/2", "train/eel/1", "test/cat/3", "test/owl/1", "unlabelled/1"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(next(folder.glob("a/*.png")), path)
    place = RunContext(str(tmp_path), tf.distribute.get_strategy())
    train, test = (open_source(f"folder:{tmp_path}", split) for split in ("train+unlabeled", "test"))
    opened.tell(place, train, test)
    assert capsys.readouterr().out.splitlines() == [
        "  splits: test 2, train 3, unlabeled 1",
        "  classes: 3, cat 2, eel 1; 1 without a label",
        "  no picture of owl to train on",
        "  no picture of eel to measure",
    ]


INHERITED = ["Data.source = 'embedded:cifar10_mini'", "Data.train_split = 'train[:50]'", "Data.eval_split = 'test'"]


@pytest.mark.parametrize(
    ("mode", "changes", "params", "splits", "told"),
    [
        ("finetune", {}, [], ("train[:50]", "test"), None),
        ("finetune", {1: "all"}, [], ("train", "test"), "'all' of --x would train on 1,000 of the 1,000"),
        ("finetune", {1: "train+test"}, ["Data.eval_split='test[:7]'"], ("train", "test[:7]"), "7 of the 7"),
        ("finetune", {1: "test[:90%]", 2: "test[90%:]"}, [], ("test[:90%]", "test[90%:]"), None),
        ("finetune", {2: "train[9%:]"}, ["Data.train_split='train'"], ("train", "test"), "eval_split='train[9%:]'"),
        ("finetune", {1: "all", 2: "all"}, [], ("train", "test"), "6,000 of the 6,000"),
        ("finetune", {1: "all"}, ["Data.train_split='all'"], ("all", "test"), None),
        ("knn", {1: "all"}, [], ("train", "test"), "1,000 of the 1,000"),
        ("pretrain", {1: "all"}, [], ("all", "test"), None),
        ("distill", {1: "all"}, [], ("all", "test"), None),
        ("distill", {1: "all"}, ["Distill.alpha=0.5"], ("train", "test"), "1,000 of the 1,000"),
        ("finetune", {}, ["Data.source='folder:x'"], ("train", "test"), "'train[:50]' came with the data of --x"),
        ("finetune", {1: "train"}, ["Data.source='folder:x'"], ("train", "test"), None),
        ("pretrain", {}, ["Data.source='folder:x'"], ("train", "test"), "'train[:50]' came with the data of --x"),
    ],
)  # fmt: skip
def test_inherited_splits(mode, changes, params, splits, told):
    inherited = list(INHERITED)
    for place, split in changes.items():
        inherited[place] = f"{inherited[place].partition(' = ')[0]} = {split!r}"

    def parse(bindings):
        gin_config.parse(mode, gin_params=params, inherited=bindings)

    parse(inherited)
    lines = inherited_splits.settle(parse, inherited, mode=mode, flag="--x", data_dir=None)
    data = Data(**gin_config.bound_values("Data"))
    assert (data.train_split, data.eval_split) == splits
    assert len(lines) == (told is not None)
    assert told is None or told in lines[0]


def test_examples_are_known_by_what_they_are():
    whole, some, test = (open_source("embedded:cifar10_mini", split) for split in ("all", "train[10:30]", "test"))
    assert overlap.between(whole, some, labels=True)[:2] == (20, 20)
    assert overlap.between(some, test, labels=True).count == 0
    assert overlap.between(labelled_subset(some, per_class=1), whole, labels=True)[:2] == (10, 6000)
    unique, own = overlap.rows(open_source("embedded:cifar10_mini", "train[:5]+train[:7]"), some)
    assert list(unique) == [0, 1, 2, 3, 4, 10, 11] and set(own) == {-1}
    assert list(overlap.rows(some, open_source("embedded:cifar10_mini", "train[8:12]"))[1]) == [-1, -1, 0, 1]


def test_an_image_has_no_vote_of_its_own():
    features, labels = np.eye(4) + 0.1, np.array([0, 1, 1, 1])
    scores = knn.predict(features, labels, features[:2], num_classes=2, num_neighbors=1, own=np.array([0, -1]))
    assert list(scores.argmax(axis=1)) == [1, 1]
    everyone = knn.predict(features, labels, features[:1], num_classes=2, num_neighbors=9, own=np.array([0]))
    assert everyone[0, 0] == 0 and everyone[0, 1] > 0
