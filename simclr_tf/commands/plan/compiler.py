"""Installs the TPU compiler into an environment apart from TensorFlow's, and compiles steps there."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import Any

from simclr_tf.commands.plan.chips import Topology
from simclr_tf.core.errors import UserError
from simclr_tf.core.files import read_json, write_json
from simclr_tf.core.tf import tf

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
_WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pjrt.py")
REQUIREMENTS = ("jax[tpu]>=0.10.2,<=0.12.0.1",)
_PACKAGES = ("jax", "jaxlib", "libtpu")
# Python 3.11 is the oldest that the pinned compilers are built for.
_PYTHONS = ("python3.12", "python3.13", "python3.11")
_OLDEST = (3, 11)


def default_folder() -> str:
    """Returns the default folder of the compiler's environment: `.venv-plan` beside the package."""
    return os.path.join(_ROOT, ".venv-plan")


def _python(folder: str) -> str:
    return os.path.join(folder, "bin", "python")


def is_there(folder: str) -> bool:
    """Whether a folder has a complete environment with the TPU compiler; starts no process."""
    # Installers write this file last, so an interrupted installation lacks one.
    marks = os.path.join(folder, "lib", "python*", "site-packages", "{}-*.dist-info", "INSTALLER")
    return os.path.exists(_python(folder)) and all(glob.glob(marks.format(name)) for name in _PACKAGES)


def _new_enough_python() -> str:
    if sys.version_info >= _OLDEST:
        return sys.executable
    for name in _PYTHONS:
        found = shutil.which(name)
        if found and subprocess.run([found, "-c", "import venv"], capture_output=True).returncode == 0:
            return found
    raise UserError(
        f"the TPU compiler needs Python 3.11 or newer, and only {sys.version.split()[0]} was found; install one, or "
        "give an environment that has jax[tpu] with --plan_env; everything else works without"
    )


def _requirements() -> list[str]:
    """Returns pip's arguments: the requirements file in a clone, the same versions in an installed package."""
    path = os.path.join(_ROOT, "requirements-plan.txt")
    return ["-r", path] if os.path.exists(path) else list(REQUIREMENTS)


def ensure(folder: str, *, make: bool) -> None:
    """Ensures that the compiler is installed.

    Args:
      folder: The environment's folder.
      make: Whether to install a missing compiler (about 1.2 GB).

    Raises:
      UserError: If the compiler is missing and may not or cannot be installed.
    """
    if is_there(folder):
        return
    if not make:
        raise UserError(
            f"the TPU compiler is not installed in {folder}; run `make plan-env`, or add --make_plan_env to this "
            "command (1.2 GB, by pip); everything else works without"
        )
    python = _new_enough_python()
    print(f"installing the TPU compiler in {folder} (1.2 GB) ...", file=sys.stderr, flush=True)
    for command in (
        [python, "-m", "venv", folder],
        [_python(folder), "-m", "pip", "install", "--disable-pip-version-check", "-q", *_requirements()],
    ):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode or (command[1:3] == ["-m", "pip"] and not is_there(folder)):
            lines = [line for line in (result.stderr + result.stdout).splitlines() if line.strip()]
            reasons = [line for line in lines if line.startswith("ERROR")] or lines or ["no reason given"]
            raise UserError(
                f"the TPU compiler cannot be installed in {folder} ({reasons[-1].strip()}); it exists for Linux on "
                "x86-64; everything else works without"
            )


def compile_for(
    module: bytes,
    topology: Topology,
    *,
    num_replicas: int,
    folder: str,
    cache: str,
    timeout_seconds: float | None = None,
) -> dict[str, Any]:
    """Compiles a step for a TPU, or returns the cached answer of an earlier compilation.

    Args:
      module: Serialized xla.HloModuleProto of one replica.
      topology: The TPU.
      num_replicas: The program's number of replicas.
      folder: The folder of the compiler's environment; see `ensure`.
      cache: The folder of earlier answers, one file each.
      timeout_seconds: Seconds after which the compiler is stopped; None for no limit.

    Returns:
      The answer of `pjrt.compile_for_topology`; `cached` says whether it comes from the cache.

    Raises:
      UserError: If the compiler fails or takes too long.
    """
    request = {
        "topology": topology.libtpu_name,
        "chip_config": topology.chip.chip_config,
        "num_replicas": num_replicas,
    }
    key = json.dumps([request, hashlib.sha256(module).hexdigest(), _compiler(folder)], sort_keys=True)
    path = os.path.join(cache, f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json")
    known = _known(path)
    if known is not None:
        return {**known, "cached": True}
    with tempfile.TemporaryDirectory() as scratch:
        hlo_path, request_path, answer_path = (
            os.path.join(scratch, name) for name in ("step.hlo", "request.json", "answer.json")
        )
        with open(hlo_path, "wb") as file:
            file.write(module)
        with open(request_path, "w") as file:
            json.dump({**request, "hlo": hlo_path}, file)
        # -I hides this package and TensorFlow's environment from the other Python.
        command = [_python(folder), "-I", _WORKER, "compile", request_path, answer_path]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=timeout_seconds)
        except OSError as error:
            raise UserError(
                f"the TPU compiler in {folder} cannot be started ({error.strerror}); install it anew with "
                "`make plan-env`, or give another --plan_env"
            ) from None
        except subprocess.TimeoutExpired:
            raise UserError(
                f"compiling for {topology.name} took more than {timeout_seconds:.0f} s and was stopped"
            ) from None
        if result.returncode == -signal.SIGKILL:
            raise UserError(
                f"the TPU compiler was killed while it compiled for {topology.name}, as a rule for want of memory (the "
                "largest networks take more than 14 GB); close other programs, or take a larger machine"
            )
        if result.returncode:
            lines = [line for line in result.stderr.splitlines() if line.strip()]
            raise UserError(
                f"the TPU compiler failed for {topology.name} ({lines[-1].strip() if lines else result.returncode}); "
                f"try it by itself: {_python(folder)} -c 'import jax; print(jax.__version__)'"
            )
        with open(answer_path) as file:
            answer = json.load(file)
    tf.io.gfile.makedirs(cache)
    write_json(path, answer)
    return {**answer, "cached": False}


def _known(path: str) -> dict[str, Any] | None:
    """Returns an earlier answer, or None if it is missing or damaged; the caller then replaces it."""
    try:
        answer = read_json(path) if tf.io.gfile.exists(path) else None
    except ValueError:
        return None
    return answer if isinstance(answer, dict) and "fits" in answer else None


def _compiler(folder: str) -> list[str]:
    """Returns the installed versions, from the names of their folders."""
    found = glob.glob(os.path.join(folder, "lib", "python*", "site-packages", "*.dist-info"))
    return sorted(os.path.basename(path) for path in found if os.path.basename(path).startswith(("jaxlib-", "libtpu-")))
