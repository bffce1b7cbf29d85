"""Checkpoints: only whole ones count, the newest few are kept, and nothing else is touched."""

from __future__ import annotations

import os
import resource

import numpy as np
import pytest

from simclr_tf.core.errors import StartAgain, UserError
from simclr_tf.core.tf import tf
from simclr_tf.workdir.checkpoints import Checkpoints, _damage, exists, newest

SIZE = 20_000


class Weights(tf.Module):
    def __init__(self, value: float, size: int = SIZE):
        super().__init__()
        self.weights = tf.Variable(tf.fill([size], value))
        self.more = tf.Variable(tf.fill([size], -value))


def checkpoints(workdir, value: float = 0.0, keep: int = 3, **kwargs):
    items = {"model": Weights(value), "step": tf.Variable(0, dtype=tf.int64)}
    return items, Checkpoints(str(workdir), items, keep=keep, **kwargs)


def saved(workdir, steps, keep: int = 3):
    """Saves weights that equal the step."""
    items, own = checkpoints(workdir, keep=keep)
    for step in steps:
        items["model"].weights.assign(tf.fill([SIZE], float(step)))
        items["model"].more.assign(tf.fill([SIZE], -float(step)))
        items["step"].assign(step)
        own.save(step)
    return own


def assert_resumes(workdir, step: int) -> None:
    items, own = checkpoints(workdir)
    path = own.resume()
    assert path == os.path.join(str(workdir), "checkpoints", f"step-{step}")
    assert int(items["step"]) == step
    np.testing.assert_array_equal(items["model"].weights, np.full(SIZE, step, np.float32))
    np.testing.assert_array_equal(items["model"].more, np.full(SIZE, -step, np.float32))


def files(workdir) -> set[str]:
    return set(os.listdir(os.path.join(workdir, "checkpoints")))


def own_files(*steps: int) -> set[str]:
    return {f"step-{step}.{end}" for step in steps for end in ("index", "data-00000-of-00001")} | {"checkpoint"}


def test_nothing_there(tmp_path):
    _, own = checkpoints(tmp_path)
    assert own.resume() is None
    assert newest(str(tmp_path)) is None
    assert not exists(str(tmp_path))


def test_newest_is_restored_and_newest_few_are_kept(tmp_path):
    saved(tmp_path, [2, 4, 6, 10])
    assert files(tmp_path) == own_files(4, 6, 10)
    assert_resumes(tmp_path, 10)
    # TensorFlow's own way finds the same.
    assert tf.train.latest_checkpoint(str(tmp_path / "checkpoints")) == newest(str(tmp_path))


def test_only_own_files_are_deleted(tmp_path):
    saved(tmp_path, [2])
    mine = {"notes.txt", "step-2-best.index", "step-2.index.backup", "best-3.index", "step-x.data-00000-of-00001"}
    for name in mine:
        (tmp_path / "checkpoints" / name).write_text("mine")
    (tmp_path / "checkpoints" / "step-2_temporary").mkdir()
    saved(tmp_path, [4, 6, 8], keep=1)
    assert files(tmp_path) == own_files(8) | mine | {"step-2_temporary"}


def cut(path, size: int) -> None:
    os.truncate(path, size)


def flip(path) -> None:
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


DAMAGES = {
    "data_cut_in_half": lambda path: cut(f"{path}.data-00000-of-00001", SIZE * 4),
    "data_without_its_last_byte": lambda path: cut(
        f"{path}.data-00000-of-00001", os.path.getsize(f"{path}.data-00000-of-00001") - 1
    ),
    "data_empty": lambda path: cut(f"{path}.data-00000-of-00001", 0),
    "data_missing": lambda path: os.remove(f"{path}.data-00000-of-00001"),
    "data_with_a_wrong_bit": lambda path: flip(f"{path}.data-00000-of-00001"),
    "index_cut": lambda path: cut(f"{path}.index", 40),
    "index_empty": lambda path: cut(f"{path}.index", 0),
    "index_missing": lambda path: os.remove(f"{path}.index"),
    "index_with_a_wrong_bit": lambda path: flip(f"{path}.index"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage, caplog):
    saved(tmp_path, [2, 4])
    DAMAGES[damage](str(tmp_path / "checkpoints" / "step-4"))
    assert_resumes(tmp_path, 2)
    if damage != "index_missing":  # Without an index it is no checkpoint yet: what a kill leaves behind.
        assert "step-4" in caplog.text
    assert newest(str(tmp_path)).endswith("step-2")


def test_a_bucket_that_is_away_damages_nothing(monkeypatch):
    def away(path):
        raise tf.errors.UnavailableError(None, None, "503")

    monkeypatch.setattr(tf.compat.v1.train, "NewCheckpointReader", away)
    with pytest.raises(StartAgain, match="cannot be read now"):
        _damage("gs://bucket/run/checkpoints/step-3")
    assert "503" in _damage("/run/checkpoints/step-3")


def test_damaged_and_half_written_ones_go_with_the_next_save(tmp_path):
    saved(tmp_path, [2, 4, 6])
    DAMAGES["data_cut_in_half"](str(tmp_path / "checkpoints" / "step-6"))
    (tmp_path / "checkpoints" / "step-5_temp").mkdir()
    (tmp_path / "checkpoints" / "step-5_temp" / "part-00000-of-00001.data-00000-of-00001").write_text("half")
    (tmp_path / "checkpoints" / "step-5.data-00000-of-00001").write_text("half")
    items, own = checkpoints(tmp_path, keep=3)
    own.resume()
    assert "step-6.index" in files(tmp_path)
    own.save(5)
    assert files(tmp_path) == own_files(2, 4, 5)


@pytest.mark.parametrize(
    "text", [None, "", 'model_checkpoint_path: "step', 'model_checkpoint_path: "step-99"\n', "\x00\xff"]
)
def test_the_list_of_checkpoints_may_be_lost(tmp_path, text):
    saved(tmp_path, [2, 4])
    path = tmp_path / "checkpoints" / "checkpoint"
    path.unlink()
    if text is not None:
        path.write_bytes(text.encode("latin1"))
    assert_resumes(tmp_path, 4)
    assert newest(str(tmp_path)).endswith("step-4")


def test_none_readable_is_refused_and_left_alone(tmp_path):
    saved(tmp_path, [2, 4])
    for step in (2, 4):
        DAMAGES["data_cut_in_half"](str(tmp_path / "checkpoints" / f"step-{step}"))
    before = files(tmp_path)
    items, own = checkpoints(tmp_path, value=7.0)
    with pytest.raises(UserError, match="none of the 2 checkpoint"):
        own.resume()
    np.testing.assert_array_equal(items["model"].weights, np.full(SIZE, 7, np.float32))
    assert files(tmp_path) == before


def test_another_run_is_refused(tmp_path):
    saved(tmp_path, [2])
    items = {"model": Weights(0.0, size=5), "step": tf.Variable(0, dtype=tf.int64)}
    with pytest.raises(UserError, match="does not fit this run"):
        Checkpoints(str(tmp_path), items, keep=3).resume()
    with pytest.raises(UserError, match="does not fit this run"):
        more = {**checkpoints(tmp_path)[0], "queue": Weights(0.0)}
        Checkpoints(str(tmp_path), more, keep=3).resume()


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path):
    own = saved(tmp_path, [2, 4], keep=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A file-size limit looks like a full disk to whoever writes.
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE * 4, hard))
    try:
        with pytest.raises(UserError, match="step-6 cannot be written .*the checkpoint of step 4 is kept") as error:
            own.save(6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not any(noise in str(error.value) for noise in ("\n", "{{", "[Op"))
    assert files(tmp_path) == own_files(4)
    assert_resumes(tmp_path, 4)
    own.save(6)
    assert files(tmp_path) == own_files(6)


def test_others_than_the_chief_write_nothing(tmp_path):
    _, own = checkpoints(tmp_path, chief=False)
    own.save(2)
    assert os.listdir(tmp_path) == []


def test_a_step_is_saved_once(tmp_path):
    own = saved(tmp_path, [2])
    before = os.stat(tmp_path / "checkpoints" / "step-2.index").st_mtime_ns
    own.save(2)
    assert os.stat(tmp_path / "checkpoints" / "step-2.index").st_mtime_ns == before


def test_in_memory_file_system():
    saved("ram://checkpoints_test", [2, 4, 6], keep=2)
    assert set(tf.io.gfile.listdir("ram://checkpoints_test/checkpoints")) == own_files(4, 6)
    items, own = checkpoints("ram://checkpoints_test")
    assert own.resume() == "ram://checkpoints_test/checkpoints/step-6"
    assert int(items["step"]) == 6
    data = "ram://checkpoints_test/checkpoints/step-6.data-00000-of-00001"
    tf.io.gfile.remove(data)  # This file system opens for writing at the end.
    with tf.io.gfile.GFile(data, "w") as file:
        file.write("cut")
    assert newest("ram://checkpoints_test").endswith("step-4")
