"""Every shipped gin file parses, builds and steps when shrunk; recipes say what was published."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from command import simclr

from simclr_tf import checkpoint, config, configurables, recipes, records
from simclr_tf.cluster import make_strategy
from simclr_tf.operations import OPERATIONS, TRAINING_MODES
from simclr_tf.place import Place

FILES = recipes.shipped_files()
RECIPES = [name for name in FILES if name.startswith("recipes/")]
# Bindings that have nothing to say in a shrunk run: what the shrinking itself replaces or brings for other modes.
REPLACED = {"BATCH_SIZE", "EPOCHS", "train.epochs"}


def text_of(name: str) -> str:
    with open(os.path.join(recipes.shipped_folder(), name)) as file:
        return file.read()


def mode_of(name: str) -> str:
    return name.split("/")[1]


def shrunk_settings(name: str) -> tuple[tuple[str, str], ...]:
    """All bindings of a shrunk recipe."""
    config.parse(mode_of(name), [name, "smoke"])
    return tuple(sorted((binding.name, repr(binding.value)) for binding in config.bindings()))


def test_every_mode_has_its_file_and_every_file_its_mode():
    staged = {name.split("/")[1][:-4] for name in FILES if name.startswith("stages/")}
    # What only shows another mode's recipe may do with that mode's file.
    own = {mode for mode, operation in OPERATIONS.items() if operation.configurable and not operation.shows_recipe}
    assert own <= staged <= set(OPERATIONS)
    assert {mode_of(name) for name in RECIPES} == set(TRAINING_MODES)
    for mode in TRAINING_MODES:
        assert recipes.default_recipe(mode), f"{mode} has nothing to do without --gin_file"


@pytest.mark.parametrize("name", FILES)
def test_parses(name):
    folder, _, rest = name.partition("/")
    if folder in ("recipes", "stages"):
        mode = rest.split("/")[0].replace(".gin", "")
        config.parse(mode, [name] if folder == "recipes" else [])
    elif folder == "protocols":
        mode = max((mode for mode in TRAINING_MODES if rest.startswith(mode)), key=len)
        config.parse(mode, ["embedded_small", name])
    else:
        for mode in TRAINING_MODES:
            config.parse(mode, ["embedded_small", name])


@pytest.mark.parametrize("name", RECIPES)
def test_header(name):
    """Command, hardware, duration, result; and whose numbers they are."""
    header = re.match(r"(#.*\n)+", text_of(name)).group()
    for field in ("Command", "Hardware", "Duration", "Result"):
        assert re.search(rf"^# {field}: +\S", header, re.MULTILINE), field
    assert any(source in header for source in ("measured here", "published", "not run here"))
    assert "TBM" not in header
    command = re.search(r"^# Command: +(.*)", header, re.MULTILINE).group(1)
    assert f"--mode={mode_of(name)} " in command
    assert f"--gin_file={name[:-4]}" in command or name.endswith("/embedded_small.gin")


def test_models_are_what_they_are_called():
    for name in FILES:
        match = re.fullmatch(r"models/r(\d+)(?:_(\d)x)?(_sk)?\.gin", name)
        if match:
            config.parse("pretrain", ["embedded_small", name])
            depth, width, sk = match.groups()
            bound = {binding.name: binding.value for binding in config.bindings()}
            assert (bound["ResNet.depth"], bound["ResNet.width"]) == (int(depth), int(width or 1))
            assert bound["ResNet.sk_ratio"] == (0.0625 if sk else 0.0)
            assert bound["ResNet.stem"] == "imagenet"
    table = {"50", "50_sk", "50_2x", "50_2x_sk", "101", "101_sk", "101_2x", "101_2x_sk"}
    table |= {"152", "152_sk", "152_2x", "152_2x_sk", "152_3x_sk"}
    for mode in ("pretrain", "linear_eval"):
        assert {f"recipes/{mode}/imagenet_r{net}.gin" for net in table} <= set(RECIPES)


PUBLISHED = [
    # Mode, recipe; batch, epochs, base learning rate and its scaling; some of the rest.
    ("pretrain", "imagenet_r50", (4096, 800, 0.1, "sqrt"), {"Lars.weight_decay": 1e-4, "Pretrain.temperature": 0.1,
     "Pretrain.probe_weight_decay": 1e-4,
     "WarmupCosine.warmup_fraction": 0.05, "ProjectionHead.num_layers": 3, "Augment.color_strength": 1.0,
     "Augment.blur_probability": 0.5, "train.make_optimizer": "@Lars"}),
    ("pretrain", "cifar10_r18", (512, 1000, 1.0, "linear"), {"Lars.weight_decay": 1e-4, "Pretrain.temperature": 0.5,
     "Pretrain.probe_weight_decay": 1e-4,
     "Augment.color_strength": 0.5, "Augment.blur_probability": 0.0, "ResNet.stem": "cifar", "ResNet.depth": 18,
     "train.make_optimizer": "@Lars"}),
    ("linear_eval", "imagenet_r50", (4096, 90, 0.1, "linear"), {"Supervised.weight_decay": 1e-6, "Sgd.momentum": 0.9,
     "Sgd.nesterov": True,
     "Augment.jitter_probability": 0.0, "Augment.blur_probability": 0.0, "train.make_optimizer": "@Sgd"}),
    ("distill", "imagenet_r50", (4096, 400, 0.1, "sqrt"), {"Lars.weight_decay": 1e-4, "Distill.weight_decay": 1e-4,
     "Distill.temperature": 1.0, "Augment.jitter_probability": 0.0, "train.make_optimizer": "@Lars"}),
]  # fmt: skip


@pytest.mark.parametrize("mode, name, schedule, more", PUBLISHED, ids=[f"{row[0]}/{row[1]}" for row in PUBLISHED])
def test_published_values(mode, name, schedule, more):
    config.parse(mode, [f"recipes/{mode}/{name}"])
    bound = {binding.name: binding.value for binding in config.bindings()}
    assert tuple(bound[key] for key in ("BATCH_SIZE", "EPOCHS", "LEARNING_RATE", "WarmupCosine.scaling")) == schedule
    assert {key: repr(bound[key]) if str(value).startswith("@") else bound[key] for key, value in more.items()} == more


def step_all(folder: Path, *more: str) -> Path:
    """One shrunk run of every training mode, by the command line."""
    starts = {
        "pretrain": [],
        "linear_eval": [f"--init_from={folder}/pretrain"],
        "finetune": [f"--init_from={folder}/pretrain"],
        "supervised": [],
        "distill": [f"--teacher={folder}/finetune"],
    }
    for mode, start in starts.items():
        files = ("--gin_file=embedded_small", "--gin_file=smoke")
        done = simclr(f"--mode={mode}", *start, f"--workdir={folder}/{mode}", *files, *more)
        assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return step_all(tmp_path_factory.mktemp("runs"))


@pytest.mark.slow
def test_every_stage_steps_under_xla(runs, tmp_path):
    step_all(tmp_path, "--gin_param=train.jit_compile=True")
    for mode in TRAINING_MODES:
        plain, compiled = (
            json.loads((folder / mode / "metrics.jsonl").read_text().splitlines()[0]) for folder in (runs, tmp_path)
        )
        assert compiled.keys() == plain.keys()
        assert compiled["loss"] == pytest.approx(plain["loss"], rel=1e-3), mode


def test_every_stage_steps(runs):
    for mode in TRAINING_MODES:
        result = records.read_json(f"{runs}/{mode}/{records.RESULT}")
        assert (result["stage"], result["steps"]) == (mode, 2)
        assert checkpoint.newest(f"{runs}/{mode}")
        for name in (config.CONFIG, config.OPERATIVE):
            assert os.path.getsize(f"{runs}/{mode}/{name}")


@pytest.mark.parametrize("mode, written", [("knn", "knn.json"), ("eval", "eval.json")])
def test_verbs_work(runs, mode, written):
    done = simclr(f"--mode={mode}", f"--workdir={runs}/linear_eval", "--gin_file=smoke")
    assert done.code == 0, done.err
    assert records.read_json(f"{runs}/linear_eval/{written}")["examples"] == 32


@pytest.mark.slow
def test_saved_configuration_makes_the_same_run(runs, tmp_path):
    """From `config.gin` and from `operative.gin`, to the last bit."""
    expected = (runs / "pretrain" / "metrics.jsonl").read_text()
    for name in (config.CONFIG, config.OPERATIVE):
        workdir = tmp_path / name
        done = simclr("--mode=pretrain", f"--workdir={workdir}", f"--gin_file={runs}/pretrain/{name}")
        assert done.code == 0, done.err
        assert (workdir / "metrics.jsonl").read_text() == expected
    saved = (runs / "pretrain" / config.CONFIG).read_text()
    assert (tmp_path / config.CONFIG / config.CONFIG).read_text() == saved


@pytest.mark.slow
def test_every_recipe_builds(runs):
    """Recipes that shrink to the very same bindings are built once."""
    built: dict[tuple, str] = {}
    for name in RECIPES:
        key = (mode_of(name), shrunk_settings(name))
        if key in built:
            continue
        built[key] = name
        teacher = f"{runs}/finetune" if mode_of(name) == "distill" else None
        place = Place(workdir="unused", strategy=make_strategy("one_device"), teacher=teacher, dry_run=True)
        configurables.configured("train")(place)
        config.lint()
        shrinking = {binding.name for binding in config.bindings() if binding.where.startswith("gin/smoke.gin")}
        # A recipe may choose another optimizer than its stage, whose settings for the first are then read by nothing.
        unread = {binding.name for binding in config.unread() if not binding.where.startswith("gin/stages/")}
        assert not unread - REPLACED - shrinking, f"nothing reads some of {name}"
    assert len(built) < len(RECIPES)
