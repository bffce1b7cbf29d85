"""Exports the training step as an XLA program with a manifest of its arguments.

The program is the loop's own step lowered for one replica, including augmentation, loss, gradient, exchange and update.
`pjrt.py` compiles and runs it without TensorFlow.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from simclr_tf.commands.plan import hlo
from simclr_tf.core.errors import UserError
from simclr_tf.core.files import write_bytes, write_json
from simclr_tf.core.tf import tf
from simclr_tf.data.bad_images import bad_image_counter
from simclr_tf.data.pipeline import train_dataset
from simclr_tf.distribute.collectives import ReplicaProgram
from simclr_tf.training.run_plan import RunPlan

HLO, MANIFEST, INITIAL, BATCHES = "step.hlo", "manifest.json", "initial.npz", "batches.npz"
_FORMAT = 1
# The tensors of every stream besides its crops; see `data.pipeline.train_dataset`.
_PER_EXAMPLE = {"label": tf.int32, "index": tf.int64}


class Exported(NamedTuple):
    """A step that no longer needs TensorFlow.

    Attributes:
      module: Serialized xla.HloModuleProto.
      manifest: The description of its arguments and outputs; see `export`.
      variables: The variables behind the arguments of kind "state", by name.
    """

    module: bytes
    manifest: dict[str, Any]
    variables: dict[str, tf.Variable]

    @property
    def sha256(self) -> str:
        """The program's hash; equal programs have equal hashes."""
        return hashlib.sha256(self.module).hexdigest()


@contextlib.contextmanager
def hollow_variables() -> Iterator[None]:
    """While active, all new variables of one shape share one tensor of zeros.

    A program's shapes do not depend on values, and the largest network's weights would take several gigabytes.
    """
    zeros: dict[tuple, tf.Tensor] = {}

    def creator(next_creator: Callable[..., tf.Variable], **kwargs) -> tf.Variable:
        value, shape, dtype = kwargs.get("initial_value"), kwargs.get("shape"), kwargs.get("dtype")
        if shape is None:
            value = tf.convert_to_tensor(value() if callable(value) else value, dtype=dtype)
            shape = value.shape
        shape = tf.TensorShape(shape)
        dtype = tf.as_dtype(dtype if dtype is not None else getattr(value, "dtype", tf.float32))
        key = (tuple(shape), dtype)
        if key not in zeros:
            # Outside of any graph under construction, so that variables made elsewhere can share the tensor.
            with tf.init_scope():
                zeros[key] = tf.zeros(shape, dtype)
        kwargs.update(initial_value=zeros[key], shape=shape, dtype=dtype)
        return next_creator(**kwargs)

    with tf.variable_creator_scope(creator):
        yield


def _batch_arguments(built: RunPlan, per_replica: dict[str, int]) -> list[tuple[str, str, tf.TensorSpec]]:
    """Returns (stream, tensor's name, spec) of all that `data.pipeline.train_dataset` yields, in a fixed order."""
    rows = []
    for stream, source in built.inputs.items():
        size, batch = source.prepare.size, per_replica[stream]
        rows += [(stream, name, tf.TensorSpec([batch, size, size, 3], tf.uint8)) for name in source.prepare.names]
        rows += [(stream, name, tf.TensorSpec([batch], dtype)) for name, dtype in _PER_EXAMPLE.items()]
    return rows


def _named_variables(built: RunPlan) -> dict[str, tf.Variable]:
    """Returns the run's checkpointed variables and the teacher's, named by part, position and own name."""
    parts = {**built.stage.checkpoint_items(), "optimizer": built.optimizer}
    named: dict[int, tuple[str, tf.Variable]] = {}
    for part, module in parts.items():
        for i, variable in enumerate(module.variables):
            named.setdefault(id(variable), (f"{part}/{i:04d}/{variable.name.split(':')[0]}", variable))
    for i, variable in enumerate(built.stage.frozen_variables):
        named.setdefault(id(variable), (f"frozen/{i:04d}/{variable.name.split(':')[0]}", variable))
    return dict(named.values())


def batch_sizes(built: RunPlan, replicas: int, batch_size: int | None = None) -> dict[str, int]:
    """Returns each stream's examples per replica, scaled to `batch_size` examples of the first stream if given."""
    usual = {name: size // replicas for name, size in built.batch_sizes.items()}
    first = next(iter(usual.values()))
    return {name: max(1, size * (batch_size or first) // first) for name, size in usual.items()}


def export(built: RunPlan, program: ReplicaProgram, *, per_replica_batch_size: int | None = None) -> Exported:
    """Lowers the step of a run.

    Args:
      built: The run, built in `program`'s scope.
      program: The strategy with the number of replicas.
      per_replica_batch_size: The examples of the first stream on each replica; None for the run's own. Other streams
        scale in proportion.

    Returns:
      The program and its manifest. `arguments` lists, in order, the step's number ("step"), the batch ("batch"), the
      variables ("state") and constants ("constant"). The `output` of a variable is the number of the output that holds
      its new value, or None if it does not change. `outputs` lists the record's numbers and the new values.

    Raises:
      UserError: If XLA cannot compile the step.
    """
    replicas = program.num_replicas_in_sync
    sizes = batch_sizes(built, replicas, per_replica_batch_size)
    rows = _batch_arguments(built, sizes)
    specs = [tf.TensorSpec([], tf.int64), *(spec for _, _, spec in rows)]
    names: list[str] = []

    @tf.function(jit_compile=True, autograph=False)
    def step(number, *tensors):
        batch: dict[str, dict[str, tf.Tensor]] = {}
        for (stream, name, _), tensor in zip(rows, tensors):
            batch.setdefault(stream, {})[name] = tensor
        record = built.loop.one_step(batch, number)
        names[:] = record  # Tracing tells the record's names.
        return tf.stack(list(record.values()))

    with program.tracing():
        concrete = step.get_concrete_function(*specs)
        try:
            module = step.experimental_get_compiler_ir(*specs)(stage="hlo_serialized")
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"XLA cannot compile this step ({reason}); leave out operations that it does not support, such "
                "as those of tensorflow-addons"
            ) from None
    module = hlo.canonical(module, "step")
    signature = hlo.signature(module)
    state = _named_variables(built)
    by_handle = {id(variable.handle): name for name, variable in state.items()}
    arguments = [{"kind": "step", "name": "step"}]
    arguments += [{"kind": "batch", "name": f"{stream}/{name}"} for stream, name, _ in rows]
    constants: dict[str, np.ndarray] = {}
    for captured in concrete.captured_inputs:
        if captured.dtype == tf.resource:
            assert id(captured) in by_handle, "the step uses a variable that no checkpoint holds"
            arguments.append({"kind": "state", "name": by_handle[id(captured)]})
        else:
            name = f"constant/{len(constants):04d}"
            constants[name] = captured.numpy()
            arguments.append({"kind": "constant", "name": name, "value": constants[name].tolist()})
    assert len(arguments) == len(signature.parameters), (len(arguments), len(signature.parameters))
    outputs = [{"kind": "record", "names": list(names)}]
    outputs += [{"kind": "state"} for _ in signature.outputs[1:]]
    for i, (argument, array) in enumerate(zip(arguments, signature.parameters)):
        argument.update(shape=list(array.shape), dtype=array.dtype)
        if argument["kind"] == "state":
            argument["output"] = signature.updates.get(i)
            if argument["output"] is not None:
                outputs[argument["output"]]["name"] = argument["name"]
    for output, array in zip(outputs, signature.outputs):
        output.update(shape=list(array.shape), dtype=array.dtype)
    assert all("name" in output for output in outputs[1:]), "an output updates no variable"
    used = {argument["name"] for argument in arguments}
    manifest = {
        "format": _FORMAT,
        "stage": built.stage.name,
        "replicas": replicas,
        "per_replica_batch_size": next(iter(sizes.values())),
        "seed": built.seed,
        "precision": built.precision,
        "steps": built.steps,
        "hlo_sha256": hashlib.sha256(module).hexdigest(),
        "arguments": arguments,
        "outputs": outputs,
    }
    return Exported(module, manifest, {name: variable for name, variable in state.items() if name in used})


def save(exported: Exported, folder: str) -> None:
    """Writes the program and its manifest into a folder, creating it if necessary."""
    tf.io.gfile.makedirs(folder)
    write_bytes(os.path.join(folder, HLO), exported.module)
    write_json(os.path.join(folder, MANIFEST), exported.manifest)


def _save_arrays(path: str, arrays: dict[str, np.ndarray], sha256: str) -> None:
    """Writes arrays, with the hash of the program they belong to."""
    with io.BytesIO() as buffer:
        np.savez(buffer, hlo_sha256=np.array(sha256), **arrays)
        write_bytes(path, buffer.getvalue())


def save_state(exported: Exported, folder: str) -> None:
    """Writes the variables' current values, from which the program can start."""
    values = {name: variable.numpy() for name, variable in exported.variables.items()}
    _save_arrays(os.path.join(folder, INITIAL), values, exported.sha256)


def save_batches(built: RunPlan, exported: Exported, folder: str, count: int) -> None:
    """Writes the run's first batches for one replica, `{step}/{stream}/{name}` -> array."""
    arrays = {}
    for stream, source in built.inputs.items():
        batch_size = built.batch_sizes[stream]
        bad_images = bad_image_counter(built.stage.max_bad_images, source.source)
        dataset = train_dataset(
            source.source,
            source.prepare,
            global_batch_size=batch_size,
            per_replica_batch_size=batch_size,
            seed=built.seed,
            num_steps=count,
            bad_images=bad_images,
            stream_name=stream,
        )
        try:
            for i, batch in enumerate(dataset.as_numpy_iterator()):
                arrays.update({f"{i}/{stream}/{name}": value for name, value in batch.items()})
        except tf.errors.OpError:
            if bad_images is not None:
                bad_images.check()
            raise
    _save_arrays(os.path.join(folder, BATCHES), arrays, exported.sha256)
