"""Who may import whom, and what only one place may do: read from the sources, without importing them."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from sources import IMPORTS, MODULES, PACKAGE, ROOT


def of_package(package: str) -> set[str]:
    """The modules that import an outside package."""
    return {name for name, found in IMPORTS.items() if any(other.split(".")[0] == package for other in found)}


def test_there_is_something_to_look_at():
    assert {"simclr_tf.cli", "simclr_tf.training.loop", "simclr_tf.models.resnet"} <= MODULES.keys()
    assert "simclr_tf.training.loop" in IMPORTS["simclr_tf.training.train"]


def test_no_circles():
    """Walks from every module; imports inside functions count, too."""
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        for other in sorted(IMPORTS[name] & MODULES.keys()):
            walk(other, (*path, name))
        done.add(name)

    for name in MODULES:
        if name != "simclr_tf":
            walk(name, ())


# A room imports rooms of rows below its own; rooms of one row do not know each other.
FLOORS = [
    {"cli"},
    {"configurables"},
    {"commands"},
    {"training"},
    {"stages"},
    {"workdir", "analysis"},
    {"models", "losses", "settings"},
    {"distribute", "data", "optim"},
    {"core"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room(module: str) -> str:
    return module.split(".")[1]


def test_imports_point_down():
    inside = [name for name in MODULES if name != "simclr_tf"]
    assert FLOOR.keys() == {room(name) for name in inside}
    for module in inside:
        for other in IMPORTS[module] & set(inside):
            same = room(module) == room(other)
            assert same or FLOOR[room(module)] < FLOOR[room(other)], f"{module} imports {other}, which is not below it"


def test_rooms_say_what_they_are_for():
    """Nothing but rooms, the command line and the list of configurables stands in the package's root."""
    files = {path.name for path in PACKAGE.glob("*.py")}
    assert files == {"__init__.py", "cli.py", "configurables.py"}
    for path in PACKAGE.glob("*/__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} does not say what the room is for"
    tested = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert tested <= FLOOR.keys() | {"support", "project"}


def test_only_the_command_line_reads_flags():
    readers = {name for name, path in MODULES.items() if "FLAGS" in path.read_text() or "DEFINE_" in path.read_text()}
    assert readers == {"simclr_tf.cli", "simclr_tf.settings.flags"}


def test_only_two_files_know_gin():
    assert of_package("gin") == {"simclr_tf.settings.gin_config", "simclr_tf.configurables"}


def test_tensorflow_and_keras_come_from_one_place():
    # One operation of XLA has no public name.
    assert of_package("tensorflow") <= {"simclr_tf.core.tf", "simclr_tf.distribute.collectives"}
    assert of_package("keras") | of_package("tf_keras") <= {"simclr_tf.core.tf"}


def test_the_loop_names_no_stage():
    stages = {name for name in IMPORTS["simclr_tf.training.loop"] if name.startswith("simclr_tf.stages")}
    assert stages <= {"simclr_tf.stages.stage", "simclr_tf.stages.micro_batches"}


def test_only_one_file_names_resolvers():
    naming = {name for name, path in MODULES.items() if "cluster_resolver" in path.read_text()}
    assert naming == {"simclr_tf.distribute.cluster"}


def test_only_one_file_talks_to_replica_contexts():
    asking = {name for name, path in MODULES.items() if "get_replica_context" in path.read_text()}
    assert asking <= {"simclr_tf.distribute.collectives", "simclr_tf.optim.optimizers"}


def test_a_restore_is_checked_before_its_leftovers_are_ignored():
    using = {name: path.read_text() for name, path in MODULES.items() if "expect_partial" in path.read_text()}
    assert list(using) == ["simclr_tf.workdir.networks"]
    lines = [line.strip() for line in using["simclr_tf.workdir.networks"].splitlines()]
    at = [i for i, line in enumerate(lines) if "expect_partial" in line]
    assert len(at) == 1 and "status.assert_existing_objects_matched()" in lines[at[0] - 4 : at[0]]


@pytest.mark.parametrize("word", ["import pickle", "allow_pickle=True", "except:"])
def test_never(word):
    assert not [name for name, path in MODULES.items() if word in path.read_text()]


def test_no_file_shadows_gin():
    assert not list((ROOT / "gin").rglob("__init__.py"))
    code = "import gin, sys; sys.exit(not hasattr(gin, 'parse_config'))"
    assert subprocess.call([sys.executable, "-c", code], cwd=ROOT) == 0


def test_public_functions_have_types():
    """Of modules' own functions: every argument and what is returned."""
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                assert node.returns is not None, f"{name}.{node.name} says not what it returns"
                for argument in arguments:
                    assert argument.annotation is not None, f"{name}.{node.name} says not what {argument.arg} is"


def test_import_is_quiet():
    """TensorFlow's start-up notes and Addons' end of life are silenced; a real warning still comes through."""
    code = (
        "import simclr_tf.configurables, warnings, importlib.util\n"
        "from simclr_tf.core.tf import addons\n"
        "importlib.util.find_spec('tensorflow_addons') and addons('a test')\n"
        "warnings.warn('a real warning')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout == ""
    lines = [line for line in run.stderr.splitlines() if line.strip()]
    assert len(lines) <= 2 and "a real warning" in lines[0], run.stderr
