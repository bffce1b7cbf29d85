"""What a configurable's parameters take, read from its signature, so that a wrong value is told before it does harm."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_SCALARS = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,), "None": (type(None),)}
_CONTAINERS = ("Sequence", "list", "tuple", "dict", "Mapping")
_WORDS = {"int": "a whole number", "float": "a number", "str": "a string in quotes", "bool": "True or False"}
# Filled in by whoever calls; no setting.
_NOT_SETTINGS = ("self", "context", "dtype", "data_dir", "teacher", "online", "input_dim", "used_layers")


class Reference(NamedTuple):
    """A configurable that a value points to.

    Attributes:
      name: as gin files write it.
      target: the class or function.
      called: whether the value is what calling it returns, `@Name()`, or the configurable itself, `@Name`.
    """

    name: str
    target: Callable[..., Any]
    called: bool


def parameters(configurable: Callable[..., Any]) -> dict[str, str]:
    """Returns the names and annotations of what can be set, in the signature's order."""
    function = configurable.__init__ if inspect.isclass(configurable) else configurable
    return {
        name: parameter.annotation if isinstance(parameter.annotation, str) else ""
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and name not in _NOT_SETTINGS
    }


def mismatch(annotation: str, value: Any, known: Mapping[str, Callable[..., Any]]) -> str | None:
    """Says what a parameter takes where a value is not of that type.

    Args:
      annotation: of the parameter, as written: "float | None", "Callable[..., ResNet]", "Data".
      value: plain data, or a `Reference`.
      known: all configurables by name, to give examples.

    Returns:
      None where the value is fine or the annotation says nothing; else what is taken, such as "a number or None".
    """
    kinds = [kind.strip() for kind in re.split(r"\|(?![^\[]*\])", annotation) if kind.strip()]
    if not kinds or any(_fits(kind, value) for kind in kinds):
        return None
    return " or ".join(_in_words(kind, known) for kind in kinds)


def _fits(kind: str, value: Any) -> bool:
    made = _maker_of(kind)
    if made is not None:
        return isinstance(value, Reference) and not value.called and _is_a(value.target, made)
    if kind in _SCALARS:
        boolean = isinstance(value, bool)
        return isinstance(value, _SCALARS[kind]) and boolean == (kind == "bool")
    if kind.startswith(_CONTAINERS):
        # What is inside, and whether one number will do for several, is the constructor's to say.
        return not isinstance(value, (Reference, str))
    if not kind.isidentifier():
        return True
    return isinstance(value, Reference) and value.called and _is_a(value.target, kind)


def _maker_of(kind: str) -> str | None:
    """Turns "Callable[..., ResNet]" into "ResNet"; None for anything else."""
    match = re.fullmatch(r"Callable\[.*,\s*(\w+)\]", kind)
    return match.group(1) if match else None


def _is_a(target: Callable[..., Any], kind: str) -> bool:
    return inspect.isclass(target) and any(base.__name__ == kind for base in target.__mro__)


def _in_words(kind: str, known: Mapping[str, Callable[..., Any]]) -> str:
    if kind.startswith(_CONTAINERS):
        return "a list"
    if kind in _SCALARS:
        return _WORDS.get(kind, kind)
    made = _maker_of(kind)
    brackets = "" if made else "()"
    names = [f"@{name}{brackets}" for name, target in known.items() if _is_a(target, made or kind)]
    return f"{' or '.join(names[:4]) or kind} ({'with' if brackets else 'without'} brackets)"
