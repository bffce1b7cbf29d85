"""What a run was configured with, read from the gin text in its workdir, and where runs differ."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any


def parse(text: str) -> dict[str, str]:
    r"""Reads saved gin text.

    Values stay text, since what they refer to need not exist here; macros are replaced by what they stand for.

    >>> parse("# note\nEPOCHS = 3\ntrain.epochs = %EPOCHS\nX.sizes = \\\n    (1,\n     2)\n")
    {'train.epochs': '3', 'X.sizes': '(1, 2)'}
    """
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        # gin indents what belongs to the name above.
        if line[0].isspace() and name:
            found[name] = f"{found[name]} {line.strip()}".strip()
            continue
        name, _, value = (part.strip() for part in line.partition("="))
        found[name] = value.rstrip("\\").strip()
    macros = {name: value for name, value in found.items() if re.fullmatch(r"[A-Z0-9_]+", name)}

    def resolved(value: str) -> str:
        for _ in macros:  # So often at most does one lead to another; gin refuses circles.
            value = re.sub(r"%(\w+)", lambda match: macros.get(match[1], match[0]), value)
        return value

    return {name: resolved(value) for name, value in found.items() if name not in macros}


def value(settings: dict[str, str], name: str, default: Any = None) -> Any:
    """Returns a setting as a plain Python value, `default` where it is missing or refers to something.

    >>> value({"train.seed": "7"}, "train.seed"), value({"train.make": "@Lars"}, "train.make", "?")
    (7, '?')
    """
    try:
        return ast.literal_eval(settings[name])
    except (KeyError, ValueError, SyntaxError):
        return default


def section(settings: dict[str, str], owner: str) -> dict[str, Any]:
    """Returns the plain values of one configurable, by parameter.

    >>> section({"Augment.flip": "True", "Data.source": "'x'"}, "Augment")
    {'flip': True}
    """
    names = [name for name in settings if name.startswith(f"{owner}.")]
    return {name[len(owner) + 1 :]: value(settings, name) for name in names}


def differing(runs: Sequence[dict[str, str]]) -> list[str]:
    """Returns the names of settings that are not the same in all runs, sorted.

    >>> differing([{"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}])
    ['b', 'c']
    """
    return sorted(name for name in {name for run in runs for name in run} if len({run.get(name) for run in runs}) > 1)
