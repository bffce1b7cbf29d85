"""The exported step, what is read from it, and plans; what needs JAX is skipped where its environment is missing."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command import simclr
from tiny_run import BATCH, TinyRun, batches

from simclr_tf.commands.plan import chips, compiler, hlo, step_program
from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import keras, tf
from simclr_tf.data.class_names import known_class_names
from simclr_tf.data.host_crops import central
from simclr_tf.data.pipeline import Input
from simclr_tf.data.sources.known_sizes import DescribedSource, numbers_suffice
from simclr_tf.data.sources.open import open_source
from simclr_tf.distribute import collectives
from simclr_tf.distribute.collectives import ReplicaProgram
from simclr_tf.training.loop import Loop
from simclr_tf.training.run_plan import RunPlan

ROOT = Path(__file__).parents[2]
STEPS = 3
SMOKE = ("--gin_file=recipes/pretrain/embedded_small", "--gin_file=smoke")
PLAN_ENV = os.environ.get("SIMCLR_PLAN_ENV", compiler.default_folder())
needs_plan_env = pytest.mark.skipif(
    not compiler.is_there(PLAN_ENV), reason=f"the TPU compiler is not installed in {PLAN_ENV} (make plan-env)"
)


def built(replicas: int) -> tuple[RunPlan, ReplicaProgram, TinyRun]:
    """A run of `TinyRun`'s, as a planner sees it."""
    keras.backend.reset_uids()
    run = TinyRun(precision="float32")
    program = ReplicaProgram(replicas)
    with program.scope():
        loop = Loop(run.stage, run.optimizer, lambda step: tf.constant(0.05), program, seed=3)
    inputs = run.stage.train_inputs()
    return RunPlan(run.stage, run.optimizer, loop, inputs, BATCH, 64, STEPS, STEPS / 8, 3, "float32"), program, run


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Steps of one and of two replicas with their first values and batches; and what TensorFlow makes of them."""
    one, program, run = built(1)
    folders, steps, sums = {}, {}, []
    values = {
        f"{i}/images/{name}": array
        for i, batch in enumerate(batches(1, STEPS)(None).as_numpy_iterator())
        for name, array in batch["images"].items()
    }
    plain = ReplicaProgram.sum

    def counting(self, value):
        sums.append(math.prod(value.shape) * value.dtype.size)
        return plain(self, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReplicaProgram, "sum", counting)
        for replicas in (1, 2):
            program = ReplicaProgram(replicas)
            loop = Loop(run.stage, run.optimizer, lambda step: tf.constant(0.05), program, seed=3)
            steps[replicas] = step_program.export(dataclasses.replace(one, loop=loop), program)
            folders[replicas] = str(tmp_path_factory.mktemp(f"step_{replicas}"))
            step_program.save(steps[replicas], folders[replicas])
            step_program.save_state(steps[replicas], folders[replicas])
            batches_file = os.path.join(folders[replicas], step_program.BATCHES)
            np.savez(batches_file, hlo_sha256=steps[replicas].sha256, **values)
    records = run.run(STEPS)
    last = {name: variable.numpy() for name, variable in steps[1].variables.items()}
    return SimpleNamespace(steps=steps, folders=folders, records=records, last=last, sums=sums, run=run)


def test_manifest_says_what_the_program_takes(exported):
    steps, records = exported.steps, exported.records
    for replicas, step in steps.items():
        signature, manifest = hlo.signature(step.module), step.manifest
        assert [tuple(a["shape"]) for a in manifest["arguments"]] == [p.shape for p in signature.parameters]
        assert [a["dtype"] for a in manifest["arguments"]] == [p.dtype for p in signature.parameters]
        batch = {a["name"]: a["shape"] for a in manifest["arguments"] if a["kind"] == "batch"}
        assert batch["images/view_1"] == [BATCH // replicas, 16, 16, 3] and batch["images/index"] == [BATCH // replicas]
        state = [a for a in manifest["arguments"] if a["kind"] == "state"]
        assert {a["name"] for a in state} == set(step.variables)
        # Every weight, average and velocity changes in a step, and each has an output of its own.
        assert sorted(a["output"] for a in state) == list(range(1, len(manifest["outputs"])))
        assert manifest["outputs"][0]["names"] == list(records[0])


def test_equal_runs_give_equal_programs(exported):
    """Also where variables have no values of their own, as in plans."""
    steps = exported.steps
    with step_program.hollow_variables():
        again, program, run = built(1)
    weights = [v for part in run.stage.network.parts().values() for v in part.variables]
    assert all(not np.any(v.numpy()) for v in weights)
    assert step_program.export(again, program).module == steps[1].module


def test_a_map_has_one_order_in_canonical_programs():
    """XLA writes an instruction's attributes in whatever order they have in memory."""
    entries = [hlo._field(1, text) for text in (b"grad_x", b"grad_y")]
    modules = []
    for order in (entries, entries[::-1]):
        instruction = hlo._field(1, b"dot.1") + hlo._field(68, b"".join(order))
        modules.append(hlo._field(3, hlo._field(2, instruction)))
    assert modules[0] != modules[1]
    assert hlo.canonical(modules[0], "step") == hlo.canonical(modules[1], "step")


def test_hollow_variables_share_memory():
    with step_program.hollow_variables():
        first = tf.Variable(lambda: tf.random.normal([50, 2]), shape=[50, 2], dtype=tf.float32)
        second = tf.Variable(tf.ones([50, 2]))
        whole = tf.Variable(7, dtype=tf.int64)
    assert first.shape == second.shape == [50, 2] and whole.dtype == tf.int64
    addresses = {v.read_value().numpy().__array_interface__["data"][0] for v in (first, second)}
    assert len(addresses) == 1
    assert not np.any(second.numpy())


def test_exchanged_bytes_are_those_that_the_step_sums(exported):
    """The program's all-reduces against what passed through the one function that sums; gradients of sums are sums."""
    assert hlo.collectives(exported.steps[1].module) == {}
    ((count, nbytes),) = hlo.collectives(exported.steps[2].module).values()
    assert (count, nbytes) == (len(exported.sums), sum(exported.sums))
    gradients = sum(4 * math.prod(v.shape) for v in exported.run.stage.trained_variables)
    assert gradients < nbytes < 3 * gradients


def test_one_program_ends_with_its_trace():
    program = ReplicaProgram(4)
    assert collectives.num_replicas() == 1
    with program.tracing():
        assert collectives.num_replicas() == 4
    assert collectives.num_replicas() == 1


def test_canonical_modules_name_no_source(exported):
    module = exported.steps[1].module
    assert b".py" not in module and b"site-packages" not in module
    assert hlo.canonical(module, "step") == module


def run_with_jax(folder: str, *arguments: str, devices: int = 1) -> list[dict]:
    script = ROOT / "benchmarks" / "run_step_pjrt.py"
    environ = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [os.path.join(PLAN_ENV, "bin", "python"), str(script), folder, "--device=cpu", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs_plan_env
@pytest.mark.parametrize("replicas", [1, 2])
def test_jax_alone_repeats_tensorflows_losses(exported, tmp_path, replicas):
    """Two replicas exchange through XLA's all-reduce and equal TensorFlow's one."""
    folders, records, last = exported.folders, exported.records, exported.last
    saved = str(tmp_path / "last.npz")
    lines = run_with_jax(folders[replicas], f"--save={saved}", devices=replicas)
    assert [line.pop("step") for line in lines] == list(range(STEPS))
    for i, (expected, actual) in enumerate(zip(records, lines)):
        assert list(expected) == list(actual)
        # Each compiler sums in an order of its own, and steps amplify what differs.
        tolerance = 2e-6 * 10**i
        # Of two candidates that are as good, rounding chooses: accuracies jump.
        for name in [name for name in expected if "accuracy" not in name]:
            assert abs(expected[name] - actual[name]) <= tolerance * max(1, abs(expected[name])), (i, name)
    with np.load(saved) as values:
        assert set(values.files) == set(last)
        for name in last:
            np.testing.assert_allclose(values[name], last[name], atol=2e-3, err_msg=name)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("batches.npz", None, "batches.npz does not belong to this step.hlo"),
        ("initial.npz", b"PK", "cannot be read"),
        ("manifest.json", b"{", "cannot be read"),
        ("manifest.json", b"{}", "manifest.json does not belong"),
    ],
)
def test_an_export_that_is_not_whole_is_one_line(exported, tmp_path, name, content, said):
    folder = shutil.copytree(exported.folders[1], tmp_path / "step")
    if content is None:
        shutil.copy(os.path.join(exported.folders[2], name), folder)
    else:
        (folder / name).write_bytes(content)
    command = [sys.executable, str(ROOT / "benchmarks" / "run_step_pjrt.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and said in done.stderr and len(done.stderr.strip().splitlines()) == 1


@needs_plan_env
def test_a_tiny_recipe_is_planned(tmp_path):
    workdir = str(tmp_path)
    arguments = ("--mode=plan", f"--workdir={workdir}", f"--plan_env={PLAN_ENV}", "--topology=v3-8", *SMOKE)
    told = simclr(*arguments, "--price=2", "--nosearch")
    assert told.code == 0, told.err
    assert "fits            yes" in told.out
    (plan,) = json.loads((tmp_path / "plan.json").read_text())["plans"]
    assert plan["fits"] and plan["chips"] == 4 and plan["replicas"] == 8 and plan["per_replica_batch_size"] == 2
    memory = plan["memory"]
    assert (
        memory["total"]
        == sum(size for name, size in memory.items() if name != "total")
        < plan["memory_bytes_per_replica"]
    )
    assert plan["bound"]["step_seconds"] == max(plan["bound"]["seconds"].values())
    assert plan["bound"]["cost"] == pytest.approx(2 * 4 * plan["bound"]["hours"])
    assert plan["collectives"]["all-reduce"]["bytes"] > 0
    module = (tmp_path / "step_8" / "step.hlo").read_bytes()
    assert hlo.collectives(module)["all-reduce"][1] == plan["collectives"]["all-reduce"]["bytes"]
    # The arguments are those that the manifest lists, up to the layout's padding.
    listed = sum(array.nbytes for array in hlo.signature(module).parameters)
    assert listed <= memory["arguments"]
    # What was compiled is not compiled again.
    again = compiler.compile_for(
        module, chips.parse_topology("v3-8"), num_replicas=8, folder=PLAN_ENV, cache=str(tmp_path / "compiled")
    )
    assert again["cached"] and again["temporaries"] == memory["temporaries"]


def test_plan_without_a_compiler_is_one_line(tmp_path):
    missing = str(tmp_path / "nothing")
    told = simclr("--mode=plan", f"--workdir={tmp_path}", "--topology=v3-8", f"--plan_env={missing}")
    assert told.code == 1 and len(told.err.strip().splitlines()) == 1
    assert missing in told.err and "make plan-env" in told.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mode=plan"], "--topology is missing"),
        (["--mode=plan", "--topology=v3-9"], "power of two"),
        (["--mode=plan", "--topology=v9-8"], "TPU v9 is unknown"),
        (["--mode=plan", "--topology=gpu"], "is not a TPU"),
        (["--mode=pretrain", "--topology=v3-8"], "takes no --topology"),
        (["--mode=export_step", "--batches=0"], "--batches is 0"),
        (["--mode=plan", "--topology=v3-8", "--stage=pretrian"], "did you mean pretrain"),
        (["--mode=export_step", "--stage=distill"], "--teacher is missing"),
        (["--mode=plan", "--topology=v3-8", "--stage=pretrain", "--teacher=t"], "takes no --teacher"),
        (["--mode=plan", "--topology=v3-8", "--stage=supervised", "--init_from=i"], "takes no --init_from"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, said):
    told = simclr(f"--workdir={tmp_path}", *arguments)
    assert told.code in (1, 2) and said in told.err and len(told.err.strip().splitlines()) == 1


def test_a_broken_picture_is_replaced_in_the_batches_too(tmp_path):
    pictures = tmp_path / "photos"
    pictures.mkdir()
    for i in range(5):
        (pictures / f"{i}.png").write_bytes(tf.io.encode_png(tf.fill([8, 8, 3], tf.constant(40 * i, tf.uint8))).numpy())
    (pictures / "0.png").write_bytes(b"")
    source = open_source(f"folder:{pictures}", "all")
    broken = [os.path.basename(name) for name in source.example_ids].index("0.png")
    stage = SimpleNamespace(max_bad_images=1)
    inputs = {"examples": Input(source, central(8), 4)}
    run = RunPlan(stage, None, None, inputs, 4, 5, 3, 2.4, 0, "float32")
    exported = step_program.Exported(b"", {}, {})
    step_program.save_batches(run, exported, str(tmp_path), 3)
    with np.load(tmp_path / step_program.BATCHES) as arrays:
        assert sorted({name.split("/")[0] for name in arrays.files}) == ["0", "1", "2", "hlo_sha256"]
        assert all(broken not in arrays[f"{i}/examples/index"] for i in range(3))
    stage.max_bad_images = 0
    with pytest.raises(UserError, match="1 image.* cannot be read, more than Data.max_bad_images = 0"):
        step_program.save_batches(run, exported, str(tmp_path), 3)


def test_numbers_stand_for_data_that_are_not_here(tmp_path):
    with numbers_suffice():
        source = open_source("tfds:imagenet2012", "train[:50%]", str(tmp_path))
    assert source.num_examples == round(1281167 / 2) and len(source.class_names) == 1000
    with pytest.raises(UserError):
        open_source("tfds:imagenet2012", "train", str(tmp_path))
    assert known_class_names(source.class_names) == []  # A teacher's names are as good.
    assert DescribedSource("cifar10", "test").num_examples == 10000
    with numbers_suffice():
        assert open_source("tfds:imagenet2012_subset/10pct", "train", str(tmp_path)).num_examples == 128116
        assert open_source("tfds:imagenet2012_subset/1pct:5.0.0", "train", str(tmp_path)).num_examples == 12811
    with pytest.raises(UserError, match="no split"):
        DescribedSource("cifar10", "validation")
