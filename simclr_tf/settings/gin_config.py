"""Gin files: found, parsed, checked and saved.

gin's own parser reads each statement. This module resolves names and checks values before it hands the bindings to gin,
so that an error names file and line and what was probably meant. It also remembers where each binding comes from.
"""

from __future__ import annotations

import difflib
import importlib.util  # noqa: F401  (gin-config 0.5.0 uses it without importing it)
import io
import math
import os
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gin
from gin import config_parser

from simclr_tf.core import windows_paths
from simclr_tf.core.errors import UsageError, UserError
from simclr_tf.core.files import write_text
from simclr_tf.core.tf import tf
from simclr_tf.settings import parameter_types
from simclr_tf.settings.gin_files import default_recipe, find, is_shipped, shipped_folder, stage_file

CONFIG, OPERATIVE = "config.gin", "operative.gin"
_INHERITED = "an earlier run"
# The gin module in which `register` registers everything.
MODULE = "simclr"
_MACRO, _REQUIRED = "macro", "gin.REQUIRED"


class Binding(NamedTuple):
    """A statement `SCOPE/CONFIGURABLE.PARAMETER = VALUE`, or a macro `NAME = VALUE`.

    Attributes:
      scope: The scope, "" for none; a macro's name.
      configurable: The configurable's name; "macro" for a macro.
      parameter: The parameter's name; "value" for a macro.
      value: The value as gin holds it.
      where: The place of the statement, "file:line" or the flag.
      strict: Whether it is an error when nothing reads the binding: True if the user wrote it, False in shipped files.
    """

    scope: str
    configurable: str
    parameter: str
    value: Any
    where: str
    strict: bool

    @property
    def name(self) -> str:
        """The left side of the statement, as in a gin file."""
        if self.configurable == _MACRO:
            return self.scope
        return f"{self.scope}/{self.configurable}.{self.parameter}".lstrip("/")


# Name in gin files -> class or function; see `register`.
_configurables: dict[str, Callable[..., Any]] = {}
# Name -> binding, as `parse` handed it to gin. A later binding replaces an earlier one of the same name.
_bindings: dict[str, Binding] = {}
# Bindings of replaced configurables, such as Lars's after train.make_optimizer = @Sgd; they may stay unread.
_set_aside: set[str] = set()
_mode = ""


def register(configurables: Mapping[str, Callable[..., Any]]) -> None:
    """Registers configurables, so that gin files can bind them by these names."""
    for name, configurable in configurables.items():
        gin.register(name, module=MODULE)(configurable)
    _configurables.update(configurables)


def parse(
    mode: str,
    gin_files: Sequence[str] = (),
    gin_params: Sequence[str] = (),
    *,
    inherited: Sequence[str] = (),
    shown: str | None = None,
) -> None:
    """Replaces gin's configuration; later bindings win over earlier ones.

    Args:
      mode: The mode. Its `stages/MODE.gin` comes first, then its default recipe unless `gin_files` are given.
      gin_files: Paths, or names of shipped files; read after `inherited`.
      gin_params: Single bindings; read last.
      inherited: Bindings that follow from an earlier run.
      shown: The training mode that `mode` shows without training. Its stage file and recipes are read, too, and `mode`
        gets the seed and the stage that training would have.

    Raises:
      UserError: for anything that makes no sense as written.
    """
    global _mode
    _mode = mode
    _bindings.clear()
    _set_aside.clear()
    root = shipped_folder()
    files = [(stage_file(name), False) for name in (mode, shown) if name]
    default = default_recipe(shown or mode)
    if not gin_files and default is not None:
        files.append((default, False))
    for path, strict in files:
        _keep(_read(path, strict, ()))
    for text in inherited:
        _keep(_statements(text, _INHERITED, strict=False, including=None))
    for name in gin_files:
        folders = ["", root, os.path.join(root, "recipes", shown or mode)]
        path = find(name, folders=folders, asked_by=f"--gin_file={name}")
        _keep(_read(path, not is_shipped(path), ()))
    for text in gin_params:
        if "=" not in text:
            raise UsageError(f"--gin_param={text!r} sets nothing; write NAME=VALUE, such as --gin_param='EPOCHS=20'")
        _keep(_statements(text, f"--gin_param={text!r}", strict=True, including=None))
    if shown:
        for name in ("seed", "make_stage"):
            if f"train.{name}" in _bindings and f"{mode}.{name}" not in _bindings:
                _keep([_bindings[f"train.{name}"]._replace(configurable=mode, parameter=name, strict=False)])
    _check_macros()
    for name in [name for name, binding in _bindings.items() if _macro_name(binding.value) == _REQUIRED]:
        del _bindings[name]  # The stage asks for this macro, but a recipe sets the parameters that used it.
    for binding in _bindings.values():
        _check_value(binding)
    gin.clear_config()
    for binding in _bindings.values():
        if binding.configurable == _MACRO:
            gin.bind_parameter((binding.scope, "gin.macro", "value"), binding.value)
        else:
            selector = f"{MODULE}.{binding.configurable}"
            gin.bind_parameter((binding.scope, selector, binding.parameter), binding.value)


def _keep(bindings: Iterable[Binding]) -> None:
    for binding in bindings:
        before = _bindings.get(binding.name)
        dropped = _configurables_of(before) - _configurables_of(binding) if before is not None else set()
        _set_aside.update(name for name, other in _bindings.items() if other.configurable in dropped)
        _set_aside.discard(binding.name)
        _bindings[binding.name] = binding


def _configurables_of(binding: Binding) -> set[str]:
    """Returns the names of the configurables that a value refers to."""
    return {reference.selector for reference in _references(binding.value) if _macro_name(reference) is None}


def _read(path: str, strict: bool, including: tuple[str, ...]) -> Iterator[Binding]:
    """Yields a file's bindings; `including` are the files that led here, outermost first."""
    if path in including:
        circle = " -> ".join((*including, path))
        raise UserError(f"gin files include each other in a circle: {circle}; take one include out")
    try:
        with tf.io.gfile.GFile(path) as file:
            text = file.read()
    except (OSError, tf.errors.OpError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the gin file {path} cannot be read ({reason}); put that right, or give another") from None
    yield from _statements(text, _shown(path), strict=strict, including=(*including, path))


def _shown(path: str) -> str:
    """Returns a file's path for messages: short, as gin/NAME, if the file is a shipped one."""
    if not is_shipped(path):
        return path
    inside = os.path.relpath(os.path.realpath(path), os.path.realpath(shipped_folder()))
    return f"gin/{inside}".replace(os.sep, "/")


class _Delegate(gin.config.ParserDelegate):
    """Makes references; for an unknown name, suggests what was probably meant."""

    def configurable_reference(self, scoped_selector: str, evaluate: bool):
        _check_configurable(scoped_selector.rpartition("/")[2], f"@{scoped_selector}")
        return super().configurable_reference(scoped_selector, evaluate)


def _statements(text: str, where: str, *, strict: bool, including: tuple[str, ...] | None) -> Iterator[Binding]:
    """Yields the bindings of a file's text (`including` lists the files that led to it) or of a single line (None)."""
    windows_paths.refuse_in_gin(text, where, is_file=including is not None)
    parser = line = None
    try:
        parser = config_parser.ConfigParser(io.StringIO(text), _Delegate())
        while True:
            statement = parser.parse_statement()
            if statement is None:
                return
            line = statement.location.line_num
            place = where if including is None else f"{where}:{line}"
            if isinstance(statement, config_parser.BindingStatement):
                yield _binding(statement, place, strict)
            elif isinstance(statement, config_parser.IncludeStatement):
                yield from _included(statement.filename, place, strict, including or ())
            elif isinstance(statement, config_parser.ImportStatement):
                raise UserError(f"{place} imports {statement.module}; remove that: everything is imported")
            else:
                _check_configurable(statement.selector, statement.selector, place=place)
    except (SyntaxError, tokenize.TokenError) as error:
        raise UserError(_syntax(error, text, where, including)) from None
    except _Unknown as error:
        line = parser.current_token.start[0]
        raise UserError(f"{where if including is None else f'{where}:{line}'}: {error.problem}") from None


class _Unknown(Exception):
    """A reference to an unknown name. gin lengthens the text of errors in its parser, but not `problem`."""

    def __init__(self, problem: str):
        super().__init__(problem)
        self.problem = problem


def _syntax(error: Exception, text: str, where: str, including: tuple[str, ...] | None) -> str:
    """Returns the message about a statement that gin cannot read."""
    problem, location = (error.args + (None, None))[:2]
    number = (location[1] if isinstance(error, SyntaxError) else location[0]) if isinstance(location, tuple) else None
    lines = text.splitlines()
    line = lines[number - 1].strip() if number is not None and 0 < number <= len(lines) else text.strip()
    name, equals, value = (part.strip() for part in line.partition("="))
    problem = str(problem).splitlines()[-1].strip().rstrip(".")
    advice = "a value is a number, 'text', True, False, None, a list of these, @Name, @Name() or %NAME"
    if equals and not value:
        problem, advice = f"{name} gets no value", f"write {name} = VALUE"
    elif equals and re.match(r"['\"]?[A-Za-z~/.]", value) and _reads(f"{name} = {value!r}"):
        problem = f"{value} is not a value"
        text_value = value.strip("'\"")
        quoted = f"{name}='{text_value}'"
        in_a_shell = f'--gin_param="{quoted}" (the shell removes the outer quotes)'
        advice = f"put text in quotes: {in_a_shell if including is None else quoted}"
    elif not equals:
        advice = "write NAME = VALUE"
    label = where if including is None else f"{where}:{number or len(lines)}"
    shown = "" if including is None else f" in {line!r}"
    return f"{label}: {problem}{shown}; {advice}"


def _reads(statement: str) -> bool:
    """Whether gin can read a statement."""
    try:
        return config_parser.ConfigParser(statement, gin.config.ParserDelegate()).parse_statement() is not None
    except (SyntaxError, tokenize.TokenError):
        return False


def _included(name: str, place: str, strict: bool, including: tuple[str, ...]) -> Iterator[Binding]:
    root = shipped_folder()
    shipped = bool(including) and is_shipped(including[-1])
    # Shipped files include shipped files, even where the working directory has one of the same name.
    folders = [root] if shipped else [*([os.path.dirname(including[-1])] if including else []), "", root]
    path = find(name, folders=folders, asked_by=f"{place} includes {name!r}, which")
    yield from _read(path, strict and not is_shipped(path), including)


def _binding(statement: config_parser.BindingStatement, place: str, strict: bool) -> Binding:
    scope, selector, parameter, value, _ = statement
    if not parameter:
        name = f"{scope}/{selector}" if scope else selector
        return Binding(name, _MACRO, "value", value, place, strict)
    module, _, name = selector.rpartition(".")
    selector = name if module == MODULE else selector
    _check_configurable(selector, f"{selector}.{parameter}", parameter=parameter, place=place)
    known = parameter_types.parameters(_configurables[selector])
    if parameter not in known:
        raise UserError(f"{place}: {selector} has no parameter {parameter!r}{_meant(selector, parameter)}")
    return Binding(scope, selector, parameter, value, place, strict)


def _check_configurable(name: str, written: str, *, parameter: str | None = None, place: str | None = None) -> None:
    if name in _configurables:
        return
    problem = f"{written} is unknown{_meant(name, parameter)}"
    raise _Unknown(problem) if place is None else UserError(f"{place}: {problem}")


def _meant(name: str, parameter: str | None) -> str:
    """Suggests the configurable or the parameter that was probably meant."""
    everything = {name: parameter_types.parameters(target) for name, target in _configurables.items()}
    if name in everything:
        close = difflib.get_close_matches(parameter, everything[name], n=1)
        close = close or _containing(parameter, everything[name])
        owners = [owner for owner, known in everything.items() if parameter in known]
        if close or owners:
            return f"; did you mean {f'{name}.{close[0]}' if close else f'{owners[0]}.{parameter}'}?"
        return f"; it has {', '.join(everything[name]) or 'none'}"
    close = difflib.get_close_matches(name, everything, n=1) or _containing(name, everything)
    lower = {known.lower(): known for known in everything}
    if name.lower() in lower:
        close = [lower[name.lower()]]
    owners = [owner for owner, known in everything.items() if parameter in known]
    if owners and not (close and close[0] in owners):
        close = [*difflib.get_close_matches(name, owners, n=1, cutoff=0.0), *owners][:1]
    if not close:
        return f"; choose one of {', '.join(everything)}"
    if parameter is None:
        return f"; did you mean {close[0]}?"
    inside = difflib.get_close_matches(parameter, everything[close[0]], n=1, cutoff=0.0) or [parameter]
    return f"; did you mean {close[0]}.{inside[0]}?"


def _containing(word: str, known: Iterable[str]) -> list[str]:
    """Returns the known names of which a word is a shorter or longer form."""
    return [name for name in known if len(word) > 2 and (word.lower() in name.lower() or name.lower() in word.lower())]


def _references(value: Any) -> Iterator[Any]:
    return gin.config.iterate_references(value)


def _macro_name(reference: Any) -> str | None:
    """Returns the name of the macro or constant that a reference stands for; None for any other reference."""
    text = repr(reference)
    return text[1:] if text.startswith("%") else None


def _check_macros() -> None:
    """Checks that every macro in use has a value, and that none leads back to itself."""
    macros = {binding.scope: binding for binding in _bindings.values() if binding.configurable == _MACRO}
    used = {_macro_name(reference) for binding in _bindings.values() for reference in _references(binding.value)}
    missing = {}
    for binding in _bindings.values():
        for reference in _references(binding.value):
            name = _macro_name(reference)
            if name == _REQUIRED:
                if binding.configurable != _MACRO or binding.scope in used:
                    missing[binding.name] = binding.where
            elif name is not None and name not in macros:
                close = difflib.get_close_matches(name, macros, n=1)
                advice = f"did you mean %{close[0]}?" if close else f"set it: {name} = VALUE"
                raise UserError(f"{binding.where}: %{name} has no value; {advice}")
    for name, binding in macros.items():
        seen, waiting = set(), [binding]
        while waiting:
            for reference in _references(waiting.pop().value):
                other = _macro_name(reference)
                if other == name:
                    raise UserError(f"{binding.where}: the value of {name} leads back to {name}; give it its own")
                if other in macros and other not in seen:
                    seen.add(other)
                    waiting.append(macros[other])
    if missing:
        where = next(iter(missing.values()))
        raise UserError(
            f"{', '.join(missing)} {'has' if len(missing) == 1 else 'have'} no value (see {where}); give a recipe with "
            f"--gin_file, or --gin_param='{next(iter(missing))}=VALUE'"
        )


def _plain(value: Any) -> Any:
    """Returns a value with macros replaced by their values, and a gin reference by a `Reference`."""
    name = _macro_name(value) if isinstance(value, gin.config.ConfigurableReference) else None
    if name is not None:
        return _plain(_bindings[name].value)
    if isinstance(value, gin.config.ConfigurableReference):
        return parameter_types.Reference(value.selector, _configurables[value.selector], value.evaluate)
    return value


def _source(binding: Binding) -> Binding:
    """Returns the binding that a value comes from, followed through macros."""
    name = _macro_name(binding.value) if isinstance(binding.value, gin.config.ConfigurableReference) else None
    return binding if name is None else _source(_bindings[name])


def _check_value(binding: Binding) -> None:
    value = _plain(binding.value)
    is_reference = isinstance(value, parameter_types.Reference)
    for number in value if isinstance(value, (list, tuple)) and not is_reference else [value]:
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{binding.where}: {binding.name} is {number}; use a finite number")
    if binding.configurable == _MACRO:
        return
    annotation = parameter_types.parameters(_configurables[binding.configurable])[binding.parameter]
    wanted = parameter_types.mismatch(annotation, value, _configurables)
    if wanted is not None:
        found = f"@{value.name}{'()' if value.called else ''}" if is_reference else repr(value)
        source = _source(binding)
        raise UserError(f"{source.where}: {binding.name} is {found}; it takes {wanted}")


def bindings() -> list[Binding]:
    """Returns the bindings that `parse` handed to gin."""
    return list(_bindings.values())


def bound_values(configurable: str) -> dict[str, Any]:
    """Returns the bindings of a configurable outside of any scope: parameter -> plain value."""
    bound = [binding for binding in _bindings.values() if (binding.scope, binding.configurable) == ("", configurable)]
    return {binding.parameter: _plain(binding.value) for binding in bound}


def is_inherited(name: str) -> bool:
    """Whether a binding's value comes from an earlier run."""
    return name in _bindings and _bindings[name].where == _INHERITED


def _operative() -> list[Binding]:
    """Returns what was used since `parse`, with the defaults of the configurables that were called."""
    parser = config_parser.ConfigParser(gin.operative_config_str(), gin.config.ParserDelegate())
    statements = [s for s in iter(parser.parse_statement, None) if isinstance(s, config_parser.BindingStatement)]
    return [
        Binding(scope, selector.rpartition(".")[2], parameter, value, "", strict=False)
        if parameter
        else Binding(f"{scope}/{selector}".lstrip("/"), _MACRO, "value", value, "", strict=False)
        for scope, selector, parameter, value, _ in statements
    ]


def unread() -> list[Binding]:
    """Returns the bindings that nothing has read since `parse`: misspelled scopes and macros, and parts not in use."""
    read: dict[tuple[str, str], set[str]] = {}
    for used in _operative():
        read.setdefault((used.configurable, used.parameter), set()).add(used.scope)
    return [binding for binding in _bindings.values() if not _was_read(binding, read)]


def _was_read(binding: Binding, read: dict[tuple[str, str], set[str]]) -> bool:
    scopes = read.get((binding.configurable, binding.parameter), set())
    if binding.configurable == _MACRO:
        return binding.scope in scopes
    same = [other for other in _bindings.values() if other[1:3] == binding[1:3]]
    rivals = {other.scope for other in same if len(other.scope) > len(binding.scope)}
    # A call inside a scope takes the binding whose scope is the longest prefix of its own.
    return any(_covers(binding.scope, scope) and not any(_covers(rival, scope) for rival in rivals) for scope in scopes)


def _covers(scope: str, longer: str) -> bool:
    return not scope or scope == longer or longer.startswith(f"{scope}/")


def check_read() -> None:
    """Checks that something has read each of the user's bindings. Call it once everything is constructed.

    Raises:
      UserError: names the bindings that nothing has read.
    """
    lost = [binding for binding in unread() if binding.strict and binding.name not in _set_aside]
    if not lost:
        return
    others = [name for name in _bindings if name not in {binding.name for binding in lost}]
    close = difflib.get_close_matches(lost[0].name, others, n=1, cutoff=0.75)
    advice = f"did you mean {close[0]}?" if close else "take it out, or bind what uses it"
    unread_names = ", ".join(f"{binding.name} ({binding.where})" for binding in lost)
    raise UserError(f"nothing here reads {unread_names}; {advice}")


def values() -> dict[str, str]:
    """Returns all values in use, defaults included: name -> text, with macros replaced by their values."""
    return {used.name: repr(_source(used).value) for used in _operative() if used.configurable != _MACRO}


def config_text() -> str:
    """Returns the bindings that were read, as a gin file that repeats the run."""
    lost = {binding.name for binding in unread()}
    return _text("was asked to do", [binding for name, binding in _bindings.items() if name not in lost])


def operative_text() -> str:
    """Returns all values in use, every default included, as a gin file that repeats the run."""
    settable = {name: parameter_types.parameters(target) for name, target in _configurables.items()}
    settable[_MACRO] = {"value": ""}
    return _text("did", [used for used in _operative() if used.parameter in settable[used.configurable]])


def _text(what: str, bindings: list[Binding]) -> str:
    lines = [f"# What --mode={_mode} {what}. The same again: --mode={_mode} --gin_file=THIS_FILE"]
    previous = ""
    macros_first = sorted(bindings, key=lambda b: (b.configurable != _MACRO, b.configurable, b.scope, b.parameter))
    for binding in macros_first:
        section = _MACRO if binding.configurable == _MACRO else f"{binding.scope}/{binding.configurable}"
        lines += [""] * (section != previous) + [f"{binding.name} = {binding.value!r}"]
        previous = section
    return "\n".join(lines) + "\n"


def save(workdir: str, *, is_new: bool) -> None:
    """Writes `config.gin`, what was asked for; see `config_text`.

    Args:
      workdir: The run's folder.
      is_new: Whether no run was there before, so that a file of this name is the user's own.

    Raises:
      UserError: instead of overwriting a file of the user's.
    """
    path, text = os.path.join(workdir, CONFIG), config_text()
    if is_new and tf.io.gfile.exists(path):
        with tf.io.gfile.GFile(path) as file:
            if file.read() != text:
                raise UserError(f"{path} belongs to no run and would be overwritten; move it, or use a new --workdir")
    write_text(path, text)


def save_operative(workdir: str) -> None:
    """Writes `operative.gin`, all values in use; see `operative_text`."""
    write_text(os.path.join(workdir, OPERATIVE), operative_text())
