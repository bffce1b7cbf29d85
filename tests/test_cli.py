"""The command line: what it says of wrong input, its exit codes, its help; nothing is written where nothing is done."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import simclr

from simclr_tf import cli
from simclr_tf.core.tf import tf
from simclr_tf.settings.modes import OPERATIONS
from simclr_tf.training import train

ROOT = Path(__file__).parents[1]
SMALL = ("--gin_file=embedded_small", "--gin_file=smoke")
RUN = ("--mode=pretrain", "--workdir={tmp}/w")
TINY = (*RUN, *SMALL)

# Arguments ({tmp}: an empty folder), exit code, what the line says.
WRONG = [
    # Flags.
    ([], 2, "--mode is missing; choose one of pretrain, "),
    (["pretrain"], 2, "'pretrain' belongs to no flag; write every value as --FLAG=VALUE"),
    (["--mode"], 2, "mode"),
    (["--mode="], 2, "--mode= is unknown; choose one of pretrain"),
    (["--mode=pretrian", "--workdir={tmp}/w"], 2, "--mode=pretrian is unknown; did you mean pretrain?"),
    (["--mode=Pretrain", "--workdir={tmp}/w"], 2, "did you mean pretrain?"),
    (["--mod=pretrain"], 2, "--mod is unknown; did you mean --mode?"),
    (["--mode=pretrain", "--work_dir={tmp}/w"], 2, "--work_dir is unknown; did you mean --workdir?"),
    (["--mode=pretrain", "--gin-param=EPOCHS=3"], 2, "is unknown; did you mean --gin_param?"),
    (["--mode=pretrain", "--zzzzz=1"], 2, "--zzzzz is unknown; see simclr --help"),
    (["--mode=pretrain", "--virtual_devices=two", "--workdir={tmp}/w"], 2, "--virtual_devices=two"),
    (["--mode=pretrain", "--dry_run=maybe", "--workdir={tmp}/w"], 2, "--dry_run=maybe"),
    (["--mode=pretrain"], 2, "--workdir is missing; --mode=pretrain needs a folder"),
    (["--mode=knn"], 2, "--workdir is missing"),
    (["--mode=finetune", "--workdir={tmp}/w"], 2, "--init_from is missing"),
    (["--mode=distill", "--workdir={tmp}/w"], 2, "--teacher is missing"),
    (["--mode=knn", "--workdir={tmp}/w", "--init_from={tmp}/x"], 2, "--mode=knn takes no --init_from"),
    ([*RUN, "--teacher={tmp}/x"], 2, "--mode=pretrain takes no --teacher"),
    (["--mode=demo", "--workdir={tmp}/w", "--gin_param=EPOCHS=3"], 2, "--mode=demo takes no gin"),
    (["--mode=demo", "--workdir={tmp}/w", "--dry_run"], 2, "--mode=demo has no --dry_run"),
    # Gin.
    ([*RUN, "--gin_param=EPOCHS"], 2, "--gin_param='EPOCHS' sets nothing"),
    ([*RUN, "--gin_param=ResNet.stem=cifar"], 1, "put text in quotes"),
    ([*RUN, "--gin_param=Resnet.depth=18"], 1, "did you mean ResNet.depth?"),
    ([*RUN, "--gin_file=cifar10_r81"], 1, "did you mean recipes/"),
    ([*RUN, "--gin_file=models/r50"], 1, "BATCH_SIZE, EPOCHS, LEARNING_RATE have no value"),
    ([*TINY, "--gin_param=EPOCH=3"], 1, "did you mean EPOCHS?"),
    ([*TINY, "--gin_param=t/ResNet.depth=34"], 1, "nothing here reads t/ResNet.depth"),
    # Values.
    ([*TINY, "--gin_param=ResNet.depth=19"], 1, "ResNet.depth is 19; choose one of"),
    ([*TINY, "--gin_param=ResNet.sk_ratio=0.0625"], 1, "selective kernels"),
    ([*TINY, "--gin_param=ResNet.width=-1"], 1, "ResNet.width is -1"),
    ([*TINY, "--gin_param=Pretrain.temperature=0.0"], 1, "temperature"),
    ([*TINY, "--gin_param=ProjectionHead.num_layers=5"], 1, "use a whole number from 0 to 4"),
    ([*TINY, "--gin_param=train.global_batch_size=0"], 1, "global_batch_size is 0"),
    ([*TINY, "--gin_param=train.epochs=2"], 1, "set one of them"),
    ([*TINY, "--gin_param=train.precision='half'"], 1, "'half'"),
    ([*TINY, "--gin_param=Augment.area_min=2"], 1, "area_min is 2"),
    ([*TINY, "--gin_param=WarmupCosine.warmup_fraction=0.1"], 1, "warmup"),
    ([*TINY, "--gin_param=Data.image_size=4"], 1, "Data.image_size is 4"),
    # Places.
    ([*RUN, "--strategy=mirorred"], 1, "mirorred"),
    ([*RUN, "--strategy=multi_worker"], 1, "TF_CONFIG"),
    ([*RUN, "--virtual_devices=-2"], 1, "--virtual_devices is -2"),
    (["--mode=pretrain", "--workdir=/proc/none", *SMALL], 1, "--workdir=/proc/none cannot be written to"),
    (["--mode=knn", "--workdir={tmp}/w"], 1, "is not the workdir of a run (no such folder)"),
    (["--mode=eval", "--workdir={tmp}"], 1, "it has no architecture.json"),
    (["--mode=linear_eval", "--workdir={tmp}/w", "--init_from={tmp}/none"], 1, "--init_from="),
    (["--mode=finetune", "--workdir={tmp}/w", "--init_from={tmp}"], 1, "it has no architecture.json"),
    # Paths of Windows.
    ([*RUN[:1], r"--workdir=C:\Users\me\runs"], 1, r"--workdir is C:\Users\me\runs, which is how Windows"),
    ([*RUN, r"--data_dir=\\nas\pictures"], 1, r"mount -t drvfs '\\nas\pictures' /mnt/pictures"),
    ([*RUN, r"--gin_file=d:/my.gin"], 1, "in WSL it is /mnt/d/my.gin"),
    ([*RUN, r"--gin_param=Data.source='folder:C:\new\Users'"], 1,
     r"--gin_param: Data.source is folder:C:\new\Users, which is how Windows spells a path; in WSL it is f"),
    ([*RUN, "--gin_param=Data.source='folder:C:/Users'"], 1, "in WSL it is folder:/mnt/c/Users"),
    ([*RUN, r"--gin_param=Data.source=folder:C:\Users"], 1, "in WSL it is folder:/mnt/c/Users"),
    ([*RUN, r"--gin_param=Data.source='folder:old\new'"], 1, r"folder:old\new is not there"),
    ([*RUN, "--gin_param=Data.source='folder:{tmp}/a\x1b[31m'"], 1, r"/a\x1b[31m is not there"),
    ([*RUN, r"--gin_param=Data.source='folder:old\\dogs'"], 1, r"did you mean folder:old/dogs?"),
    # Data.
    ([*RUN, "--gin_param=Data.source='folder:{tmp}/none'"], 1, "is not there"),
    ([*RUN, "--gin_param=Data.source='folder:{tmp}'"], 1, "has no JPEG, PNG"),
    ([*RUN, "--gin_param=Data.source='embeded:cifar10_mini'"], 1, "embedded"),
    ([*RUN, "--gin_param=Data.source='embedded:cifar'"], 1, "cifar10_mini"),
    ([*RUN, "--gin_param=Data.train_split='trian'"], 1, "has no split 'trian'"),
]  # fmt: skip


@pytest.mark.parametrize("arguments, code, told", WRONG, ids=[" ".join(row[0]) or "nothing" for row in WRONG])
def test_wrong_input(arguments, code, told, tmp_path, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    home = tmp_path / "home"
    home.mkdir()
    done = simclr(*(argument.replace("{tmp}", str(home)) for argument in arguments))
    assert done.code == code, done.err or done.out
    lines = done.err.strip().splitlines()
    assert lines[-1].startswith("simclr: "), done.err
    assert told.replace("{tmp}", str(home)) in lines[-1]
    assert "Traceback" not in done.err
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_windows_is_one_line(monkeypatch):
    monkeypatch.setattr(cli.sys, "platform", "win32")
    told = simclr("--mode=pretrain", "--workdir=w")
    assert told.code == 1 and told.err.startswith("simclr: ") and "WSL" in told.err and told.err.count("\n") == 1


def test_a_bug_keeps_its_traceback(monkeypatch, tmp_path):
    def broken(precision):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(train, "resolve_precision", broken)
    with pytest.raises(ZeroDivisionError):
        simclr("--mode=pretrain", f"--workdir={tmp_path}/w", *SMALL, "--dry_run")


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (
            tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[9]"),
            1,
            "not enough memory",
        ),
        (MemoryError("Unable to allocate 9 GiB"), 1, "not enough memory"),
        (tf.errors.UnavailableError(None, None, "503"), 75, "does not answer"),
        (tf.errors.ResourceExhaustedError(None, None, "429 of a bucket"), 75, "does not answer"),
        (tf.errors.PermissionDeniedError(None, None, "403"), 1, "403"),
    ],
)
def test_what_a_machine_refuses_is_one_line(error, code, told, monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(train, "resolve_precision", refuse)
    done = simclr("--mode=pretrain", f"--workdir={tmp_path}/w", *SMALL, "--dry_run")
    assert done.code == code
    assert re.match(f"simclr: .*{told}", done.err.splitlines()[-1])
    assert "Traceback" not in done.err


def test_dry_run_builds_and_writes_nothing(tmp_path):
    done = simclr("--mode=pretrain", f"--workdir={tmp_path}/w", "--dry_run")
    assert done.code == 0, done.err
    for told in ("images of embedded:cifar10_mini", "steps of", "encoder", "parameters", "FLOP"):
        assert told in done.out
    assert not list(tmp_path.iterdir())


def test_what_was_there_is_left_as_it_was(tmp_path):
    """A workdir that holds something else."""
    (tmp_path / "architecture.json").write_text("no json")
    (tmp_path / "notes.txt").write_text("mine")
    done = simclr("--mode=knn", f"--workdir={tmp_path}")
    assert done.code == 1
    assert "cannot be understood" in done.err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "architecture.json": "no json",
        "notes.txt": "mine",
    }


def test_interrupt(monkeypatch):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    done = simclr("--mode=pretrain")
    assert done.code == 130
    assert "goes on from what was saved last" in done.err


def test_help_is_short_and_names_every_mode():
    done = simclr("--help")
    assert done.code == 0
    assert len(done.out.splitlines()) < 45
    assert max(map(len, done.out.splitlines())) < 120
    for mode, operation in OPERATIONS.items():
        assert f"  {mode:<12} {operation.summary}" in done.out.splitlines()
    for flag in ("--workdir", "--init_from", "--gin_file", "--gin_param", "--dry_run", "--helpfull"):
        assert flag in done.out


def test_helpfull_has_the_rest():
    done = simclr("--helpfull")
    assert done.code == 0
    for flag in ("--tpu", "--verbosity", "--workdir"):
        assert flag in done.out


@pytest.mark.parametrize("arguments", [["--help"], ["--mode=pretrian", "--workdir=x"], ["--wrkdir=x"]])
def test_answers_at_once(arguments):
    """Help and typing errors come before TensorFlow does; judged by processor time, since the machine may be busy."""
    code = (
        "import json, sys, time\n"
        "from simclr_tf import cli\n"
        "try:\n    cli.main(['simclr', *sys.argv[1:]])\n"
        "except SystemExit:\n    print()\n"
        "print(json.dumps([time.process_time(), sorted(sys.modules)]))"
    )
    run = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, modules = json.loads(run.stdout.splitlines()[-1])
    assert seconds < 1.0
    assert not {"tensorflow", "gin", "numpy", "keras"} & set(modules)


@pytest.mark.parametrize("entry", [["run.py"], ["-m", "simclr_tf.cli"]])
def test_entries(entry):
    started = time.monotonic()
    run = subprocess.run([sys.executable, *entry, "--mode=nonsense"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("simclr: --mode=nonsense is unknown; choose one of pretrain, ")
    assert run.stdout == ""
    assert time.monotonic() - started < 60
