"""Two runs never share a workdir, and a dead one does not keep it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.workdir import lock
from simclr_tf.workdir.lock import WorkdirLock

HOLDER = """
import sys, time
from simclr_tf.workdir.lock import WorkdirLock
with WorkdirLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_second_is_refused_and_told_who_is_first(tmp_path):
    with WorkdirLock(str(tmp_path)), pytest.raises(UserError, match=f"in use by process {os.getpid()} on "):
        WorkdirLock(str(tmp_path)).__enter__()
    with WorkdirLock(str(tmp_path)):
        pass


def test_lock_ends_with_its_process(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {holder.pid}"):
            WorkdirLock(f"file://{tmp_path}").__enter__()
    finally:
        holder.kill()
        holder.wait()
    with WorkdirLock(str(tmp_path)):
        pass


def test_workdir_is_made(tmp_path):
    with WorkdirLock(str(tmp_path / "a" / "b")):
        assert (tmp_path / "a" / "b").is_dir()


def test_what_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        WorkdirLock(str(tmp_path / "file")).__enter__()


def lease(name: str, **kwargs) -> WorkdirLock:
    return WorkdirLock(f"ram://{name}", **{"beat_seconds": 0.1, "stale_seconds": 1.0, **kwargs})


def write_lease(name: str, **owner) -> None:
    tf.io.gfile.makedirs(f"ram://{name}")
    with tf.io.gfile.GFile(f"ram://{name}/{lock.LOCK}", "w") as file:
        file.write(json.dumps(owner))


def test_living_lease_is_refused():
    with lease("living"), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        lease("living").__enter__()


def test_lease_is_given_back():
    with lease("back"):
        assert tf.io.gfile.exists(f"ram://back/{lock.LOCK}")
    assert not tf.io.gfile.exists(f"ram://back/{lock.LOCK}")


def test_lease_of_a_dead_process_of_this_machine_is_taken_at_once():
    write_lease("dead", host=lock._owner()["host"], pid=2**22 + 1, token="x", beats=3)
    with lease("dead", stale_seconds=60.0) as held:
        held.check()


def test_lease_that_stays_the_same_is_taken_after_a_while():
    write_lease("stale", host="another", pid=1, token="x", beats=3)
    before = time.monotonic()
    with lease("stale"):
        assert time.monotonic() - before >= 1.0


def test_half_written_lease_is_no_owner():
    tf.io.gfile.makedirs("ram://half")
    with tf.io.gfile.GFile(f"ram://half/{lock.LOCK}", "w") as file:
        file.write('{"host": "an')
    with lease("half"):
        pass


def test_owner_notices_that_it_was_overtaken():
    with lease("overtaken") as first:
        first.check()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and first._lost is None:  # A beat may write over it just now.
            tf.io.gfile.remove(f"ram://overtaken/{lock.LOCK}")  # ram:// appends to what is there.
            write_lease("overtaken", host="another", pid=7, token="other", beats=1)
            time.sleep(0.25)
        with pytest.raises(UserError, match="process 7 on another"):
            first.check()
    # The new owner's lease is not removed.
    assert tf.io.gfile.exists(f"ram://overtaken/{lock.LOCK}")
