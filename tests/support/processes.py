"""The command line in processes of their own, forked from one that has imported TensorFlow: 5 to 10 seconds saved each.

Nothing is computed before the fork, so TensorFlow's runtime starts in each process as it always does.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["simclr_tf.cli", "simclr_tf.configurables"])
TIMEOUT = 500


def _run(arguments: tuple[str, ...], told: str, environment: dict[str, str]) -> None:
    with open(told, "w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    import small_networks  # noqa: F401 (registers depth 6)

    from simclr_tf import cli

    cli.main(["simclr", *arguments])


class Command:
    """`simclr ARGUMENTS`, started; what it prints is kept until it ends."""

    def __init__(self, *arguments: str, **environment: str):
        descriptor, self._told = tempfile.mkstemp()
        os.close(descriptor)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "TF_CONFIG"))}
        self._process = _SERVER.Process(target=_run, args=(arguments, self._told, {**kept, **environment}), daemon=True)
        self._process.start()
        self.pid, self.kill, self.terminate = self._process.pid, self._process.kill, self._process.terminate

    def wait_for(self, condition: Callable[[], bool], seconds: float = TIMEOUT) -> bool:
        """Waits until the condition holds, the process ends or the time is up; returns whether it holds."""
        deadline = time.monotonic() + seconds
        while not (done := condition()) and self._process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        return done

    def end(self, seconds: float = TIMEOUT) -> tuple[int, str]:
        """Waits for the end, which is brought about when the time is up; returns the exit code and what was printed."""
        self._process.join(seconds)
        self._process.kill()
        self._process.join()
        with open(self._told, errors="replace") as file:
            told = file.read()
        os.unlink(self._told)
        return self._process.exitcode, told
