"""Compiles an exported step with JAX for a TPU that need not exist, or runs it on a local device.

This file imports neither TensorFlow nor this package. It runs in an environment that has only JAX
(`requirements-plan.txt`), as `python pjrt.py compile REQUEST.json ANSWER.json`, and `benchmarks/run_step_pjrt.py`
imports it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from typing import Any

# Without these, libtpu queries the machine's metadata server for its TPU and waits for an answer.
_COMPILE_ONLY = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Several compilations may run at a time, because none of them uses a TPU.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def versions() -> dict[str, str]:
    """Returns the versions of the compiler's packages."""
    from importlib import metadata

    return {name: metadata.version(name) for name in ("jax", "jaxlib", "libtpu") if _installed(name)}


def _installed(name: str) -> bool:
    from importlib import metadata

    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def parse_module(module: bytes) -> Any:
    """Turns a serialized HLO module into StableHLO that every PJRT compiler takes.

    Call it inside `jax.interpreters.mlir.make_ir_context()`.

    Args:
      module: Serialized xla.HloModuleProto.

    Returns:
      An MLIR module.
    """
    from jax._src.lib import _jax
    from jax._src.lib.mlir import ir

    parsed = ir.Module.parse(_jax.mlir.hlo_to_stablehlo(module))

    def replace_copies(operation) -> None:
        for region in operation.regions:
            for block in region.blocks:
                for inner in list(block.operations):
                    # HLO's copies have no counterpart in StableHLO and change no value.
                    if inner.operation.name == "mhlo.copy":
                        inner.operation.results[0].replace_all_uses_with(inner.operation.operands[0])
                        inner.operation.erase()
                    else:
                        replace_copies(inner.operation)

    replace_copies(parsed.operation)
    return parsed


def _options(num_replicas: int, device_ids: list[int]):
    import numpy as np
    from jax._src.lib import xla_client

    options = xla_client.CompileOptions()
    options.num_replicas = num_replicas
    options.num_partitions = 1
    options.device_assignment = xla_client.DeviceAssignment.create(np.array(device_ids).reshape(num_replicas, 1))
    return options


def compile_for_topology(module: bytes, *, topology: str, chip_config: str, num_replicas: int) -> dict[str, Any]:
    """Compiles a step for a TPU that need not exist.

    Args:
      module: Serialized xla.HloModuleProto of one replica.
      topology: libtpu's name of the topology, such as "v3:4x4x1".
      chip_config: "default", or "megacore" where a chip's two cores are one device.
      num_replicas: The program's number of replicas, which is also the number of devices used.

    Returns:
      A dictionary with `fits`, `seconds`, `versions` and `device_kind`. If the program fits, it has the bytes of each
      device's `arguments`, `outputs`, `aliased` (outputs that reuse an argument's memory), `temporaries` and `code`,
      and the `flops` and `bytes_accessed` of a step. Otherwise it has `needed_bytes` and `available_bytes`, if the
      compiler gives them.
    """
    os.environ.update(_COMPILE_ONLY)
    from jax._src.interpreters import mlir
    from jax._src.lib import xla_client
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    extra = {} if chip_config == "default" else {"chip_config_name": chip_config}
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology, **extra).devices
    if len(devices) < num_replicas:
        raise ValueError(f"{topology} has {len(devices)} devices, fewer than {num_replicas}")
    devices = devices[:num_replicas]
    answer = {"versions": versions(), "device_kind": devices[0].device_kind}
    started = time.perf_counter()
    with mlir.make_ir_context():
        parsed = parse_module(module)
        try:
            executable = devices[0].client.compile(
                parsed, xla_client.DeviceList(tuple(devices)), _options(num_replicas, [d.id for d in devices])
            )
        except JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return {**answer, "fits": False, "seconds": time.perf_counter() - started, **_shortage(str(error))}
    memory = executable.get_compiled_memory_stats()
    costs = executable.cost_analysis()
    costs = costs[0] if isinstance(costs, (list, tuple)) else costs
    return {
        **answer,
        "fits": True,
        "seconds": time.perf_counter() - started,
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "flops": costs["flops"],
        "bytes_accessed": costs["bytes accessed"],
    }


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

# "Used 20.57G of 15.48G hbm."; "the total memory required for HLO temporaries (15.62G) exceeds available HBM (15.48G)".
_SHORTAGES = (
    r"Used ([\d.]+)([KMGT]?)i?B? of ([\d.]+)([KMGT]?)i?B? hbm",
    r"memory required for [\w ]+\(([\d.]+)([KMGT]?)i?B?\) exceeds available HBM \(([\d.]+)([KMGT]?)i?B?\)",
)


def _shortage(message: str) -> dict[str, Any]:
    """Reads the compiler's message about a program that does not fit."""
    found = next(filter(None, (re.search(pattern, message) for pattern in _SHORTAGES)), None)
    told = {"message": message.strip().splitlines()[0]}
    if found:
        used, used_unit, available, available_unit = found.groups()
        told["needed_bytes"] = round(float(used) * _UNITS[used_unit])
        told["available_bytes"] = round(float(available) * _UNITS[available_unit])
    return told


class Step:
    """An exported step on this machine's devices, one device per replica."""

    def __init__(
        self, module: bytes, manifest: dict[str, Any], initial: dict[str, Any], devices: list[Any] | None = None
    ):
        """Compiles the program and puts the variables' values on the devices.

        Args:
          module: Serialized xla.HloModuleProto.
          manifest: The manifest that `simclr_tf.commands.plan.step_program` writes.
          initial: Name -> initial value of each argument of kind "state".
          devices: One of `jax.devices()` for each replica; None for the first ones.

        Raises:
          ValueError: If there are too few devices, or a value has the wrong shape.
        """
        import jax
        from jax._src.interpreters import mlir
        from jax._src.lib import xla_client

        replicas = manifest["replicas"]
        self.devices = list(devices or jax.devices()[:replicas])
        if len(self.devices) != replicas:
            raise ValueError(f"the step has {replicas} replica(s), and there are {len(self.devices)} device(s)")
        mesh = jax.sharding.Mesh(self.devices, "replica")
        self._split, self._whole = (
            jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (("replica",), ())
        )
        self._manifest = manifest
        with mlir.make_ir_context():
            self._executable = self.devices[0].client.compile_and_load(
                parse_module(module),
                xla_client.DeviceList(tuple(self.devices)),
                _options(replicas, [device.id for device in self.devices]),
            )
        self._fixed: dict[str, dict[str, Any]] = {"state": {}, "constant": {}}
        for argument in manifest["arguments"]:
            if argument["kind"] in self._fixed:
                value = initial[argument["name"]] if argument["kind"] == "state" else argument["value"]
                self._fixed[argument["kind"]][argument["name"]] = self._put(value, argument)

    def _put(self, value, argument: dict[str, Any]):
        """Puts a value on all devices: splits the rows of a batch, copies everything else."""
        import jax
        import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16)
        import numpy as np

        array, shape = np.asarray(value, dtype=np.dtype(argument["dtype"])), list(argument["shape"])
        divided = argument["kind"] == "batch"
        if divided:
            shape[0] *= len(self.devices)
        if list(array.shape) != shape:
            raise ValueError(f"{argument['name']} has shape {list(array.shape)}; the step takes {shape}")
        # By default JAX would narrow the int64 step and indices to int32.
        with jax.enable_x64(True):
            return jax.device_put(array, self._split if divided else self._whole)

    def run(self, step: int, batch: dict[str, Any]) -> dict[str, float]:
        """Takes a step.

        Args:
          step: The step's number, from 0.
          batch: `{stream}/{name}` -> array for all replicas.

        Returns:
          The record that training would write, name -> value.
        """
        import jax
        import numpy as np

        given = {"step": {"step": step}, "batch": batch}
        values = [
            self._fixed[argument["kind"]][argument["name"]]
            if argument["kind"] in self._fixed
            else self._put(given[argument["kind"]][argument["name"]], argument)
            for argument in self._manifest["arguments"]
        ]
        results = self._executable.execute_sharded(values).disassemble_into_single_device_arrays()
        outputs = self._manifest["outputs"]
        for output, parts in zip(outputs[1:], results[1:]):
            self._fixed["state"][output["name"]] = jax.make_array_from_single_device_arrays(
                tuple(output["shape"]), self._whole, parts
            )
        # The record is the same on all replicas.
        return dict(zip(outputs[0]["names"], map(float, np.asarray(results[0][0]))))

    def state(self) -> dict[str, Any]:
        """Returns the variables' current values, name -> array."""
        import numpy as np

        return {name: np.asarray(value.addressable_shards[0].data) for name, value in self._fixed["state"].items()}


def _end_with_parent() -> None:
    """Lets Linux kill this process when its parent ends, so that a killed plan does not go on compiling."""
    import ctypes
    import signal

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _main(arguments: list[str]) -> None:
    command, request, answer = arguments
    if command != "compile":
        raise SystemExit(f"{command} is unknown; the only command is compile")
    if sys.platform == "linux":
        _end_with_parent()
    with open(request) as file:
        wanted = json.load(file)
    with open(wanted.pop("hlo"), "rb") as file:
        result = compile_for_topology(file.read(), **wanted)
    with open(answer, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    _main(sys.argv[1:])
