"""Several processes on loopback stand for several hosts."""

from __future__ import annotations

import json
import shutil
import signal
import socket

import pytest
from processes import Command

from simclr_tf.core.tf import tf
from simclr_tf.workdir import records

STEPS, SAVE_EVERY = 8, 4
COMMAND = [
    "--mode=pretrain", "--gin_file=cifar10_r18", "--gin_file=smoke",
    f"--gin_param=train.steps={STEPS}", f"--gin_param=train.checkpoint_every_steps={SAVE_EVERY}",
    "--gin_param=train.precision='float64'", "--gin_param=ProjectionHead.num_layers=1", "--gin_param=ResNet.depth=6",
]  # fmt: skip


def start(workdir, *flags: str, **environment: str) -> Command:
    return Command(*COMMAND, f"--workdir={workdir}", *flags, **environment)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("localhost", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def start_workers(workdir, *flags: str) -> list[Command]:
    workers = [f"localhost:{port}" for port in free_ports(2)]
    return [
        start(
            workdir,
            *flags,
            TF_CONFIG=json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}),
        )
        for index in range(2)
    ]


def finish(processes: list[Command]) -> list[tuple[int, str]]:
    return [process.end() for process in processes]


def metrics(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / records.METRICS).read_text().splitlines()]


def assert_equal_runs(workdir, expected, tolerance: float = 1e-9) -> None:
    """Losses step by step, every value of the last checkpoint, and what was measured."""
    ours, theirs = metrics(workdir), metrics(expected)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == list(range(STEPS))
    for one, other in zip(ours, theirs):
        assert one.keys() == other.keys()
        for name in one:
            assert abs(one[name] - other[name]) <= tolerance * max(1, abs(one[name])), (name, one["step"])
    readers = [
        tf.compat.v1.train.NewCheckpointReader(str(folder / "checkpoints" / f"step-{STEPS}"))
        for folder in (workdir, expected)
    ]
    names = [set(reader.get_variable_to_shape_map()) - {"_CHECKPOINTABLE_OBJECT_GRAPH"} for reader in readers]
    assert names[0] == names[1]
    for name in names[0]:
        one, other = (reader.get_tensor(name) for reader in readers)
        assert abs(one - other).max() <= tolerance * max(1, abs(one).max()), name
    results = [json.loads((folder / records.RESULT).read_text()) for folder in (workdir, expected)]
    assert results[0]["evaluation"] == results[1]["evaluation"]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    ((code, told),) = finish([start(folder, "--strategy=one_device")])
    assert code == 0, told
    return folder


@pytest.mark.slow
def test_two_virtual_devices_equal_one_device(tmp_path, one_device):
    ((code, told),) = finish([start(tmp_path, "--virtual_devices=2")])
    assert code == 0, told
    assert "strategy: mirrored, 2 replica(s) (--virtual_devices=2)" in told
    assert_equal_runs(tmp_path, one_device)


@pytest.mark.slow
def test_a_killed_worker_and_the_same_end(tmp_path, one_device):
    """Two workers equal one device, also when one of them is killed on the way and all are started again."""
    first = tmp_path / "first"
    processes = start_workers(first, "--gin_param=train.steps_per_call=1")
    saved = first / "checkpoints" / f"step-{SAVE_EVERY}.index"
    processes[0].wait_for(saved.exists)
    processes[1].kill()
    (chief, told), (killed, _) = finish(processes)
    assert killed == -signal.SIGKILL
    if chief == 0:  # It was quicker than the kill.
        shutil.rmtree(first)
    else:
        # 75 asks for another start; TensorFlow's own watchdog may abort the process first, which scripts take alike.
        assert chief == 75 or chief < 0, told
    ends = finish(start_workers(first))
    assert [code for code, _ in ends] == [0, 0], ends
    assert "strategy: multi_worker, 2 replica(s), 2 workers (TF_CONFIG is set)" in ends[0][1]
    assert "pretrain: done" in ends[0][1]
    assert "pretrain" not in ends[1][1]
    assert_equal_runs(first, one_device)
    # Only the chief writes: one file of TensorBoard's for each of its two starts, and nothing half-written.
    assert len(list((first / "tensorboard").iterdir())) <= 2
    assert not [path for path in first.rglob("*") if "tmp" in path.name or "temp" in path.name]


@pytest.mark.slow
def test_workers_agree_on_how_many_steps_a_call_takes_and_where_to_stop(tmp_path):
    """Only the chief draws pictures, after the first step: by its own clock each worker would choose another number."""
    number = 30
    processes = start_workers(
        tmp_path,
        "--gin_param=train.steps=100000",
        f"--gin_param=train.checkpoint_every_steps={number}",
        "--gin_param=train.board_images=20",
        # All that asks for the batch's size, which TensorFlow forgets between workers.
        "--gin_param=Pretrain.make_memory=@Memory",
        "--gin_param=Memory.queue_size=64",
        "--gin_param=Pretrain.nt_xent='tiled'",
        "--gin_param=Pretrain.micro_batch_size=8",
    )
    saved = tmp_path / "checkpoints" / f"step-{number}.index"
    processes[0].wait_for(saved.exists)
    processes[1].terminate()
    ends = finish(processes)
    assert [code for code, _ in ends] == [75, 75], ends
    (last,) = {int(told.split("saved at step ")[1].split()[0]) for _, told in ends}
    assert (tmp_path / "checkpoints" / f"step-{last}.index").exists()
    assert [row["step"] for row in metrics(tmp_path)] == list(range(last)) and last >= number
