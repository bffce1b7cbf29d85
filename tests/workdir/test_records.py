"""metrics.jsonl and throughput.jsonl: each step once, whatever happens."""

from __future__ import annotations

import json
import resource

import pytest

from simclr_tf.core.errors import StartAgain, UserError
from simclr_tf.core.files import read_lines, refusal, write_text, writing
from simclr_tf.core.tf import tf
from simclr_tf.workdir import records, tensorboard


def opened(workdir, first_step: int, every_steps: int = 1, num_steps: int = 10) -> records.Records:
    return records.Records(
        str(workdir), first_step=first_step, num_steps=num_steps, every_steps=every_steps, constants={"chance": 2.5}
    )


def write(workdir, first_step: int, stop: int, **kwargs) -> None:
    log = opened(workdir, first_step, **kwargs)
    rows = [{"loss": step / 3} for step in range(first_step, stop)]
    log.add(first_step, rows, {"seconds": 2.0, "images_per_second": 10.0})
    log.flush()
    log.close()


def steps(workdir, name: str = records.METRICS) -> list[int]:
    return [json.loads(line)["step"] for line in (workdir / name).read_text().splitlines()]


def test_each_step_once_after_a_restart(tmp_path):
    write(tmp_path, 0, 6)
    write(tmp_path, 4, 8)
    once = tmp_path / "once"
    once.mkdir()
    write(once, 0, 8)
    assert steps(tmp_path) == list(range(8))
    assert (tmp_path / records.METRICS).read_bytes() == (once / records.METRICS).read_bytes()
    assert steps(tmp_path, records.THROUGHPUT) == [7]


@pytest.mark.parametrize(
    "end", ['{"step": 3, "lo', '{"step": 3', "{", "\x00\x00\x00", "\udcff", '{"loss": 1.0}\n', "[3]\n"]
)
def test_a_line_that_was_cut_off_is_dropped(tmp_path, end):
    write(tmp_path, 0, 3)
    with open(tmp_path / records.METRICS, "ab") as file:
        file.write(end.encode("utf-8", "surrogateescape"))
    write(tmp_path, 3, 5)
    assert steps(tmp_path) == [0, 1, 2, 3, 4]


def test_a_line_without_its_end_is_kept_whole(tmp_path):
    write(tmp_path, 0, 3)
    path = tmp_path / records.METRICS
    path.write_text(path.read_text().rstrip("\n"))
    write(tmp_path, 3, 5)
    assert steps(tmp_path) == [0, 1, 2, 3, 4]


def test_sparse_records_end_with_the_last_step(tmp_path):
    write(tmp_path, 0, 10, every_steps=4)
    assert steps(tmp_path) == [0, 4, 8, 9]


def test_last_and_total_see_the_whole_run(tmp_path):
    write(tmp_path, 0, 6)
    log = opened(tmp_path, 6)
    log.add(6, [{"loss": 7.0, "rate": 0.5}], {"seconds": 3.0})
    log.flush()
    assert log.last() == {"loss": 7.0, "rate": 0.5}
    assert log.total("seconds") == 5.0
    log.close()


def test_numbers_that_are_not_finite_become_null(tmp_path):
    log = opened(tmp_path, 0)
    log.add(0, [{"loss": float("nan")}], {})
    log.close()
    assert json.loads((tmp_path / records.METRICS).read_text())["loss"] is None


def test_a_full_disk_is_told_in_one_line(tmp_path):
    log = opened(tmp_path, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.raises(UserError, match="cannot be written") as error:
            for step in range(200):
                log.add(step, [{"loss": 1.0}], {})
                log.flush()
        with pytest.raises(UserError, match="result.json cannot be written"):
            write_text(str(tmp_path / "result.json"), "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    # Nothing half-written lies beside.
    assert not [path for path in tmp_path.iterdir() if "tmp" in path.name or path.name == "result.json"]


def test_half_written_files_are_swept_and_others_stay(tmp_path):
    left = ["metrics.jsonl.123.tmp", "result.json.9.tmp", "config.gin.77.tmp", ".writable.12"]
    left.append("checkpoints/checkpoint.5.tmp")
    mine = ["notes.tmp", "metrics.jsonl.old", "result.json", "my.123.tmp"]
    (tmp_path / "checkpoints").mkdir()
    for name in left + mine:
        (tmp_path / name).write_text("")
    records.remove_leftovers(str(tmp_path))
    assert all((tmp_path / name).exists() for name in mine)
    assert not any((tmp_path / name).exists() for name in left)


def test_in_memory_file_system():
    for first, stop in ((0, 6), (4, 8)):
        log = opened("ram://records_test", first)
        log.add(first, [{"loss": step / 3} for step in range(first, stop)], {"seconds": 1.0})
        log.flush()
        log.close()
    with tf.io.gfile.GFile("ram://records_test/metrics.jsonl") as file:
        assert [json.loads(line)["step"] for line in file] == list(range(8))


def test_tensorboard_finds_scalars_and_pictures(tmp_path):
    writer = tf.summary.create_file_writer(str(tmp_path))
    with writer.as_default():
        tensorboard.scalar("loss", 0.25, step=7)
        tensorboard.image("views", tf.fill([4, 6, 3], tf.constant(255, tf.uint8)), step=8)
    writer.close()
    (path,) = tmp_path.iterdir()
    events = [event for event in tf.compat.v1.train.summary_iterator(str(path)) if event.summary.value]
    (scalar,), (picture,) = (event.summary.value for event in events)
    assert [event.step for event in events] == [7, 8]
    assert (scalar.tag, scalar.metadata.plugin_data.plugin_name) == ("loss", "scalars")
    assert tf.make_ndarray(scalar.tensor) == 0.25
    assert (picture.tag, picture.metadata.plugin_data.plugin_name) == ("views", "images")
    width, height, encoded = picture.tensor.string_val
    assert (width, height) == (b"6", b"4")
    assert tf.io.decode_png(encoded).shape == (4, 6, 3)


def test_tensorboard_reads_what_its_own_functions_would_write(tmp_path):
    pytest.importorskip("tensorboard")
    written = []
    for name, write in (("ours", tensorboard.scalar), ("theirs", tf.summary.scalar)):
        writer = tf.summary.create_file_writer(str(tmp_path / name))
        with writer.as_default():
            write("loss", 0.25, step=7)
        writer.close()
        (path,) = (tmp_path / name).iterdir()
        (value,) = (value for event in tf.compat.v1.train.summary_iterator(str(path)) for value in event.summary.value)
        written.append((value.tag, value.metadata.data_class, value.metadata.plugin_data.plugin_name, value.tensor))
    assert written[0] == written[1]


def test_what_passes_in_a_bucket_asks_for_another_start():
    gone = tf.errors.AbortedError(None, None, "All 10 retry attempts failed")
    assert refusal("gs://bucket/run", gone) is StartAgain
    assert refusal("/disk/run", gone) is UserError
    assert refusal("gs://bucket/run", tf.errors.PermissionDeniedError(None, None, "")) is UserError
    with pytest.raises(StartAgain, match="gs://bucket/run/x cannot be written"), writing("gs://bucket/run/x"):
        raise gone


def test_what_waits_is_not_written_into_a_run_of_others():
    log = opened("ram://overtaken", 0)
    log.add(0, [{"loss": 1.0}], {"seconds": 1.0})
    log.flush()
    log.add(1, [{"loss": 2.0}], {"seconds": 1.0})
    log.close(write=False)
    for name in (records.METRICS, records.THROUGHPUT):
        assert [row["step"] for row in read_lines(f"ram://overtaken/{name}")] == [0]


@pytest.mark.parametrize("remote", [True, False])
def test_a_remote_board_is_uploaded_with_checkpoints_alone(tmp_path, remote):
    workdir = "ram://board" if remote else str(tmp_path)
    tf.io.gfile.makedirs(workdir)
    log = opened(workdir, 0, num_steps=100)

    def size() -> int:
        (name,) = tf.io.gfile.listdir(f"{workdir}/tensorboard")
        return tf.io.gfile.stat(f"{workdir}/tensorboard/{name}").length

    empty = size()
    log.add(0, [{"loss": 1.0, "accuracy": 0.5}] * 100, {"seconds": 2.0})
    assert (size() == empty) == remote
    log.flush()
    shown = size()
    assert shown > empty + 200 * 30
    log.close()
    assert size() == shown
