"""The command line without a process of its own: seconds saved, the same code."""

from __future__ import annotations

import contextlib
import io
import signal
from typing import NamedTuple

from absl.testing import flagsaver

from simclr_tf import cli


class Outcome(NamedTuple):
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


def simclr(*arguments: str) -> Outcome:
    """Runs `simclr ARGUMENTS`; bugs raise as they are."""
    out, err = io.StringIO(), io.StringIO()
    on_termination = signal.getsignal(signal.SIGTERM)
    try:
        with flagsaver.flagsaver(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main(["simclr", *arguments])
    except SystemExit as ended:
        return Outcome(ended.code, out.getvalue(), err.getvalue())
    finally:
        signal.signal(signal.SIGTERM, on_termination)
    raise AssertionError("the command line did not exit")
