"""The TPU compiler's environment: whole or not, out of memory, killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simclr_tf.commands.plan import chips, pjrt
from simclr_tf.commands.plan import compiler as environment
from simclr_tf.commands.plan.pjrt import _shortage
from simclr_tf.core.errors import UserError


@pytest.mark.slow
def test_install_that_fails_is_one_line(tmp_path, monkeypatch):
    """A Python whose pip finds nothing."""
    monkeypatch.setattr(environment, "_requirements", lambda: ["--no-index", "no-such-package-for-simclr"])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    if sys.version_info < (3, 11):
        pytest.skip("needs Python 3.11 to make an environment with")
    with pytest.raises(UserError, match="cannot be installed") as caught:
        environment.ensure(str(tmp_path / "env"), make=True)
    assert "\n" not in str(caught.value)


def test_half_an_installation_is_none(tmp_path):
    packages = tmp_path / "lib" / "python3.12" / "site-packages"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("")
    (packages / "libtpu").mkdir(parents=True)
    for name in ("jaxlib-1.0", "libtpu-1.0", "jax-1.0"):
        assert not environment.is_there(str(tmp_path))
        (packages / f"{name}.dist-info").mkdir()
        (packages / f"{name}.dist-info" / "INSTALLER").write_text("pip")
    assert environment.is_there(str(tmp_path))


def test_what_the_compiler_says_of_too_little_memory():
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.50G of "
        "15.48G hbm. Exceeded hbm capacity by 5.02G.\n\nTotal hbm usage >= 20.50G:"
    )
    told = _shortage(message)
    assert told["needed_bytes"] == round(20.5 * 2**30) and told["available_bytes"] == round(15.48 * 2**30)
    assert "\n" not in told["message"]
    message = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (15.62G) exceeds available HBM (15.48G). HLO module: step."
    )
    told = _shortage(message)
    assert told["needed_bytes"] == round(15.62 * 2**30) and told["available_bytes"] == round(15.48 * 2**30)


def test_a_compiler_that_is_killed_is_one_line(tmp_path):
    """As Linux does where memory runs out; nothing of it is taken for an answer."""
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nkill -9 $$\n")
    python.chmod(0o755)
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match="killed while it compiled for v3-8, .* want of memory") as caught:
        environment.compile_for(
            b"", chips.parse_topology("v3-8"), num_replicas=8, folder=str(tmp_path / "env"), cache=str(cache)
        )
    assert "\n" not in str(caught.value) and not cache.exists()


@pytest.mark.parametrize("damage", ["", '{"fits": true', "{}", "3"])
def test_a_damaged_answer_is_asked_for_again(tmp_path, damage):
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("""#!/bin/sh\necho '{"fits": false}' > "$5"\n""")
    python.chmod(0o755)
    topology = chips.parse_topology("v3-8")

    def compiled():
        folders = {"folder": str(tmp_path / "env"), "cache": str(tmp_path / "cache")}
        return environment.compile_for(b"", topology, num_replicas=8, **folders)

    assert compiled() == {"fits": False, "cached": False} and compiled()["cached"]
    (answer,) = (tmp_path / "cache").iterdir()
    answer.write_text(damage)
    assert compiled() == {"fits": False, "cached": False} and compiled()["cached"]


@pytest.mark.skipif(sys.platform != "linux", reason="the compiler exists for Linux alone")
def test_a_compilation_ends_with_the_plan_that_wants_it(tmp_path):
    request = tmp_path / "request"
    os.mkfifo(request)
    plan = (
        "import subprocess, sys; compiler = subprocess.Popen(sys.argv[1:]); print(compiler.pid, flush=True); "
        "compiler.wait()"
    )
    command = [sys.executable, "-c", plan, sys.executable, "-I", pjrt.__file__, "compile", str(request), "answer"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        compiler = int(parent.stdout.readline())
        # The compiler reads what it is to compile, so that it is past its start; it gets nothing to read.
        writer = within(20, lambda: opened(request))
        parent.kill()
        parent.wait()
        assert within(20, lambda: not running(compiler))
        os.close(writer)


def within(seconds: float, look):
    """Looks again and again, until there is something to see or it is too late."""
    deadline = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def opened(pipe: Path) -> int | None:
    """Opens a named pipe where somebody reads it."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


def running(process: int) -> bool:
    """Whether a process is there and not merely waiting to be counted."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
