"""SIGTERM: a machine that is to be taken away, or a time limit. The run saves and asks to be started again."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterator
from types import FrameType

from simclr_tf.core.errors import StartAgain


def _main_thread() -> bool:
    """Python lets only the main thread handle signals."""
    return threading.current_thread() is threading.main_thread()


def leave(signum: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
    """A signal handler for when there is nothing to save."""
    raise StartAgain(f"stopped by {signal.Signals(signum).name}; the same command goes on from what was saved last")


@contextlib.contextmanager
def fatal() -> Iterator[None]:
    """Within it SIGTERM ends the process at once: for waits inside TensorFlow, in which no handler of Python's runs."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL) if _main_thread() else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


class SigtermWatch:
    """While it is entered, SIGTERM ends what runs; inside `finishing`, it only makes `asked` true."""

    def __init__(self):
        self.asked = False
        self._deferred = False
        self._before = None

    def __enter__(self) -> SigtermWatch:
        """Takes over SIGTERM."""
        if _main_thread():
            self._before = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *exc_info) -> None:
        """Gives it back."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _notice(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True
        if not self._deferred:
            leave(signum, frame)

    def finishing(self) -> _Deferred:
        """Within it a signal waits: whoever works looks at `asked`, finishes a step and saves."""
        return _Deferred(self)


class _Deferred:
    def __init__(self, watch: SigtermWatch):
        self._watch = watch

    def __enter__(self) -> None:
        self._watch._deferred = True

    def __exit__(self, *exc_info) -> None:
        self._watch._deferred = False


def call(command: list[str], environment: dict[str, str] | None = None) -> int:
    """Runs a command like `subprocess.call`, and hands SIGTERM on to it instead of dying and leaving it alone.

    Args:
      command: program and arguments.
      environment: of the command; None for this process's.

    Returns:
      Its exit code.
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
