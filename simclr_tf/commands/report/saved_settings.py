"""Reads the settings of runs from the gin text in their workdirs, and compares them."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any


def parse(text: str) -> dict[str, str]:
    r"""Reads saved gin text.

    Values stay text, since objects that they refer to need not exist here. Macros are replaced by their values.

    >>> parse("# note\nEPOCHS = 3\ntrain.epochs = %EPOCHS\nX.sizes = \\\n    (1,\n     2)\n")
    {'train.epochs': '3', 'X.sizes': '(1, 2)'}
    """
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        # gin indents the continuation of a value.
        if line[0].isspace() and name:
            found[name] = f"{found[name]} {line.strip()}".strip()
            continue
        name, _, value = (part.strip() for part in line.partition("="))
        found[name] = value.rstrip("\\").strip()
    macros = {name: value for name, value in found.items() if re.fullmatch(r"[A-Z0-9_]+", name)}

    def resolved(value: str) -> str:
        for _ in macros:  # The longest possible chain of macros; gin refuses circles.
            value = re.sub(r"%(\w+)", lambda match: macros.get(match[1], match[0]), value)
        return value

    return {name: resolved(value) for name, value in found.items() if name not in macros}


def value(settings: dict[str, str], name: str, default: Any = None) -> Any:
    """Returns a setting as a plain Python value, or `default` if it is missing or is a gin reference.

    >>> value({"train.seed": "7"}, "train.seed"), value({"train.make": "@Lars"}, "train.make", "?")
    (7, '?')
    """
    try:
        return ast.literal_eval(settings[name])
    except (KeyError, ValueError, SyntaxError):
        return default


def differing(runs: Sequence[dict[str, str]]) -> list[str]:
    """Returns the sorted names of the settings that differ between runs.

    >>> differing([{"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}])
    ['b', 'c']
    """
    return sorted(name for name in {name for run in runs for name in run} if len({run.get(name) for run in runs}) > 1)
