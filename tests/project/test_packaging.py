"""What `pip install .` brings: the package with its gin files and data, and a command that works from any folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
PINS = [line for line in LINES if line]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Builds the wheel from a copy of the sources, without network, and unpacks it as pip would."""
    source, wheels = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    for name in ("simclr_tf", "gin"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (
        "setup.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        *(path.name for path in ROOT.glob("require*.txt")),
    ):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*build, "-w", wheels, source], check=True, capture_output=True, cwd=source)
    (wheel,) = wheels.glob("*.whl")
    target = tmp_path_factory.mktemp("target")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def files(folder: Path) -> set[str]:
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {str(path) for path in found if "__pycache__" not in path.parts}


def test_all_of_the_package_is_in_it(installed):
    assert files(ROOT / "simclr_tf") <= files(installed / "simclr_tf")
    assert files(ROOT / "gin") == files(installed / "simclr_tf" / "gin_files")


def test_nothing_else_is_in_it(installed):
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == {"simclr_tf"}


def test_command_and_dependencies(installed):
    (info,) = installed.glob("*.dist-info")
    assert "simclr = simclr_tf.cli:main" in (info / "entry_points.txt").read_text()
    metadata = (info / "METADATA").read_text()
    needed = re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE)
    plain = {re.sub(r"[-_.]+", "-", re.split(r"[=;\s]", line)[0]).lower() for line in needed if "extra ==" not in line}
    assert plain == {re.sub(r"[-_.]+", "-", re.split(r"[=;\s]", pin)[0]).lower() for pin in PINS}
    assert "Requires-Python: >=3.9" in metadata
    assert {"dev", "export", "report"} == set(re.findall(r"^Provides-Extra: (.*)$", metadata, re.MULTILINE))


def test_works_from_any_folder(installed, tmp_path):
    """Finds recipes and data inside the installation, with no clone about."""
    command = [sys.executable, "-c", "from simclr_tf.cli import main; main()", "--mode=pretrain", "--workdir=run"]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    arguments = ["--gin_file=recipes/pretrain/embedded_small", "--gin_file=smoke", "--dry_run"]
    run = subprocess.run([*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "64 images of embedded:cifar10_mini" in run.stdout
    assert not list(tmp_path.iterdir())


def test_pins_choose_one_version_for_every_python():
    packaging = pytest.importorskip("packaging.requirements")
    for version in ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14"):
        chosen = {}
        for pin in map(packaging.Requirement, PINS):
            if pin.marker is None or pin.marker.evaluate({"python_version": version}):
                assert pin.name not in chosen, f"{pin.name} twice on Python {version}"
                chosen[pin.name] = str(pin.specifier)
        assert all(specifier.startswith("==") for specifier in chosen.values())
        old = version in ("3.9", "3.10", "3.11")
        assert chosen["tensorflow"] == ("==2.15.1" if old else "==2.21.0")
        assert ("tensorflow-addons" in chosen) == old
        assert ("tf-keras" in chosen) != old


def make(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
class TestMakefile:
    def test_targets(self):
        planned = make("-n", "test").stdout
        assert planned.index("ruff check") < planned.index("pytest")
        assert "run.py --mode=demo" in make("-n", "demo").stdout

    @pytest.mark.parametrize(
        "script, told",
        [("exit 1", "does not work"), ("echo Python 3.8.18; exit 1", "older than 3.9 (Python 3.8.18)")],
    )
    def test_unsupported_python(self, script, told, tmp_path):
        python = tmp_path / "python3"
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        made = make("venv", f"PYTHON={python}", f"VENV={tmp_path}/venv")
        assert made.returncode != 0
        assert told in made.stderr
        assert not (tmp_path / "venv").exists()

    def test_no_python_at_all(self, tmp_path):
        made = make("venv", f"PYTHON={tmp_path}/none", f"VENV={tmp_path}/venv")
        assert made.returncode != 0
        assert "does not work" in made.stderr
