"""--mode=plan: says whether a recipe fits a TPU, and how long it takes there at least, before you rent one."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from simclr_tf.commands.plan import estimate, hlo, step_program
from simclr_tf.commands.plan.chips import Topology
from simclr_tf.commands.plan.compiler import compile_for, ensure
from simclr_tf.commands.plan.search import Largest, Try, largest_batch
from simclr_tf.commands.plan.tables import search_line, step_table
from simclr_tf.core.errors import UserError
from simclr_tf.core.files import write_json
from simclr_tf.core.text import magnitude
from simclr_tf.core.tf import keras
from simclr_tf.data.sources.known_sizes import numbers_suffice
from simclr_tf.distribute.collectives import ReplicaProgram
from simclr_tf.models import cost
from simclr_tf.models.resnet import ResNet
from simclr_tf.training.run_plan import RunPlan

PLAN, STEP, CACHE = "plan.json", "step", "compiled"
# Builds a run from the program and further gin bindings; see `cli`.
Build = Callable[[ReplicaProgram, list[str]], RunPlan]

_PRECISIONS = ("bfloat16", "float32")


class Compiler(NamedTuple):
    """Where and how programs are compiled.

    Attributes:
      folder: The folder of the compiler's environment; see `compiler.ensure`.
      cache: The folder of earlier answers.
      timeout_seconds: The time limit for one program; None for no limit.
    """

    folder: str
    cache: str
    timeout_seconds: float | None = None


def can_recompute() -> bool:
    """Whether networks can recompute their blocks in the backward pass."""
    return "remat" in inspect.signature(ResNet.__init__).parameters


def _name_anew() -> None:
    """Resets Keras' layer names: XLA orders operations by name, so equal steps need equal names."""
    keras.backend.reset_uids()


def hollow(build: Build, program: ReplicaProgram, bindings: list[str]) -> RunPlan:
    """Builds a run whose variables share tensors of zeros, and whose data need not be there."""
    _name_anew()
    with step_program.hollow_variables(), numbers_suffice():
        return build(program, bindings)


def compile_step(
    built: RunPlan, topology: Topology, program: ReplicaProgram, compiler: Compiler, batch_size: int
) -> dict[str, Any]:
    """Exports and compiles the step of a run with `batch_size` examples on each replica.

    Returns:
      `pjrt.compile_for_topology`'s answer with `collectives` (operation -> count and bytes) and `hlo_sha256`.
    """
    exported = step_program.export(built, program, per_replica_batch_size=batch_size)
    return compile_exported(exported, topology, compiler)


def compile_exported(exported: step_program.Exported, topology: Topology, compiler: Compiler) -> dict[str, Any]:
    """Compiles an exported step; see `compile_step`."""
    answer = compile_for(
        exported.module,
        topology,
        num_replicas=exported.manifest["replicas"],
        folder=compiler.folder,
        cache=compiler.cache,
        timeout_seconds=compiler.timeout_seconds,
    )
    exchanged = {name: {"count": n, "bytes": size} for name, (n, size) in hlo.collectives(exported.module).items()}
    return {**answer, "collectives": exchanged, "hlo_sha256": exported.sha256}


def describe(
    built: RunPlan, topology: Topology, batch_size: int, answer: dict[str, Any], price: float | None
) -> dict[str, Any]:
    """Returns the plan of one compiled step: whether it fits, its memory, its work, and bounds on its time."""
    told = {
        "topology": topology.name,
        "chips": topology.num_chips,
        "replicas": topology.num_replicas,
        "memory_bytes_per_replica": topology.memory_bytes,
        "stage": built.stage.name,
        "precision": built.precision,
        "remat": getattr(built.stage.network.encoder, "remat", False),
        "parameters": cost.count_parameters(built.stage.network.encoder),
        "global_batch_size": batch_size * topology.num_replicas,
        "per_replica_batch_size": batch_size,
        "steps": built.steps,
        "epochs": built.epochs,
        "fits": answer["fits"],
        "hlo_sha256": answer["hlo_sha256"],
        "compiled_in_seconds": round(answer["seconds"], 1),
        "compiler": answer["versions"],
    }
    if not answer["fits"]:
        shortage = ("needed_bytes", "available_bytes", "message")
        return {**told, **{name: answer[name] for name in shortage if name in answer}}
    exchanged = sum(part["bytes"] for part in answer["collectives"].values())
    bound = estimate.lower_bound(
        topology,
        flops=answer["flops"],
        bytes_accessed=answer["bytes_accessed"],
        all_reduce_bytes=exchanged,
        global_batch_size=batch_size * topology.num_replicas,
        steps=built.steps,
        price=price,
    )
    return {
        **told,
        "memory": estimate.memory(answer),
        "flops": answer["flops"],
        "bytes_accessed": answer["bytes_accessed"],
        "collectives": answer["collectives"],
        "bound": bound,
    }


def _variants(built: RunPlan) -> list[tuple[str, list[str]]]:
    """Returns the variants that a search compares, the recipe's own settings first: (name, gin bindings)."""
    own_remat = bool(getattr(built.stage.network.encoder, "remat", False))
    rows = []
    for precision in sorted(_PRECISIONS, key=lambda name: name != built.precision):
        for remat in (own_remat, not own_remat) if can_recompute() else (False,):
            name = precision + (", blocks recomputed" if remat else "")
            bindings = [f"train.precision = {precision!r}"] + ([f"ResNet.remat = {remat}"] if can_recompute() else [])
            rows.append((name, bindings))
    return rows


def _possible(built: RunPlan, replicas: int, batch_size: int) -> bool:
    """Whether the run can divide `batch_size` examples per replica as its settings ask."""
    try:
        built.stage.check_batch(batch_size * replicas, replicas)
    except UserError:
        return False
    sizes = step_program.batch_sizes(built, replicas, batch_size).values()
    return all(size % built.loop.accumulation_steps == 0 for size in sizes)


def _search(
    build: Build, built: RunPlan, topology: Topology, compiler: Compiler, start: int
) -> Iterator[tuple[str, Largest | str]]:
    """Yields each variant with its largest batch, or with the reason why there is none."""
    replicas = topology.num_replicas
    for name, bindings in _variants(built):
        program = ReplicaProgram(replicas, unrolled=True)
        variant = hollow(build, program, bindings)

        def tried(batch_size: int, variant=variant, program=program) -> Try:
            answer = compile_step(variant, topology, program, compiler, batch_size)
            needed = estimate.memory(answer)["total"] if answer["fits"] else answer.get("needed_bytes")
            return Try(batch_size, answer["fits"], needed)

        try:
            yield (
                name,
                largest_batch(
                    tried,
                    start=start,
                    limit=built.global_batch_size,
                    available_bytes=topology.memory_bytes,
                    possible=lambda size, variant=variant: _possible(variant, replicas, size),
                ),
            )
        except UserError as error:  # The compiler was killed, for example because memory ran out.
            yield name, str(error)


def plan(
    build: Build,
    topologies: list[Topology],
    *,
    workdir: str,
    compiler_folder: str,
    make_environment: bool = False,
    price: float | None = None,
    search: bool = True,
    timeout_seconds: float | None = None,
) -> dict[str, Any]:
    """Plans a run, prints a table for each TPU, and writes `plan.json` and the exported steps into a folder.

    Args:
      build: Function that builds the run.
      topologies: The TPUs. The step is exported once for each number of replicas.
      workdir: The folder to write to.
      compiler_folder: The folder of the compiler's environment.
      make_environment: Whether to install a missing compiler.
      price: The price of a chip for an hour.
      search: Whether to search for the largest batch, with and without bfloat16 and recomputation.
      timeout_seconds: The time limit for one compilation.

    Returns:
      The content of `plan.json`: `plans`, one for each TPU.

    Raises:
      UserError: For mistakes that the user can fix.
    """
    if price is not None and not 0 <= price < math.inf:
        raise UserError(f"--price={price} is not a price; give the cost of one chip for an hour")
    ensure(compiler_folder, make=make_environment)
    compiler = Compiler(compiler_folder, os.path.join(workdir, CACHE), timeout_seconds)
    steps: dict[int, tuple[RunPlan, step_program.Exported]] = {}
    plans = []
    for topology in topologies:
        replicas = topology.num_replicas
        if replicas not in steps:
            program = ReplicaProgram(replicas, unrolled=True)
            built = hollow(build, program, [])
            steps[replicas] = built, step_program.export(built, program)
            step_program.save(steps[replicas][1], os.path.join(workdir, f"{STEP}_{replicas}"))
        built, exported = steps[replicas]
        batch_size = built.global_batch_size // replicas
        print(
            f"{built.stage.name} on {topology.name} ({topology.num_chips} chips, {replicas} replicas), {batch_size} "
            f"images on each, {built.precision}",
            flush=True,
        )
        told = describe(built, topology, batch_size, compile_exported(exported, topology, compiler), price)
        print(step_table(told), flush=True)
        plans.append(told)
        write_json(os.path.join(workdir, PLAN), {"plans": plans})
        if not search:
            continue
        print("  largest batch on each replica:", flush=True)
        told["largest_batch_per_replica"] = {}
        for name, found in _search(build, built, topology, compiler, batch_size):
            told["largest_batch_per_replica"][name] = (
                {"failed": found}
                if isinstance(found, str)
                else {**found._asdict(), "tries": [attempt._asdict() for attempt in found.tries]}
            )
            print(search_line(name, found), flush=True)
            write_json(os.path.join(workdir, PLAN), {"plans": plans})
    print(f"written to {os.path.join(workdir, PLAN)}")
    return {"plans": plans}


def export_step(build: Build, *, workdir: str, batches: int, init_from: str | None = None) -> None:
    """--mode=export_step: writes one replica's step, the variables' initial values and the run's first batches."""
    if batches < 1:
        raise UserError(f"--batches is {batches}; use a positive number")
    program = ReplicaProgram(1)
    _name_anew()
    built = build(program, [])
    built.stage.start(init_from)
    exported = step_program.export(built, program)
    step_program.save(exported, workdir)
    step_program.save_state(exported, workdir)
    step_program.save_batches(built, exported, workdir, batches)
    size = magnitude(sum(variable.shape.num_elements() for variable in exported.variables.values()))
    print(
        f"{built.stage.name}: the step of {built.global_batch_size} images, {size} values of {len(exported.variables)} "
        f"variables and {batches} batch(es) are in {workdir}; JAX alone runs it: benchmarks/run_step_pjrt.py {workdir}"
    )
