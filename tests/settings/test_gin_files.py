"""Every shipped gin file parses, builds and steps when shrunk; recipes say and do what was published."""

from __future__ import annotations

import inspect
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import simclr

from simclr_tf import configurables
from simclr_tf.core.errors import UserError
from simclr_tf.core.files import read_json
from simclr_tf.core.tf import tf
from simclr_tf.distribute.cluster import make_strategy
from simclr_tf.optim.schedules import WarmupCosine
from simclr_tf.settings import gin_config, gin_files, parameter_types
from simclr_tf.settings.modes import OPERATIONS, TRAINING_MODES
from simclr_tf.settings.run_context import RunContext
from simclr_tf.workdir import checkpoints, records

FILES = gin_files.shipped_files()
RECIPES = [name for name in FILES if name.startswith("recipes/")]
# Bindings that have nothing to say in a shrunk run: what the shrinking itself replaces or brings for other modes.
REPLACED = {"BATCH_SIZE", "EPOCHS", "train.epochs"}
TABLE_1 = json.loads((Path(__file__).parents[2] / "docs" / "table1.json").read_text())["rows"]


def text_of(name: str) -> str:
    with open(os.path.join(gin_files.shipped_folder(), name)) as file:
        return file.read()


def mode_of(name: str) -> str:
    return name.split("/")[1]


def test_every_mode_has_its_file_and_every_file_its_mode():
    staged = {name.split("/")[1][:-4] for name in FILES if name.startswith("stages/")}
    # What only shows another mode's recipe may do with that mode's file.
    own = {mode for mode, operation in OPERATIONS.items() if operation.configurable and not operation.shows_recipe}
    assert own <= staged <= set(OPERATIONS)
    assert {mode_of(name) for name in RECIPES} == set(TRAINING_MODES)
    for mode in TRAINING_MODES:
        assert gin_files.default_recipe(mode), f"{mode} has nothing to do without --gin_file"


@pytest.mark.parametrize("name", FILES)
def test_parses(name):
    folder, _, rest = name.partition("/")
    if folder in ("recipes", "stages"):
        mode = rest.split("/")[0].replace(".gin", "")
        gin_config.parse(mode, [name] if folder == "recipes" else [])
    elif folder == "protocols":
        mode = max((mode for mode in TRAINING_MODES if rest.startswith(mode)), key=len)
        gin_config.parse(mode, ["embedded_small", name])
    else:
        for mode in TRAINING_MODES:
            gin_config.parse(mode, ["embedded_small", name])


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
    if "/imagenet" in name or "/cifar10_r18" in name:
        # Supervised training on CIFAR-10 has no published figure to compare with.
        flat = " ".join(header.replace("#", " ").split())
        assert (
            "Crops follow the paper; the released code's are Augment.crop = 'published'." in flat
            or name == "recipes/supervised/cifar10_r18.gin"
        )


def test_models_are_what_they_are_called():
    for name in FILES:
        match = re.fullmatch(r"models/r(\d+)(?:_(\d)x)?(_sk)?\.gin", name)
        if match:
            gin_config.parse("pretrain", ["embedded_small", name])
            depth, width, sk = match.groups()
            bound = {binding.name: binding.value for binding in gin_config.bindings()}
            assert (bound["ResNet.depth"], bound["ResNet.width"]) == (int(depth), int(width or 1))
            assert bound["ResNet.sk_ratio"] == (0.0625 if sk else 0.0)
            assert bound["ResNet.stem"] == "imagenet"
    assert {f"models/{network}.gin" for network in [*TABLE_1, "r50_4x"]} <= set(FILES)


OLD_NAMES = {
    "imagenet_r101_2x": "write --gin_file=imagenet --gin_file=models/r101_2x",
    "recipes/pretrain/imagenet_r152_3x_sk_memory.gin": "/pretrain/imagenet_memory --gin_file=models/r152_3x_sk",
    "imagenet_r50_sk_self": "write --gin_file=imagenet_self --gin_file=models/r50_sk",
}


@pytest.mark.parametrize("name", OLD_NAMES)
def test_old_names_are_refused_with_what_to_write(name, tmp_path):
    with pytest.raises(UserError, match=re.escape(OLD_NAMES[name])):
        gin_config.parse("pretrain", [name])
    with pytest.raises(UserError, match="did you mean"):
        gin_config.parse("pretrain", ["imagenet_r51"])
    mine = tmp_path / "mine.gin"
    mine.write_text("include 'recipes/pretrain/imagenet_r50.gin'\n")
    with pytest.raises(UserError, match="write include 'recipes/pretrain/imagenet.gin' and include 'models/r50.gin'"):
        gin_config.parse("pretrain", [str(mine)])


# Published values ----------------------------------------------------------------------------------------------------


def effective(name: str) -> Any:
    """What a parameter is after `parse`: its binding with macros followed, else the default in its signature."""
    owner, parameter = name.split(".")
    binding = next((binding for binding in gin_config.bindings() if binding.name == name), None)
    if binding is None:
        target = configurables.CONFIGURABLES[owner]
        function = target.__init__ if inspect.isclass(target) else target
        return inspect.signature(function).parameters[parameter].default
    value = gin_config._plain(binding.value)
    return value.name if isinstance(value, parameter_types.Reference) else value


CROP = {"area_min": 0.08, "area_max": 1.0, "ratio_min": 3 / 4, "ratio_max": 4 / 3, "flip": True, "crop": "paper"}
PLAIN = {**CROP, "jitter_probability": 0.0, "gray_probability": 0.0, "blur_probability": 0.0}
COLORS = {**CROP, "color_strength": 1.0, "jitter_probability": 0.8, "gray_probability": 0.2, "blur_probability": 0.5}
CIFAR_COLORS = {**COLORS, "color_strength": 0.5, "blur_probability": 0.0}
V2 = {"ProjectionHead.num_layers": 3, "ProjectionHead.output_dim": 128, "Pretrain.make_memory": None,
      "Pretrain.temperature": 0.1, "Pretrain.probe_weight_decay": 1e-4,
      "Augment.brightness": "multiplicative"}  # fmt: skip
MEMORY = {**V2, "Pretrain.make_memory": "Memory", "Memory.queue_size": 65536, "Memory.decay": 0.999}
V1 = {**V2, "ProjectionHead.num_layers": 2, "Pretrain.probe_weight_decay": 1e-6, "Augment.brightness": "additive"}
CIFAR = {**V2, "Pretrain.temperature": 0.5, "ResNet.stem": "cifar", "ResNet.depth": 18}
LAYER_1, LAYER_0 = ({"Supervised.head_layer": layer, "Supervised.weight_decay": 0.0} for layer in (1, 0))
LINEAR = {"Sgd.nesterov": True, "Supervised.freeze_up_to": "final_avg_pool", "Supervised.zero_init_classifier": True,
          "Supervised.head_layer": 0, "Supervised.weight_decay": 0.0}  # fmt: skip
IMAGENET_LINEAR = {**LINEAR, "Supervised.weight_decay": 1e-6}
SCRATCH = {"Sgd.nesterov": True, "Supervised.head_layer": 0, "Supervised.freeze_up_to": None,
           "Supervised.weight_decay": 1e-4}  # fmt: skip
SELF = {"Distill.temperature": 0.1, "Distill.head_layer": 0, "Distill.alpha": 1.0, "Distill.weight_decay": 1e-4}
SMALLER = {**SELF, "Distill.temperature": 1.0}
LARS_0, LARS_4, LARS_6 = (("Lars", decay) for decay in (0.0, 1e-4, 1e-6))
# Mode, recipe; batch, epochs, peak of the rate, its scaling, epochs of warm-up; optimizer and what it decays by;
# augmentation; the rest. What decays the classifier, which optimizers leave out, is among the latter.
PUBLISHED = [
    ("pretrain", "imagenet", (4096, 800, 6.4, "sqrt", 40), LARS_4, COLORS, V2),
    ("pretrain", "imagenet_memory", (4096, 800, 6.4, "sqrt", 40), LARS_4, COLORS, MEMORY),
    ("pretrain", "imagenet_v1", (4096, 1000, 4.8, "linear", 10), LARS_6, COLORS, V1),
    ("pretrain", "imagenet_v1_100_epochs", (4096, 100, 4.8, "linear", 10), LARS_6, COLORS, V1),
    ("pretrain", "cifar10_r18", (512, 1000, 2.0, "linear", 10), LARS_4, CIFAR_COLORS, CIFAR),
    ("finetune", "imagenet_1pct", (1024, 60, 0.16, "sqrt", 0), LARS_0, PLAIN, LAYER_1),
    ("finetune", "imagenet_1pct_wide_or_sk", (1024, 60, 0.064, "sqrt", 0), LARS_0, PLAIN, LAYER_1),
    ("finetune", "imagenet_10pct", (1024, 30, 0.16, "sqrt", 0), LARS_0, PLAIN, LAYER_1),
    ("finetune", "imagenet_10pct_wide_or_sk", (1024, 30, 0.064, "sqrt", 0), LARS_0, PLAIN, LAYER_1),
    ("finetune", "imagenet_100pct", (1024, 30, 0.16, "sqrt", 0), LARS_0, PLAIN, LAYER_0),
    ("finetune", "imagenet_100pct_wide_or_sk", (1024, 30, 0.064, "sqrt", 0), LARS_0, PLAIN, LAYER_0),
    ("linear_eval", "imagenet", (4096, 90, 1.6, "linear", 0), ("Sgd", 0.0), PLAIN, IMAGENET_LINEAR),
    ("linear_eval", "cifar10_r18", (512, 100, 0.2, "linear", 0), ("Sgd", 0.0), PLAIN, LINEAR),
    ("supervised", "imagenet", (4096, 90, 1.6, "linear", 5), ("Sgd", 1e-4), PLAIN, SCRATCH),
    # Not published, but every kernel decays here, too.
    ("supervised", "cifar10_r18", (128, 100, 0.1, "none", 2), ("Sgd", 5e-4), PLAIN, {"Supervised.weight_decay": 5e-4}),
    ("distill", "imagenet", (4096, 400, 6.4, "sqrt", 20), LARS_4, PLAIN, SMALLER),
    ("distill", "imagenet_self", (4096, 400, 6.4, "sqrt", 20), LARS_4, PLAIN, SELF),
]


@pytest.mark.parametrize("row", PUBLISHED, ids=[f"{row[0]}/{row[1]}" for row in PUBLISHED])
def test_published_values(row):
    mode, name, (batch, epochs, peak, scaling, warmup_epochs), (optimizer, decay), augment, more = row
    gin_config.parse(mode, [name])
    assert (effective("train.global_batch_size"), effective("train.epochs")) == (batch, epochs)
    schedule = {
        parameter: effective(f"WarmupCosine.{parameter}")
        for parameter in ("base_learning_rate", "scaling", "warmup_epochs", "warmup_fraction")
    }
    made = WarmupCosine(**schedule)
    made.configure(num_examples=1000 * batch, epochs=epochs, global_batch_size=batch, num_steps=1000 * epochs)
    assert (made.peak, made.warmup_steps / 1000) == pytest.approx((peak, warmup_epochs))
    assert schedule["scaling"] == scaling
    assert effective("train.make_optimizer") == optimizer
    assert (effective(f"{optimizer}.weight_decay"), effective(f"{optimizer}.momentum")) == (decay, 0.9)
    assert {parameter: effective(f"Augment.{parameter}") for parameter in augment} == augment
    assert {parameter: effective(parameter) for parameter in more} == more
    assert effective("Data.image_size") == (224 if name.startswith("imagenet") else 32)


def test_every_kernel_decays_in_supervised_training():
    """By the optimizer or through the loss, equally."""
    gin_config.parse("supervised", ["imagenet", "smoke"])
    context = RunContext(workdir="unused", strategy=make_strategy("one_device"))
    built = configurables.configured("train")().build(context)
    with tf.GradientTape() as tape:
        penalty = sum(built.stage.penalties().values())
    variables = built.stage.trained_variables
    kernels = [(i, variable) for i, variable in enumerate(variables) if len(variable.shape) > 1]
    assert any(variable is built.stage.network.classifier.dense.kernel for _, variable in kernels)
    through_loss = tape.gradient(penalty, variables, unconnected_gradients="zero")
    for i, kernel in kernels:
        by_optimizer = 0.0 if built.optimizer._excluded[i] else 1e-4
        np.testing.assert_allclose(through_loss[i] + by_optimizer * kernel, 1e-4 * kernel, rtol=1e-5)


def test_every_published_recipe_is_in_the_table():
    named = {f"recipes/{mode}/{name}.gin" for mode, name, *_ in PUBLISHED}
    assert named == {name for name in RECIPES if re.search("/(imagenet|cifar10_r18)", name)}


# Fine-tuning takes the network of --init_from.
NAMELESS = [(mode, name) for mode, name, *_ in PUBLISHED if name.startswith("imagenet") and mode != "finetune"]


@pytest.mark.parametrize("mode, recipe", NAMELESS, ids=["/".join(pair) for pair in NAMELESS])
def test_a_network_changes_nothing_else_and_stands_before_or_after_its_recipe(mode, recipe):
    def parsed(*files):
        gin_config.parse(mode, files)
        return {binding.name: repr(binding.value) for binding in gin_config.bindings()}

    alone = parsed(recipe)
    assert parsed("models/r101_2x", recipe) == parsed(recipe, "models/r101_2x")
    for network in TABLE_1:
        after = parsed(recipe, f"models/{network}")
        depth, width, sk = re.fullmatch(r"r(\d+)(?:_(\d)x)?(_sk)?", network).groups()
        found = [after[f"ResNet.{name}"] for name in ("depth", "width", "sk_ratio")]
        assert found == [depth, width or "1", "0.0625" if sk else "0.0"]
        assert {name: value for name, value in after.items() if not name.startswith("ResNet.")} == {
            name: value for name, value in alone.items() if not name.startswith("ResNet.")
        }


def step(mode: str, workdir: Path, runs: Path, *more: str) -> None:
    """Takes the steps of one shrunk run by the command line; `runs` has what it starts from."""
    start = {
        "linear_eval": [f"--init_from={runs}/pretrain"],
        "finetune": [f"--init_from={runs}/pretrain"],
        "distill": [f"--teacher={runs}/finetune"],
    }
    files = ("--gin_file=embedded_small", "--gin_file=smoke")
    done = simclr(f"--mode={mode}", *start.get(mode, []), f"--workdir={workdir}", *files, *more)
    assert done.code == 0, done.err


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of every training mode."""
    folder = tmp_path_factory.mktemp("runs")
    for mode in ("pretrain", "linear_eval", "finetune", "supervised", "distill"):
        step(mode, folder / mode, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pretrain", "finetune", "distill"])  # One of each class of stages.
def test_every_stage_steps_under_xla(mode, runs, tmp_path):
    step(mode, tmp_path, runs, "--gin_param=train.jit_compile=True")
    plain, compiled = (
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[0]) for folder in (runs / mode, tmp_path)
    )
    assert compiled.keys() == plain.keys()
    assert compiled["loss"] == pytest.approx(plain["loss"], rel=1e-3)


def test_every_stage_steps(runs):
    for mode in TRAINING_MODES:
        result = read_json(f"{runs}/{mode}/{records.RESULT}")
        assert (result["stage"], result["steps"]) == (mode, 2)
        assert checkpoints.newest(f"{runs}/{mode}")
        for name in (gin_config.CONFIG, gin_config.OPERATIVE):
            assert os.path.getsize(f"{runs}/{mode}/{name}")


@pytest.mark.parametrize("mode, written", [("knn", "knn.json"), ("eval", "eval.json")])
def test_verbs_work(runs, mode, written):
    done = simclr(f"--mode={mode}", f"--workdir={runs}/linear_eval", "--gin_file=smoke")
    assert done.code == 0, done.err
    assert read_json(f"{runs}/linear_eval/{written}")["examples"] == 32


@pytest.mark.slow
def test_saved_configuration_makes_the_same_run(runs, tmp_path):
    """From `config.gin` and from `operative.gin`, to the last bit."""
    expected = (runs / "supervised" / "metrics.jsonl").read_text()
    for name in (gin_config.CONFIG, gin_config.OPERATIVE):
        workdir = tmp_path / name
        done = simclr("--mode=supervised", f"--workdir={workdir}", f"--gin_file={runs}/supervised/{name}")
        assert done.code == 0, done.err
        assert (workdir / "metrics.jsonl").read_text() == expected
    saved = (runs / "supervised" / gin_config.CONFIG).read_text()
    assert (tmp_path / gin_config.CONFIG / gin_config.CONFIG).read_text() == saved


@pytest.mark.slow
def test_every_recipe_builds(runs):
    for name in RECIPES:
        gin_config.parse(mode_of(name), [name, "smoke"])
        teacher = f"{runs}/finetune" if mode_of(name) == "distill" else None
        place = RunContext(workdir="unused", strategy=make_strategy("one_device"), teacher=teacher, dry_run=True)
        configurables.configured("train")().run(place)
        gin_config.check_read()
        shrinking = {binding.name for binding in gin_config.bindings() if binding.where.startswith("gin/smoke.gin")}
        # A recipe may choose another optimizer than its stage, whose settings for the first are then read by nothing.
        unread = {binding.name for binding in gin_config.unread() if not binding.where.startswith("gin/stages/")}
        assert not unread - REPLACED - shrinking, f"nothing reads some of {name}"
