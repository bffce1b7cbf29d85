"""Wrong inputs over all modes: one clear line, the right exit code, files as they were.

Typing errors, gin and values, which need no run and no data to go wrong, are in `test_cli.py` and `test_gin_config.py`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command import simclr
from PIL import Image

from simclr_tf.core.tf import tf

ROOT = Path(__file__).parents[1]
TINY = ("--gin_file=embedded_small", "--gin_file=smoke", "--gin_param=ResNet.depth=6", "--gin_param=train.steps=1")
HAS_ADDONS = importlib.util.find_spec("tensorflow_addons") is not None
OLD_TENSORFLOW = tuple(map(int, tf.__version__.split(".")[:2])) < (2, 16)


def trained(mode: str, workdir: Path, *params: str) -> Path:
    outcome = simclr(f"--mode={mode}", f"--workdir={workdir}", *TINY, *(f"--gin_param={param}" for param in params))
    assert outcome.code == 0, outcome.err
    return workdir


def noise(path: Path, height: int = 20, width: int = 20, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    channels = {"RGB": [3], "L": []}[mode]
    Image.fromarray(rng.integers(0, 256, [height, width, *channels], dtype=np.uint8)).save(path)


def bomb(path: Path) -> None:
    """A PNG of a few hundred bytes that claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    """Runs and data, sound and spoilt; no test may change them."""
    root = tmp_path_factory.mktemp("env")
    run = trained("pretrain", root / "run")
    trained("pretrain", root / "blind", "Pretrain.probe=False")
    for name in ("cut", "garbage", "no_checkpoint", "no_result", "wild_architecture"):
        shutil.copytree(run, root / name)
    for path in (root / "cut" / "checkpoints").glob("*.data*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    for path in (root / "garbage" / "checkpoints").glob("step*"):
        path.write_bytes(b"no checkpoint" * 100)
    shutil.rmtree(root / "no_checkpoint" / "checkpoints")
    (root / "no_result" / "result.json").write_text("{half")
    described = json.loads((run / "architecture.json").read_text())
    del described["network"]["encoder"]
    (root / "wild_architecture" / "architecture.json").write_text(json.dumps(described))

    for i in range(8):
        noise(root / "photos" / f"{i}.png")
        noise(root / "one_class" / "cats" / f"{i}.png")
        noise(root / "two_classes" / f"class_{i % 2}" / f"{i}.png")
    for name in ("zero_bytes", "cut_images"):
        (root / name).mkdir()
    for i in range(5):  # Each costs a second or two: it is tried by itself.
        (root / "zero_bytes" / f"{i}.png").write_bytes(b"")
        bomb(root / "bombs" / f"{i}.png")
        (root / "cut_images" / f"{i}.png").write_bytes((root / "photos" / f"{i}.png").read_bytes()[:200])
    for i in range(10):
        noise(root / "ten_classes" / f"class_{i}" / "0.png")
    (root / "empty").mkdir()
    (root / "texts").mkdir()
    (root / "texts" / "readme.md").write_text("no pictures here")
    (root / "file").write_text("a file")
    (root / "labels.txt").write_text("class_0/0.png\nclass_0/77.png\n")
    (root / "binary.gin").write_bytes(bytes(range(256)))
    (root / "circle.gin").write_text("include 'circle.gin'\n")
    (root / "checkpoint.ckpt.index").write_bytes(b"nothing")
    (root / "vectors.npz").write_bytes(b"PK no archive")
    np.savez(root / "pickled.npz", vectors=np.array([{"a": 1}], dtype=object))
    (root / "saved_model").mkdir()
    (root / "saved_model" / "saved_model.pb").write_bytes(b"nothing")
    records = root / "tfds" / "tiny" / "1.0.0"
    records.mkdir(parents=True)
    (records / "dataset_info.json").write_text("{}")
    return SimpleNamespace(root=root, run=run)


def tree(root: Path) -> dict[str, str]:
    """A hash of every file, by its path."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def mode(name: str, *rest: str) -> tuple[str, ...]:
    return (f"--mode={name}", "--workdir={out}", *rest)


def of(name: str, workdir: str, *rest: str) -> tuple[str, ...]:
    return (f"--mode={name}", f"--workdir={{env}}/{workdir}", *rest)


def gin(*bindings: str) -> tuple[str, ...]:
    return tuple(f"--gin_param={binding}" for binding in bindings)


def folder(name: str, *more: str) -> tuple[str, ...]:
    return gin(f"Data.source='folder:{{env}}/{name}'", "Data.train_split='all'", "Data.eval_split='all'", *more)


FINETUNE = mode("finetune", "--init_from={env}/run", *TINY)
DISTILL = mode("distill", *TINY)

# name, arguments ({env}: the fixture's folder, {out}: a new one), exit code, regular expression for the line.
WRONG = [
    # Runs that are no runs, or not what they are taken for.
    ("finetune from nothing", mode("finetune", "--init_from={env}/none"),
     1, r"--init_from=\S+/none is not the workdir"),
    ("finetune from a file", mode("finetune", "--init_from={env}/file"), 1, r"--init_from=\S+/file is not the workdir"),
    ("finetune from photos", mode("finetune", "--init_from={env}/photos"), 1, r"has no architecture.json"),
    ("finetune without a checkpoint", mode("finetune", "--init_from={env}/no_checkpoint", *TINY),
     1, r"has no checkpoint"),
    ("finetune from a cut checkpoint", mode("finetune", "--init_from={env}/cut", *TINY),
     1, r"/cut/.*can(not)? be read"),
    ("finetune from garbage", mode("finetune", "--init_from={env}/garbage", *TINY), 1, r"/garbage.*checkpoint"),
    ("architecture without an encoder", of("knn", "wild_architecture"), 1, r"architecture.json cannot be understood"),
    ("a bracket in the workdir", ("--mode=pretrain", "--workdir={out}/lr[0.1]"), 1, r"contains \["),
    ("an unknown file system", mode("finetune", "--init_from=s3://bucket/run"), 1, r"scheme 's3' not implemented"),
    ("an unknown file system to look at", ("--mode=knn", "--workdir=s3://bucket/run"),
     1, r"scheme 's3' not implemented"),
    ("a recipe from the web", mode("pretrain", "--gin_file=https://x.org/a.gin"), 1, r"scheme 'https' not implemented"),
    ("another width", (*FINETUNE, *gin("ResNet.width=0.125")), 1, r"width is 0.0625 there, 0.125 here"),
    ("another depth", (*FINETUNE, *gin("ResNet.depth=10")), 1, r"depth is 6 there, 10 here"),
    ("another stem", (*FINETUNE, *gin("ResNet.stem='imagenet'")), 1, r"stem is 'cifar' there, 'imagenet' here"),
    ("a head layer too many", (*FINETUNE, *gin("Supervised.head_layer=7")), 1, r"7.*layer"),
    ("freezing what is not there", (*FINETUNE, *gin("Supervised.freeze_up_to='block_group9'")), 1, r"block_group9"),
    ("a run of another kind", of("supervised", "run", *TINY), 1, r"--workdir=\S+/run holds another run"),
    ("a run of another network", of("pretrain", "run", *TINY, *gin("ResNet.width=0.125")),
     1, r"holds another run.*width"),
    ("a run of another seed", of("pretrain", "run", *TINY, *gin("train.seed=9")), 1, r"seed"),
    ("resuming garbage", of("pretrain", "garbage", *TINY), 1, r"/garbage.*can be read"),
    ("knn of nothing", of("knn", "none"), 1, r"--workdir=\S+/none is not the workdir of a run \(no such folder\)"),
    ("knn of photos", of("knn", "photos"), 1, r"has no architecture.json"),
    ("knn without a checkpoint", of("knn", "no_checkpoint"), 1, r"has no checkpoint"),
    ("knn of a cut checkpoint", of("knn", "cut"), 1, r"/cut/.*can(not)? be read"),
    ("knn of no neighbours", of("knn", "run", *gin("knn.num_neighbors=0")), 1, r"knn.num_neighbors is 0"),
    ("knn at no temperature", of("knn", "run", *gin("knn.temperature=0.0")), 1, r"knn.temperature is 0"),
    ("eval of nothing", of("eval", "empty"), 1, r"has no architecture.json"),
    ("eval without a classifier", of("eval", "blind"), 1, r"has no classifier to measure"),
    ("eval of garbage", of("eval", "garbage"), 1, r"checkpoint"),
    ("eval of other classes", of("eval", "run", *folder("two_classes")), 1, r"knows 10 classes.*has 2"),
    ("eval of renamed classes", of("eval", "run", *folder("ten_classes")), 1, r"'airplane' where .* says 'class_0'"),
    ("eval without labels", of("eval", "run", *folder("photos")), 1, r"has no labels"),
    # Data.
    ("a folder that is not there", mode("pretrain", *TINY, *folder("none")), 1, r"folder:\S+/none"),
    ("a folder that is a file", mode("pretrain", *TINY, *folder("file")), 1, r"folder:\S+/file"),
    ("an empty folder", mode("pretrain", *TINY, *folder("empty")), 1, r"has no JPEG.*no files at all"),
    ("a folder of texts", mode("pretrain", *TINY, *folder("texts")), 1, r"has no JPEG.*such as readme.md"),
    ("files of no bytes", mode("pretrain", *TINY, *folder("zero_bytes")), 1, r"none of the 5 images.*can be read"),
    ("cut images", mode("preview", *folder("cut_images")), 1, r"none of the 5 images.*can be read"),
    ("too many cut images", mode("preview", *folder("cut_images", "Data.max_bad_images=3")), 1, r"max_bad_images = 3"),
    ("decompression bombs", mode("preview", *folder("bombs")), 1, r"none of the 5 images.*over \d+ pixels"),
    ("labels that are not there", mode("supervised", *TINY, *folder("photos")), 1, r"has no labels"),
    ("one class alone", mode("supervised", *TINY, *folder("one_class")), 1, r"has no labels"),
    ("more labels than images", mode("supervised", *TINY, *folder("two_classes", "Data.label_fraction=None",
                                                                     "Data.labels_per_class=5")), 1, r"5.*class"),
    ("a share over one", mode("supervised", *TINY, *gin("Data.label_fraction=2.0")), 1, r"Data.label_fraction is 2.0"),
    ("two kinds of subset", mode("supervised", *TINY, *gin("Data.label_fraction=0.5", "Data.labels_per_class=1")), 1,
     r"exclude each other"),
    ("a list that is not there", mode("supervised", *TINY, *gin("Data.label_fraction=None",
                                                                 "Data.label_list='{env}/none.txt'")), 1, r"none.txt"),
    ("a list of strangers", mode("supervised", *TINY, *folder("two_classes", "Data.label_fraction=None",
                                                               "Data.label_list='{env}/labels.txt'")), 1, r"77.png"),
    ("a kind of source", mode("pretrain", *TINY, *gin("Data.source='foldr:x'")), 1, r"did you mean folder:x"),
    ("no kind of source", mode("pretrain", *TINY, *gin("Data.source='cifar10'")), 1, r"write embedded:NAME, tfds:NAME"),
    ("a data set of no name", mode("pretrain", *TINY, *gin("Data.source='tfds:'")), 1, r"without a name"),
    ("a split that is none", mode("pretrain", *TINY, *gin("Data.train_split='train[:'")), 1, r"split 'train\[:'"),
    ("a slice of nothing", mode("pretrain", *TINY, *gin("Data.train_split='train[:0]'")), 1, r"has no examples"),
    ("a slice beyond the end", mode("pretrain", *TINY, *gin("Data.train_split='train[:9999]'")), 1, r"9999"),
    ("a data set nobody knows", mode("pretrain", *TINY, "--data_dir={env}/tfds", *gin("Data.source='tfds:cifar01'")), 1,
     r"cifar01"),
    ("a data set not there", mode("pretrain", *TINY, "--data_dir={env}/empty", *gin("Data.source='tfds:cifar10'")), 1,
     r"cifar10.*download|download.*cifar10"),
    ("a broken data set", mode("pretrain", *TINY, "--data_dir={env}/tfds", *gin("Data.source='tfds:tiny'")),
     1, r"has no data set 'tiny'"),
    # Teachers.
    ("a teacher that is nothing", (*DISTILL, "--teacher={env}/none"), 1, r"--teacher=\S+/none"),
    ("a teacher that is a folder", (*DISTILL, "--teacher={env}/photos"), 1, r"--teacher=\S+/photos"),
    ("a teacher without classes", (*DISTILL, "--teacher={env}/blind"), 1, r"classifier"),
    ("a teacher that is cut", (*DISTILL, "--teacher={env}/cut"), 1, r"/cut/.*can(not)? be read"),
    ("a SavedModel of garbage", (*DISTILL, "--teacher={env}/saved_model"), 1, r"--teacher=\S+/saved_model"),
    ("a teacher of other classes", (*DISTILL, "--teacher={env}/run", *folder("two_classes")),
     1, r"10 classes.*has\s+2"),
    ("alpha over one", (*DISTILL, "--teacher={env}/run", *gin("Distill.alpha=2.0")), 1, r"Distill.alpha is 2.0"),
    ("no temperature", (*DISTILL, "--teacher={env}/run", *gin("Distill.temperature=0.0")), 1, r"temperature is 0"),
    # Export, conversion, embedding, neighbours, planning, pages.
    ("export of nothing", of("export", "none"), 1, r"--workdir=\S+/none is not the workdir"),
    ("export of an unknown layer", of("export", "run", *gin("export.layer='pool9'")), 1, r"pool9"),
    ("export to an unknown format", of("export", "run", *gin("export.formats=['coreml']")), 1, r"coreml"),
    ("conversion of nothing", mode("convert", "--source={env}/none"), 1, r"--source=\S+/none"),
    ("conversion of garbage", mode("convert", "--source={env}/checkpoint.ckpt"),
     1, r"checkpoint.ckpt.*(cannot|can not|is no|not a)"),
    ("conversion of a folder", mode("convert", "--source={env}/photos"), 1, r"--source=\S+/photos"),
    ("embedding by nothing", of("embed", "none", "--source=folder:{env}/photos", "--output={out}/v.npz"), 1,
     r"is not the workdir of a run"),
    ("embedding nothing", of("embed", "run", "--source=folder:{env}/none", "--output={out}/v.npz"), 1, r"is not there"),
    ("embedding into a picture", of("embed", "run", "--source=folder:{env}/photos", "--output={out}/v.jpg"),
     2, r"v\.jpg"),
    ("neighbours among nothing", of("neighbors", "run", "--source={env}/none.npz", "--query={env}/photos/0.png"), 1,
     r"none.npz"),
    ("neighbours among garbage", of("neighbors", "run", "--source={env}/vectors.npz", "--query={env}/photos/0.png"), 1,
     r"vectors.npz"),
    ("vectors that hide objects", of("neighbors", "run", "--source={env}/pickled.npz", "--query={env}/photos/0.png"), 1,
     r"pickled.npz"),
    ("a plan for no TPU", mode("plan", "--topology=v9-7"), 1, r"v9-7"),
    ("a report on nothing", of("report", "none"), 1, r"there is no folder"),
    ("a report on photos", of("report", "photos"), 1, r"is not a run's folder and has none in it"),
    ("a report on half a file", of("report", "no_result"), 1, r"result.json is not JSON"),
    ("a report among others", ("--mode=report", "--workdir={env}/run,{env}/nine"), 1, r"there is no folder \S+/nine"),
    ("a map of another kind", of("report", "run", *gin("report.map='som'")), 1, r"report.map is 'som'"),
    ("a preview of nothing", mode("preview", *folder("empty")), 1, r"no files at all"),
    ("a preview of strange splits", mode("preview", *gin("Data.train_split='trian'")), 1, r"no split 'trian'"),
    ("a preview of too few pixels", mode("preview", *gin("preview.cell_pixels=1")), 1, r"cell_pixels is 1"),
    # Gin files.
    ("a gin file that is a folder", mode("pretrain", "--gin_file={env}/photos"), 1, r"--gin_file=\S+/photos"),
    ("a gin file of bytes", mode("pretrain", "--gin_file={env}/binary.gin"), 1, r"binary.gin"),
    ("gin files in a circle", mode("pretrain", "--gin_file={env}/circle.gin"), 1, r"circle"),
    # Batches and devices.
    ("a batch that does not divide", mode("pretrain", *TINY, "--virtual_devices=3"), 1, r"16.*does not divide over 3"),
    ("XLA over several replicas", mode("pretrain", *TINY, "--virtual_devices=4", *gin("train.jit_compile=True")), 1,
     r"train.jit_compile is True with 4 replicas"),
    ("no TPU", mode("pretrain", *TINY, "--strategy=tpu"), 1, r"no TPU answers"),
    ("no local TPU", mode("pretrain", *TINY, "--tpu=local"), 1, r"no TPU answers to --tpu=local"),
    ("a TPU and GPUs", mode("pretrain", *TINY, "--tpu=local", "--strategy=mirrored"), 1, r"contradict each other"),
    ("workers without a cluster", mode("pretrain", *TINY, "--strategy=multi_worker"), 1, r"TF_CONFIG"),
    ("a labelled batch of nothing", (*DISTILL, "--teacher={env}/run", *gin("Distill.alpha=0.5",
                                      "Distill.labelled_batch_size=0")), 1, r"labelled_batch_size|batch size"),
    ("pictures below none", mode("pretrain", *TINY, *gin("train.board_images=-1")), 1, r"train.board_images is -1"),
    ("a seed beyond 64 bits", mode("pretrain", *TINY, *gin(f"train.seed={10**20}")), 1, r"train.seed is 1000"),
    ("a sheet of no pixels", of("neighbors", "run", "--source={env}/none.npz", "--query={env}/photos/0.png",
                                 *gin("neighbors.cell_pixels=-5")), 1, r"neighbors.cell_pixels is -5"),
    ("vectors of no pixels", of("embed", "run", "--source=folder:{env}/photos", "--output={out}/v.npz",
                                 *gin("embed.image_size=-5")), 1, r"embed.image_size is -5"),
    ("a teacher's labels for images without", (*DISTILL, "--teacher={env}/run", *folder("photos"),
                                               *gin("Distill.alpha=0.5")), 1, r"has no labels"),
    ("no steps", mode("pretrain", *TINY, *gin("train.steps=0")), 1, r"train.steps is 0"),
    ("a queue of nothing", mode("pretrain", *TINY, *gin("Pretrain.make_memory=@Memory", "Memory.queue_size=-5")), 1,
     r"queue_size"),
    # Places to write.
    ("a workdir that is a file", ("--mode=pretrain", "--workdir={env}/file", *TINY), 1, r"cannot be written to"),
    ("a workdir below a file", ("--mode=preview", "--workdir={env}/file/deeper"), 1, r"cannot be written to"),
    ("a workdir of the system's", ("--mode=supervised", "--workdir=/proc/runs", *TINY),
     1, r"/proc/runs cannot be written"),
    ("a page of the system's", of("report", "no_checkpoint", "--output=/proc/page.html",
                                   *gin("report.sheet_images=0")), 1, r"/proc/page.html.* cannot be written"),
]  # fmt: skip


def test_there_are_enough():
    assert len(WRONG) >= 60
    assert len({row[0] for row in WRONG}) == len(WRONG)


@pytest.mark.parametrize("name, arguments, code, told", WRONG, ids=[row[0] for row in WRONG])
def test_wrong_input(name, arguments, code, told, env, tmp_path, monkeypatch):
    for variable in ("TF_CONFIG", "TPU_NAME", "COLAB_TPU_ADDR"):
        monkeypatch.delenv(variable, raising=False)
    before = tree(env.root)
    done = simclr(*(part.replace("{env}", str(env.root)).replace("{out}", str(tmp_path / "out")) for part in arguments))
    assert done.code == code, done.err or done.out
    lines = [line for line in done.err.splitlines() if line.startswith("simclr: ")]
    assert len(lines) == 1, done.err
    assert done.err.splitlines()[-1] == lines[0]
    assert re.search(told, lines[0]), lines[0]
    assert "Traceback" not in done.err
    assert tree(env.root) == before
    for leftover in ("checkpoints/*", "result.json", "*.tmp"):
        assert not list(tmp_path.rglob(leftover))


def test_odd_images_are_read(tmp_path):
    """Gray, RGBA, 16 bits, CMYK, palettes, animations and one pixel are no errors."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (24, 20, 4), dtype=np.uint8)
    folder = tmp_path / "odd"
    folder.mkdir()
    Image.fromarray(pixels[..., 0]).save(folder / "gray.jpg")
    Image.fromarray(pixels).save(folder / "rgba.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 256).save(folder / "deep.png")
    Image.frombytes("CMYK", (20, 24), pixels.tobytes()).save(folder / "cmyk.jpg")
    Image.fromarray(pixels[..., :3]).convert("P").save(folder / "palette.png")
    frames = [Image.fromarray(pixels[..., i]) for i in range(3)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(pixels[:1, :1, :3]).save(folder / "pixel.bmp")
    data = [f"Data.source='folder:{folder}'", "Data.train_split='all'", "preview.num_images=7", "Data.image_size=16"]
    done = simclr("--mode=preview", f"--workdir={tmp_path}/out", *gin(*data))
    assert done.code == 0, done.err
    assert "7 of 7 images" in done.out


def test_an_evaluation_split_without_labels_costs_no_result(tmp_path):
    for i in range(16):
        noise(tmp_path / "data" / "train" / ("cats", "dogs")[i % 2] / f"{i}.png")
        noise(tmp_path / "data" / "test" / f"{i}.png")
    splits = ("Data.train_split='train'", "Data.eval_split='test'")
    run = ("--mode=pretrain", f"--workdir={tmp_path}/w", *TINY, *gin(f"Data.source='folder:{tmp_path}/data'", *splits))
    done = simclr(*run)
    assert done.code == 0, done.err
    assert "has a label: nothing is measured at the end" in done.out
    assert "evaluation" not in json.loads((tmp_path / "w" / "result.json").read_text())
    asked = simclr("--mode=knn", f"--workdir={tmp_path}/w")
    assert asked.code == 1 and "has no labels" in asked.err.splitlines()[-1]


@pytest.mark.skipif(HAS_ADDONS, reason="TensorFlow Addons is installed")
@pytest.mark.parametrize("setting", ["Augment.cutout_probability=0.5", "Augment.rotation_probability=0.5"])
def test_augmentations_without_addons(setting, tmp_path):
    done = simclr("--mode=pretrain", f"--workdir={tmp_path}/w", *TINY, f"--gin_param={setting}")
    assert done.code == 1
    assert "tensorflow-addons" in done.err.splitlines()[-1]


@pytest.mark.parametrize("kind, package", [("umap", "umap-learn"), ("tsne", "scikit-learn")])
def test_maps_without_their_packages(kind, package, env, monkeypatch):
    find = importlib.util.find_spec
    hidden = {"umap", "sklearn"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in hidden else find(name, *rest))
    before = tree(env.root)
    done = simclr("--mode=report", f"--workdir={env.run}", f"--gin_param=report.map='{kind}'")
    assert done.code == 1
    assert f"needs {package}, which is not installed" in done.err.splitlines()[-1]
    assert tree(env.root) == before


@pytest.mark.skipif(OLD_TENSORFLOW, reason="Keras is TensorFlow's own here")
def test_wrong_keras(tmp_path):
    """Keras 3 was told to be TensorFlow's, or started before this package could say otherwise."""
    code = "import os; os.environ['TF_USE_LEGACY_KERAS'] = '0'; from simclr_tf import cli; cli.main()"
    run = subprocess.run(
        [sys.executable, "-c", code, "--mode=pretrain", f"--workdir={tmp_path}/w", *TINY, "--dry_run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1, run.stderr
    assert re.match("simclr: .*Keras", run.stderr.splitlines()[-1])
    assert "Traceback" not in run.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_workdir(tmp_path):
    (tmp_path / "w").mkdir(mode=0o500)
    done = simclr("--mode=pretrain", f"--workdir={tmp_path}/w", *TINY)
    assert done.code == 1
    assert "cannot be written to" in done.err.splitlines()[-1]


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", ["pretrain", "preview", "report"])
def test_full_disk(name, full_disk, env, tmp_path):
    arguments = {
        "pretrain": (f"--workdir={full_disk}/w", *TINY),
        "preview": (f"--workdir={full_disk}/w", "--gin_param=preview.num_images=64"),
        "report": (
            f"--workdir={env.run}",
            f"--output={full_disk}/page.html",
            *gin("report.max_images=64", "report.map='pca'"),
        ),
    }[name]
    done = simclr(f"--mode={name}", *arguments)
    assert done.code == 1, done.err or done.out
    last = done.err.splitlines()[-1]
    assert re.match(rf"simclr: .*{full_disk}.*cannot be (written|saved)", last), last
    assert "Traceback" not in done.err
    assert not list(full_disk.rglob("*.tmp"))


def test_nothing_in_a_file_may_run():
    """No pickle, no evaluated text, no shell, no unpacked archives: in the code, whatever its comments say."""
    modules = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
    functions = {"eval", "exec", "compile"}
    methods = {"system", "popen", "extractall", "unpack_archive", "read_pickle", "unsafe_load"}
    for path in sorted((ROOT / "simclr_tf").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                assert not modules & {alias.name.split(".")[0] for alias in node.names}, where
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] not in modules, where
            elif isinstance(node, ast.Call):
                if isinstance(node.func, ast.Name):
                    assert node.func.id not in functions, where
                elif isinstance(node.func, ast.Attribute):
                    assert node.func.attr not in methods, where
                for keyword in node.keywords:
                    unsafe = keyword.arg in ("shell", "allow_pickle") and getattr(keyword.value, "value", True)
                    assert not unsafe, where


def test_a_config_of_ones_own_is_not_written_over(tmp_path):
    own = tmp_path / "config.gin"
    own.write_text("train.steps = 3  # as last year\n")
    done = simclr("--mode=pretrain", f"--workdir={tmp_path}", f"--gin_file={own}", *TINY)
    assert done.code == 1
    assert "config.gin belongs to no run" in done.err and "Traceback" not in done.err
    assert own.read_text() == "train.steps = 3  # as last year\n"
