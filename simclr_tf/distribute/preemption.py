"""SIGTERM: the machine is about to go, or a time limit is over. The run saves and asks to be started again."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterator
from types import FrameType

from simclr_tf.core.errors import StartAgain


def _main_thread() -> bool:
    """Whether this is the main thread, the only one in which Python may set signal handlers."""
    return threading.current_thread() is threading.main_thread()


def leave(signum: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
    """Handles a signal while there is nothing to save: raises `StartAgain`."""
    raise StartAgain(f"stopped by {signal.Signals(signum).name}; the same command goes on from what was saved last")


@contextlib.contextmanager
def fatal() -> Iterator[None]:
    """Lets SIGTERM end the process at once, inside the block: Python's handlers do not run while TensorFlow waits."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL) if _main_thread() else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


class SigtermWatch:
    """Handles SIGTERM while it is entered: the signal ends the run, but inside `finishing` it only sets `asked`."""

    def __init__(self):
        self.asked = False
        self._deferred = False
        self._before = None

    def __enter__(self) -> SigtermWatch:
        """Installs the handler."""
        if _main_thread():
            self._before = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *exc_info) -> None:
        """Restores the handler from before."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _notice(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True
        if not self._deferred:
            leave(signum, frame)

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Makes a signal wait, inside the block: the loop looks at `asked`, finishes its step and saves."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False


def call(command: list[str], environment: dict[str, str] | None = None) -> int:
    """Runs a command like `subprocess.call`, but passes SIGTERM on to it instead of dying without it.

    Args:
      command: The program and its arguments.
      environment: The command's environment; None for this process's.

    Returns:
      The command's exit code.
    """
    process = subprocess.Popen(command, env=environment)
    before = None
    if _main_thread():
        before = signal.signal(signal.SIGTERM, lambda signum, frame: process.send_signal(signum))
    try:
        return process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
