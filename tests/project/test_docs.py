"""What the documents say is so: commands parse, links lead somewhere, examples run, generated parts are current."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import re
import shlex
import sys
from pathlib import Path

import pytest
from absl.testing import flagsaver

import simclr_tf
from simclr_tf import cli, configurables
from simclr_tf.settings import gin_config, gin_files
from simclr_tf.settings.flags import GIN_FILE, GIN_PARAM, MODE, parse_flags
from simclr_tf.settings.modes import OPERATIONS, Kind

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "simclr_tf").rglob("*.py")
    if ">>> " in path.read_text()
)
sys.path.insert(0, str(ROOT / "docs"))


@pytest.fixture(scope="module")
def make_reference():
    return importlib.import_module("make_reference")


def commands(text: str) -> list[str]:
    """Every `simclr` command of a text, continued lines joined."""
    text = re.sub(r"\\\n\s*#?", " ", text)
    found = re.findall(r"^(?:\s*[#>$]?\s*|.*`|# Command: +)((?:simclr|\S*python\S* run\.py) --[^`\n]*)", text, re.M)
    # A sentence's full stop is no part of a command, three dots are.
    found = [re.sub(r"(?<!\.)[.;)]$", "", line.split("  #")[0].strip()) for line in found]
    return [line for line in found if "--help" not in line]


COMMANDS = [(path.name, line) for path in DOCUMENTS for line in commands(path.read_text())]
COMMANDS += [
    (name, line)
    for name in gin_files.shipped_files()
    for line in commands((Path(gin_files.shipped_folder()) / name).read_text())
]


def own_files(folder: Path) -> None:
    """Writes the gin files that documents show: blocks that begin with `# NAME.gin`."""
    for path in DOCUMENTS:
        for name, text in re.findall(r"```\w*\n# (\w+\.gin)\n(.*?)```", path.read_text(), re.S):
            (folder / name).write_text(text)


def test_there_are_commands():
    assert len(COMMANDS) > 40
    assert {"README.md", "tutorial.md", "recipes.md"} <= {name for name, _ in COMMANDS}


@pytest.mark.parametrize("name, line", COMMANDS, ids=[f"{name} {i}" for i, (name, _) in enumerate(COMMANDS)])
def test_command_parses(name, line, tmp_path, monkeypatch):
    own_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(line)
    arguments = ["simclr", *arguments[2 if arguments[0].endswith(("python", "python3")) else 1 :]]
    with flagsaver.flagsaver():
        flags = parse_flags([argument for argument in arguments if argument != "[flags]"])
        if MODE.value in (None, "MODE", "...", "X") or MODE.value.startswith("<"):
            return
        operation = cli._check_usage(flags)
        files = [file for file in GIN_FILE.value if "RECIPE" not in file and "..." not in file]
        if len(files) != len(GIN_FILE.value) or any(Path(file).name == "config.gin" for file in files):
            return
        if not operation.configurable or any("..." in param for param in GIN_PARAM.value):
            return
        shown = cli._shown_mode() if operation.kind is Kind.SHOW else None
        mode = cli._shown_mode() if operation.kind is Kind.PLAN else MODE.value
        gin_config.parse(mode, files, GIN_PARAM.value, shown=shown)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_what_is_linked_is_there(path):
    text = path.read_text()
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), target
    for target in re.findall(r"`((?:docs|tests|benchmarks|tpu_scripts|gin|simclr_tf)/[\w./-]+)`", text):
        if "<" not in target and not {"X", "NAME"} & {Path(part).stem for part in Path(target).parts}:
            candidates = (target, f"{target}.gin", f"gin/{target}")
            assert any((ROOT / candidate).exists() for candidate in candidates), target


def test_generated_reference_is_current(make_reference):
    assert make_reference.reference() == make_reference.REFERENCE.read_text(), "run: python docs/make_reference.py"


def test_generated_table_of_recipes_is_current(make_reference):
    text = make_reference.RECIPES.read_text()
    assert make_reference.with_recipes(text) == text, "run: python docs/make_reference.py"
    for name in gin_files.shipped_files():
        assert not name.startswith("recipes/") or f"| `{name[:-4]}` |" in text


def test_every_mode_and_setting_is_explained(make_reference):
    text = make_reference.reference()
    for mode in OPERATIONS:
        assert f"| `{mode}` |" in text
    unexplained = [line for line in text.splitlines() if line.startswith("| `") and line.endswith("|  |")]
    unexplained = [line for line in unexplained if re.match(r"\| `\w+\.\w+` ", line)]
    assert unexplained == []
    for name in configurables.CONFIGURABLES:
        assert f"\n## {name}\n" in text


def test_arguments_are_read_from_docstrings(make_reference):
    docstring = """One line.

    Args:
      first: of two
        lines.
      second: another.

    Returns:
      third: no.
    """
    assert make_reference.arguments(docstring) == {"first": "of two lines.", "second": "another."}


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0, output.getvalue()


def test_there_are_docstring_examples():
    assert len(MODULES) >= 5


def test_versions_agree():
    assert f"## {simclr_tf.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {simclr_tf.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_license_is_named_the_same_everywhere():
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert "license: Apache-2.0" in (ROOT / "CITATION.cff").read_text()
    assert "Apache" in (ROOT / "README.md").read_text()
