"""The one exception for what a user can put right."""

from __future__ import annotations

import re


def visible(text: str) -> str:
    r"""Spells out control characters and what else would break a line, as in a path with a line break in it.

    >>> visible("C:" + chr(10) + "ew")
    'C:\\new'
    """
    broken = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"
    return re.sub(broken, lambda match: match[0].encode("unicode_escape").decode(), text)


class UserError(Exception):
    """A known problem, told in one line: what was wrong, what was found, what to do.

    What a message quotes may hold control characters; they are spelled out.

    The command line prints the message alone and exits with `exit_code`. Anything else that is raised is a bug and
    keeps its traceback.
    """

    exit_code = 1

    def __init__(self, message: str, *, exit_code: int | None = None):
        """Takes the line to print and, where it is not the class's own, the exit code."""
        super().__init__(visible(message))
        # gin hands on what is raised inside a configurable as a stand-in with a longer text, which asks this one for
        # what it does not have itself.
        self.original = self
        if exit_code is not None:
            self.exit_code = exit_code


class UsageError(UserError):
    """A command line that cannot be meant as written; exits with code 2."""

    exit_code = 2


class StartAgain(UserError):
    """The run was interrupted through nobody's fault, and the same command goes on where it was; exits with code 75.

    That is EX_TEMPFAIL of sysexits.h: "try again later". Launch scripts start such a run again.
    """

    exit_code = 75
    # Keras would lengthen what a signal raises while one of its layers is traced.
    _keras_call_info_injected = True


def first_line(error: BaseException) -> str:
    """Returns what another library's exception says, as part of a line: its first one, without TensorFlow's names."""
    text = re.sub(r"\{\{.*?\}\} ?| ?\[Op:\w*\]", "", str(error)).strip()
    return (text.splitlines() or [type(error).__name__])[0].strip().rstrip(".:")
