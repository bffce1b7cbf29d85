"""Types of configurables' parameters, read from their signatures, so that a wrong value is reported early."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_SCALARS = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,), "None": (type(None),)}
_CONTAINERS = ("Sequence", "list", "tuple", "dict", "Mapping")
_WORDS = {"int": "a whole number", "float": "a number", "str": "a string in quotes", "bool": "True or False"}
# Arguments that the calling code passes; users cannot set them.
_NOT_SETTINGS = ("self", "context", "dtype", "data_dir", "teacher", "online", "input_dim", "used_layers")


class Reference(NamedTuple):
    """A value that refers to a configurable.

    Attributes:
      name: The configurable's name in gin files.
      target: The class or function.
      called: Whether the value is the result of a call, `@Name()`, or the configurable itself, `@Name`.
    """

    name: str
    target: Callable[..., Any]
    called: bool


def parameters(configurable: Callable[..., Any]) -> dict[str, str]:
    """Returns name -> annotation of the parameters that users can set, in the signature's order."""
    function = configurable.__init__ if inspect.isclass(configurable) else configurable
    return {
        name: parameter.annotation if isinstance(parameter.annotation, str) else ""
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and name not in _NOT_SETTINGS
    }


def mismatch(annotation: str, value: Any, known: Mapping[str, Callable[..., Any]]) -> str | None:
    """Describes what a parameter takes, if a value is not of that type.

    Args:
      annotation: The parameter's annotation as written: "float | None", "Callable[..., ResNet]", "Data".
      value: Plain data, or a `Reference`.
      known: All configurables by name, to give examples.

    Returns:
      None where the value fits or the annotation is empty; else what the parameter takes, such as "a number or None".
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
        # The constructor checks the elements, and whether one number may stand for several.
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
