"""A run that is interrupted, however, ends as one that was not: same bits."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from processes import Command

from simclr_tf.analysis import collect as evaluate
from simclr_tf.core.errors import StartAgain, UserError
from simclr_tf.core.tf import tf
from simclr_tf.data.augment.augment import Augment
from simclr_tf.data.dataset import Data
from simclr_tf.distribute.cluster import make_strategy
from simclr_tf.models.heads import ProjectionHead
from simclr_tf.models.resnet import ResNet
from simclr_tf.optim.optimizers import Lars
from simclr_tf.optim.schedules import WarmupCosine
from simclr_tf.settings.run_context import RunContext, Settings
from simclr_tf.stages.memory import Memory
from simclr_tf.stages.pretrain import Pretrain
from simclr_tf.training.train import Training
from simclr_tf.workdir import checkpoints, identity, records
from simclr_tf.workdir.lock import WorkdirLock
from simclr_tf.workdir.networks import read_architecture, read_matched

STEPS = 9


def data(train_split: str = "train[:48]") -> Data:
    return Data(train_split=train_split, eval_split="test[:16]", image_size=16)


def make(*, depth=6, images=None, queue_size=40, output_dim=8, precision="float32", data_dir=None) -> Pretrain:
    return Pretrain(
        data=images or data(),
        augment=Augment(blur_probability=0.0, color_strength=0.0, gray_probability=0.0),
        make_encoder=lambda **kw: ResNet(depth, 0.0625, stem="cifar", **kw),
        make_head=lambda **kw: ProjectionHead(num_layers=1, output_dim=output_dim, **kw),
        make_memory=lambda online: Memory(online, queue_size=queue_size, decay=0.9),
        precision=precision,
        data_dir=data_dir,
    )


def run(workdir, *, depth=6, images=None, settings=None, **changes) -> dict:
    """A pretraining run with a memory, in this process."""

    def make_stage(precision, data_dir):
        return make(depth=depth, images=images, precision=precision, data_dir=data_dir)

    asked = {"global_batch_size": 16, "steps": STEPS, "seed": 1, "precision": "float32", "checkpoint_every_steps": 3}
    asked["board_images"] = 0
    training = Training(
        make_stage, Lars, lambda: WarmupCosine(base_learning_rate=0.5, warmup_fraction=0.2), **{**asked, **changes}
    )
    return training.run(RunContext(str(workdir), make_strategy("one_device"), settings=settings or Settings()))


class Terminate(Settings):
    """Ends the run after its first step."""

    def save_operative(self, workdir) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def digest(workdir) -> str:
    """Of every value in the newest checkpoint: weights, optimizer, queue, step.

    Not of TensorFlow's plan of the objects, which has the layers' names: Keras counts them through a whole process.
    """
    path = checkpoints.newest(str(workdir))
    reader = tf.compat.v1.train.NewCheckpointReader(path)
    whole = hashlib.sha256(os.path.basename(path).encode())
    for name in sorted(reader.get_variable_to_shape_map()):
        if name != "_CHECKPOINTABLE_OBJECT_GRAPH":
            whole.update(name.encode() + reader.get_tensor(name).tobytes())
    return whole.hexdigest()


def read(workdir, name: str) -> str:
    with tf.io.gfile.GFile(os.path.join(str(workdir), name)) as file:
        return file.read()


def assert_same_end(workdir, expected) -> None:
    assert read(workdir, records.METRICS) == read(expected, records.METRICS)
    assert digest(workdir) == digest(expected)
    ours, theirs = (json.loads(read(folder, records.RESULT)) for folder in (workdir, expected))
    assert [ours[name] for name in ("last_step", "evaluation", "steps")] == [
        theirs[name] for name in ("last_step", "evaluation", "steps")
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def copy(whole, tmp_path, *, without_result: bool = True) -> Path:
    target = tmp_path / "copy"
    shutil.copytree(whole, target)
    if without_result:
        (target / records.RESULT).unlink()
    return target


class Killed(BaseException):
    """Stands for the end of the process."""


def test_the_checkpoint_holds_all_there_is(whole):
    names = tf.compat.v1.train.NewCheckpointReader(checkpoints.newest(str(whole))).get_variable_to_shape_map()
    first = {name.split("/")[0] for name in names}
    assert first >= {"encoder", "head", "classifier", "memory", "optimizer", "step"}
    assert any("queue" in name for name in names)


@pytest.mark.slow
def test_killed_while_saving(whole, tmp_path, monkeypatch):
    write = tf.train.Checkpoint.write

    def half(self, path, *args, **kwargs):
        if path.endswith("step-6"):
            Path(f"{path}.data-00000-of-00001").write_text("half")
            raise Killed
        return write(self, path, *args, **kwargs)

    monkeypatch.setattr(tf.train.Checkpoint, "write", half)
    with pytest.raises(Killed):
        run(tmp_path)
    monkeypatch.undo()
    assert len(read(tmp_path, records.METRICS).splitlines()) == 6
    # Another number of steps in a call, and of saves, makes no difference.
    run(tmp_path, steps_per_call=1, checkpoint_every_steps=4, keep_checkpoints=1)
    assert_same_end(tmp_path, whole)


@pytest.mark.slow
def test_sigterm_saves_and_asks_to_be_started_again_on_a_remote_workdir(whole):
    workdir = "ram://runs/remote"
    with pytest.raises(StartAgain, match="saved at step 1 of 9") as stopped:
        run(workdir, settings=Terminate())
    assert stopped.value.exit_code == 75
    assert checkpoints.newest(workdir).endswith("step-1")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    run(workdir)
    assert_same_end(workdir, whole)


def test_a_cut_checkpoint_is_passed_over(whole, tmp_path, caplog):
    workdir = copy(whole, tmp_path)
    os.truncate(workdir / "checkpoints" / f"step-{STEPS}.data-00000-of-00001", 1000)
    run(workdir)
    assert f"step-{STEPS}" in caplog.text
    assert_same_end(workdir, whole)


@pytest.mark.slow
def test_killed_before_the_result(whole, tmp_path, monkeypatch):
    workdir = copy(whole, tmp_path)
    # No step is taken again, so none may be decoded again.
    monkeypatch.setattr("simclr_tf.training.loop.Loop.run", lambda *args, **kwargs: pytest.fail("a step was taken"))
    run(workdir)
    assert_same_end(workdir, whole)


@pytest.mark.slow
def test_sigterm_while_measuring(whole, tmp_path, monkeypatch):
    workdir = copy(whole, tmp_path)
    collect = evaluate.collect

    def terminated(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return collect(*args, **kwargs)

    monkeypatch.setattr(evaluate, "collect", terminated)
    with pytest.raises(StartAgain):
        run(workdir)
    assert not (workdir / records.RESULT).exists()


def test_a_finished_run_is_left_alone(whole, tmp_path, capsys):
    workdir = copy(whole, tmp_path, without_result=False)
    before = {path: path.stat().st_mtime_ns for path in (workdir / "checkpoints").iterdir()}
    assert run(workdir) == json.loads(read(whole, records.RESULT))
    assert "nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (workdir / "checkpoints").iterdir()}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"steps": 6, "seed": 2, "global_batch_size": 24},
            ["steps is 9 there, 6 here (a run may grow", "seed is 1", "is 16 there"],
        ),
        ({"depth": 10}, ["encoder's depth is 6 there, 10 here"]),
        ({"images": data("train[:64]")}, ["num_examples is 48 there, 64 here"]),
    ],
)
def test_another_run_is_refused_by_name(whole, tmp_path, changes, named):
    workdir = copy(whole, tmp_path)
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file() and path.name != "lock.json"}
    with pytest.raises(UserError, match="holds another run") as refused:
        run(workdir, **changes)
    assert all(name in str(refused.value) for name in named)
    assert "\n" not in str(refused.value)
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.slow
def test_a_run_that_grows_is_exact_however_it_is_interrupted(whole, tmp_path):
    straight, broken = (Path(shutil.copytree(whole, tmp_path / name)) for name in ("straight", "broken"))
    run(straight, steps=15)
    with pytest.raises(StartAgain, match="saved at step 10 of 15"):
        run(broken, steps=15, settings=Terminate())
    for step in (9, 10):  # What is left is from before the run grew.
        (broken / "checkpoints" / f"step-{step}.index").unlink()
    run(broken, steps=15)
    assert_same_end(broken, straight)
    assert read(straight, "result.9_steps.json") == read(whole, records.RESULT)
    assert json.loads(read(straight, identity.RUN))["earlier_lengths"] == [{"until_step": 9, "steps": 9, "epochs": 3.0}]
    rates = [json.loads(line)["learning_rate"] for line in read(straight, records.METRICS).splitlines()]
    assert rates[:9] == [json.loads(line)["learning_rate"] for line in read(whole, records.METRICS).splitlines()]
    assert rates[9] > 3 * rates[8] and rates[14] == min(rates[9:])


def test_a_run_knows_its_earlier_lengths():
    facts = {"global_batch_size": 16, "num_examples": 48}
    first, second, third = ({**facts, "steps": steps} for steps in (9, 15, 30))
    assert not identity.lengthen({**first}, first, 6)
    assert identity.lengthen(second, first, 9)
    assert identity.lengthen(third, second, 12)
    assert [(e["until_step"], e["steps"], e["epochs"]) for e in third["earlier_lengths"]] == [
        (9, 9, 3.0),
        (12, 15, 5.0),
    ]
    again, longer = {**facts, "steps": 30}, {**facts, "steps": 40}
    assert not identity.lengthen(again, third, 6) and again["earlier_lengths"] == third["earlier_lengths"]
    assert identity.lengthen(longer, third, 6)
    assert [e["until_step"] for e in longer["earlier_lengths"]] == [6, 6, 6]


def held(stage) -> dict[str, list[bytes]]:
    """Each item that another run can bring, as the bytes of its variables."""
    items = stage.initial_items().items()
    return {name: [v.numpy().tobytes() for v in getattr(item, "variables", [item])] for name, item in items}


@pytest.mark.parametrize(
    ("changes", "anew"),
    [
        ({}, {}),
        (
            {"queue_size": 50},
            {"memory/queue": "queue_size is 40 there, 50 here", "memory/enqueued": "queue_size is 40"},
        ),
        (
            {"output_dim": 16},
            dict.fromkeys(
                ["head", *(f"memory/{name}" for name in ("network", "queue", "enqueued"))], "output_dim is 8 there, 16"
            ),
        ),
    ],
)
def test_pretraining_takes_all_that_fits_from_another_run(whole, changes, anew):
    stage, other = make(**changes), make()
    read_matched(other.checkpoint_items(), checkpoints.newest(str(whole)))
    table = stage.start(str(whole))
    for name, why in anew.items():
        assert any(line.split()[0] == name and f"starts anew: {why}" in line for line in table)
    wanted, found = held(other), held(stage)
    assert {name for name in found if found[name] == wanted[name]} == set(found) - set(anew)
    if "memory/network" in anew:
        assert sorted(found["memory/network"]) == sorted(found["encoder"] + found["head"])


def test_a_probe_of_other_classes_starts_anew(whole):
    stage = make()
    description = read_architecture(str(whole), "--init_from")
    assert stage.misfit("classifier", description) == []
    renamed = {**description, "class_names": ["zebra", *description["class_names"][1:]]}
    assert stage.misfit("classifier", renamed) == ["class 'zebra' of that run is 'airplane' here"]
    assert stage.misfit("encoder", renamed) == []
    assert stage.misfit("memory/queue", {**description, "memory": None}) == ["that run has no memory"]


def test_any_setting_that_changes_a_step_is_compared(whole, tmp_path):
    workdir = str(copy(whole, tmp_path))
    settings = {"Pretrain.temperature": "0.1", "train.make_optimizer": "@Lars", "train.keep_checkpoints": "3"}
    stage = {"stage": "pretrain", "network": {}}
    identity.save(workdir, identity.identify(settings, precision="float32"))
    harmless = {**settings, "train.keep_checkpoints": "9", "Data.new_in_this_version": "1"}
    identity.check(workdir, stage, identity.identify(harmless, precision="float32"))
    for change, facts, named in [
        ({"Pretrain.temperature": "0.5"}, {"precision": "float32"}, "Pretrain.temperature is '0.1' there, '0.5' here"),
        ({"train.make_optimizer": "@Sgd"}, {"precision": "float32"}, "train.make_optimizer is '@Lars' there"),
        ({}, {"precision": "bfloat16"}, "precision is 'float32' there, 'bfloat16' here"),
    ]:
        with pytest.raises(UserError, match=named):
            identity.check(workdir, stage, identity.identify({**settings, **change}, **facts))


def test_a_teacher_is_known_by_its_weights(whole, tmp_path):
    workdir = copy(whole, tmp_path)
    path = workdir / records.ARCHITECTURE
    here = {**json.loads(path.read_text()), "teacher": {"path": "runs/a", "fingerprint": "12"}}
    path.write_text(json.dumps(here))
    identity.check(str(workdir), {**here, "teacher": {"path": "./runs/a", "fingerprint": "12"}}, {"settings": {}})
    with pytest.raises(UserError, match="teacher's fingerprint is '12' there, '13' here"):
        identity.check(str(workdir), {**here, "teacher": {"path": "runs/a", "fingerprint": "13"}}, {"settings": {}})
    path.write_text(json.dumps({**here, "teacher": {"path": "runs/a"}}))  # Of an earlier version.
    with pytest.raises(UserError, match="teacher's path"):
        identity.check(str(workdir), {**here, "teacher": {"path": "runs/b", "fingerprint": "12"}}, {"settings": {}})


def test_everything_may_change_before_there_is_a_checkpoint(whole, tmp_path):
    workdir = copy(whole, tmp_path)
    shutil.rmtree(workdir / "checkpoints")
    identity.check(str(workdir), {"stage": "other", "network": {}}, identity.identify({}, steps=1))


def test_results_whose_checkpoints_are_gone_are_not_written_over(whole, tmp_path):
    workdir = copy(whole, tmp_path, without_result=False)
    shutil.rmtree(workdir / "checkpoints")
    before = (workdir / records.METRICS).read_bytes()
    with pytest.raises(UserError, match="holds the results of a finished run, but its checkpoints are gone"):
        run(workdir)
    assert (workdir / records.METRICS).read_bytes() == before


@pytest.mark.slow
def test_weights_that_the_last_update_spoilt_are_not_saved(tmp_path, monkeypatch):
    def rate(self, step):
        return tf.where(tf.equal(step, 5), tf.constant(float("inf")), tf.constant(0.1))

    monkeypatch.setattr(WarmupCosine, "__call__", rate)
    with pytest.raises(UserError, match="weights are not finite at step 5 .*last good checkpoint is kept"):
        run(tmp_path)
    assert checkpoints.newest(str(tmp_path)).endswith("step-3")


def test_harmless_settings_are_not_part_of_a_run():
    settings = {"train.keep_checkpoints": "3", "train.steps_per_call": "1", "Lars.momentum": "0.9"}
    assert identity.identify(settings, steps=4) == {"steps": 4, "settings": {"Lars.momentum": "0.9"}}


def test_a_workdir_in_use_is_refused(whole, tmp_path):
    workdir = copy(whole, tmp_path)
    with WorkdirLock(str(workdir)), pytest.raises(UserError, match="in use by process"):
        run(workdir)


# What follows starts the command line in processes of its own.

# More for a long campaign.
KILLS = int(os.environ.get("KILLS", "8"))
LONG = 12 * KILLS + 24
COMMAND = [
    "--mode=pretrain", "--gin_file=cifar10_r18", "--gin_file=smoke",
    "--gin_param=Pretrain.make_memory=@Memory", "--gin_param=Memory.queue_size=40", f"--gin_param=train.steps={LONG}",
    "--gin_param=ProjectionHead.num_layers=1", "--gin_param=train.checkpoint_every_steps=2",
    "--gin_param=ResNet.depth=6", "--gin_param=train.steps_per_call=1", "--gin_param=Augment.color_strength=0.0",
    "--gin_param=Augment.gray_probability=0.0",
]  # fmt: skip


def start(workdir, *flags: str) -> Command:
    return Command(*COMMAND, f"--workdir={workdir}", *flags)


def newest_step(workdir) -> int:
    folder = os.path.join(workdir, "checkpoints")
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return max((int(name[5:-6]) for name in names if name.endswith(".index")), default=0)


@pytest.mark.slow
def test_commands_share_no_workdir_and_sigterm_ends_with_75(tmp_path):
    endless = ("--gin_param=train.steps=100000",)  # The second one takes its time to get to the lock.
    first = start(tmp_path, *endless)
    try:
        first.wait_for(lambda: newest_step(tmp_path) > 0)
        before = (tmp_path / "config.gin").read_bytes()
        code, told = start(tmp_path, *endless, "--gin_param=train.keep_checkpoints=9").end()
        assert code == 1
        assert f"is in use by process {first.pid} on " in told.splitlines()[-1]
        assert (tmp_path / "config.gin").read_bytes() == before
    finally:
        first.terminate()
        code, told = first.end()
    assert code == 75, told
    assert "stopped by SIGTERM; saved at step" in told.splitlines()[-1]


@pytest.mark.slow
def test_many_kills(tmp_path):
    """Killed at any moment, starting and saving included."""
    expected, killed = tmp_path / "expected", tmp_path / "killed"
    code, told = start(expected).end()
    assert code == 0, told
    chance = random.Random(os.environ.get("KILLS_SEED", "6"))
    moments = []
    for number in range(KILLS):
        process = start(killed)
        if number % 4 == 3:
            time.sleep(chance.uniform(0, 6))
        else:
            before = newest_step(killed)
            process.wait_for(lambda: newest_step(killed) > before)  # noqa: B023
            time.sleep(chance.uniform(0, 0.3))
        process.kill()
        code, told = process.end()
        assert code == -signal.SIGKILL, told  # Not refused, and not done before.
        moments.append(newest_step(killed))
    assert 0 < moments[-1]
    code, told = start(killed).end()
    assert code == 0, told
    assert_same_end(killed, expected)
