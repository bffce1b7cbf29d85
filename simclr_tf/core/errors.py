"""The exceptions for problems that a user can fix."""

from __future__ import annotations

import re


def visible(text: str) -> str:
    r"""Escapes control characters and line separators, so that a text stays on one line.

    >>> visible("C:" + chr(10) + "ew")
    'C:\\new'
    """
    broken = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"
    return re.sub(broken, lambda match: match[0].encode("unicode_escape").decode(), text)


class UserError(Exception):
    """A problem that the user can fix, told in one line: what was wrong, what was found, what to do.

    Control characters in the message are escaped. The command line prints the message alone and exits with `exit_code`.
    Any other exception is a bug and keeps its traceback.
    """

    exit_code = 1

    def __init__(self, message: str, *, exit_code: int | None = None):
        """Takes the line to print and, where it differs from the class's own, the exit code."""
        super().__init__(visible(message))
        # gin re-raises what a configurable raises as a proxy with a longer message. The proxy takes missing attributes
        # from the real exception, so its `original` is the real one.
        self.original = self
        if exit_code is not None:
            self.exit_code = exit_code


class UsageError(UserError):
    """A command line that makes no sense as written; exits with code 2."""

    exit_code = 2


class StartAgain(UserError):
    """An interruption that is nobody's fault; the same command continues the run. Exits with code 75.

    75 is EX_TEMPFAIL of sysexits.h: "try again later". Launch scripts start such a run again.
    """

    exit_code = 75
    # Keras adds call details to an exception raised while it traces a layer, unless the exception has this mark.
    _keras_call_info_injected = True


def first_line(error: BaseException) -> str:
    """Returns the first line of another library's error, without TensorFlow's names of nodes and operations."""
    text = re.sub(r"\{\{.*?\}\} ?| ?\[Op:\w*\]", "", str(error)).strip()
    return (text.splitlines() or [type(error).__name__])[0].strip().rstrip(".:")
