"""One training run: builds a stage in its strategy's scope, finds where to start, loops, saves, measures."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from simclr_tf import checkpoint, evaluate, records, summary
from simclr_tf.data.bad_images import BadImages
from simclr_tf.data.pipeline import train_dataset
from simclr_tf.errors import UserError
from simclr_tf.loop import Loop
from simclr_tf.models.network import differences, resolve_precision
from simclr_tf.optim.groups import excluded_variables
from simclr_tf.optim.optimizers import Optimizer
from simclr_tf.optim.schedules import WarmupCosine, train_steps
from simclr_tf.progress import Progress, duration
from simclr_tf.stack import keras, tf
from simclr_tf.stages.base import Input, Stage


class Place(NamedTuple):
    """Where and how a run works: what the flags say.

    Attributes:
      workdir: folder of the run.
      strategy: its devices.
      data_dir: where data sets lie, or None.
      init_from: workdir to take weights from, or None.
      teacher: workdir or SavedModel to imitate, or None.
      dry_run: build and report only.
      built: called once all is constructed, before anything is written.
      stepped: called after the first step.
    """

    workdir: str
    strategy: tf.distribute.Strategy
    data_dir: str | None = None
    init_from: str | None = None
    teacher: str | None = None
    dry_run: bool = False
    built: Callable[[], None] = lambda: None
    stepped: Callable[[], None] = lambda: None


def _check_positive(**values) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"train.{name} is {value!r}; use a whole number of at least 1")


def _check_divides(name: str, batch_size: int, replicas: int) -> None:
    if batch_size % replicas:
        raise UserError(
            f"{name} is {batch_size} and does not divide over {replicas} replicas; use a multiple of {replicas}"
        )


def fingerprint(variables: Iterable[tf.Variable]) -> str:
    """Returns a hash of variables' values, in their order."""
    digest = hashlib.sha256()
    for variable in variables:
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()


def train(
    place: Place,
    make_stage: Callable[..., Stage],
    make_optimizer: Callable[[], Optimizer],
    make_schedule: Callable[[], WarmupCosine],
    global_batch_size: int,
    epochs: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    precision: str = "auto",
    jit_compile: bool = False,
    steps_per_call: int | None = None,
    checkpoint_every_steps: int | None = None,
    keep_checkpoints: int = 3,
    record_every_steps: int = 1,
    eval_batch_size: int | None = None,
) -> dict:
    """Trains a stage, or goes on with it where it was left.

    Args:
      place: where and how.
      make_stage: takes `precision` and `data_dir`; called inside the strategy's scope.
      make_optimizer: makes the optimizer.
      make_schedule: makes the learning rate schedule.
      global_batch_size: examples of a step, over all replicas.
      epochs: length of the run; or
      steps: the same as a number of steps.
      seed: decides every random choice of the run.
      precision: "auto", "float32", "bfloat16" or "float64".
      jit_compile: compile the step with XLA.
      steps_per_call: steps between two looks of the host; None finds a number.
      checkpoint_every_steps: None saves about once an epoch.
      keep_checkpoints: how many of the newest to keep.
      record_every_steps: of the metrics.
      eval_batch_size: for the measurement at the end; None takes the training batch, 512 at most.

    Returns:
      What `result.json` says.

    Raises:
      UserError: for what the user can put right.
    """
    _check_positive(
        global_batch_size=global_batch_size,
        keep_checkpoints=keep_checkpoints,
        record_every_steps=record_every_steps,
        **{
            name: value
            for name, value in {
                "steps": steps,
                "steps_per_call": steps_per_call,
                "checkpoint_every_steps": checkpoint_every_steps,
                "eval_batch_size": eval_batch_size,
            }.items()
            if value is not None
        },
    )
    if (epochs is None) == (steps is None):
        raise UserError(f"train.epochs is {epochs!r} and train.steps {steps!r}; give one of them, and None to the other")
    if epochs is not None and (not isinstance(epochs, (int, float)) or not epochs > 0):
        raise UserError(f"train.epochs is {epochs!r}; use a positive number")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise UserError(f"train.seed is {seed!r}; use a whole number")
    strategy, replicas = place.strategy, place.strategy.num_replicas_in_sync
    _check_divides("train.global_batch_size", global_batch_size, replicas)
    chosen = resolve_precision(precision)
    keras.utils.set_random_seed(seed % 2**32)

    with strategy.scope():
        extra = {} if place.teacher is None else {"teacher": place.teacher}
        stage = make_stage(precision=chosen, data_dir=place.data_dir, **extra)
        optimizer = make_optimizer()
        optimizer.build(stage.trained_variables, excluded_variables(stage.network.parts().values()))
        schedule = make_schedule()
        inputs = stage.train_inputs()
        examples = next(iter(inputs.values()))
        for name, stream in inputs.items():
            _check_divides(f"the batch size of {name} images", stream.batch_size or global_batch_size, replicas)
        num_examples = examples.source.num_examples
        if steps is None:
            steps = train_steps(num_examples, epochs, global_batch_size)
        else:
            epochs = steps * global_batch_size / num_examples
        schedule.configure(
            num_examples=num_examples, epochs=epochs, global_batch_size=global_batch_size, num_steps=steps
        )
        loop = Loop(
            stage,
            optimizer,
            schedule,
            strategy,
            seed=seed,
            jit_compile=jit_compile,
            steps_per_call=steps_per_call,
        )
    measured = stage.eval_input()
    place.built()
    print(
        f"{stage.name}: {summary.magnitude(num_examples)} images of {examples.source.name}, {steps} steps of "
        f"{global_batch_size} ({epochs:g} epochs), {replicas} replica(s), {chosen}"
        + (f" (chosen from precision {precision!r})" if chosen != precision else "")
    )
    for name, part in stage.network.parts().items():
        print(f"  {name:<10} {summary.magnitude(summary.count_parameters(part)):>6} parameters")
    if place.dry_run:
        print(f"  encoder, forward, one image of {stage.network.image_size} pixels: "
              f"{summary.magnitude(summary.flops_per_image(stage.network))}FLOP")
        return {"steps": steps, "flops_per_image": summary.flops_per_image(stage.network)}

    _check_workdir(place.workdir, stage.describe())
    items = {**stage.checkpoint_items(), "optimizer": optimizer, "step": loop.step}
    checkpoints = checkpoint.Checkpoints(place.workdir, items, keep=keep_checkpoints)
    path = checkpoints.resume()
    if path is not None:
        print(f"  resuming at step {int(loop.step)} from {path}")
    elif place.init_from is not None:
        required, optional = stage.initial_parts()
        table = checkpoint.initialize(stage.network, place.init_from, required=required, optional=optional)
        print(f"  initialized from {place.init_from}\n{table}")
    if path is None:
        stage.after_initialize()
    first_step = int(loop.step)
    if first_step >= steps and tf.io.gfile.exists(os.path.join(place.workdir, records.RESULT)):
        print(f"  nothing to do: all {steps} steps were taken before (see {place.workdir}/{records.RESULT})")
        return records.read_json(os.path.join(place.workdir, records.RESULT))

    frozen = fingerprint(stage.frozen_variables)
    records.write_json(os.path.join(place.workdir, records.ARCHITECTURE), stage.describe())
    for name, text in stage.files().items():
        records.write_text(os.path.join(place.workdir, name), text)
    started = time.time()
    last = _loop(
        place, stage, loop, checkpoints, inputs,
        steps=steps, global_batch_size=global_batch_size, seed=seed,
        checkpoint_every_steps=checkpoint_every_steps or max(1, min(1000, num_examples // global_batch_size)),
        record_every_steps=record_every_steps,
    )
    if fingerprint(stage.frozen_variables) != frozen:
        raise RuntimeError(f"{stage.name} changed variables that were to stay frozen")
    seconds = time.time() - started

    result = {
        "stage": stage.name,
        "steps": steps,
        "epochs": epochs,
        "global_batch_size": global_batch_size,
        "seed": seed,
        "precision": chosen,
        "replicas": replicas,
        "encoder_parameters": summary.count_parameters(stage.network.encoder),
        "seconds": round(seconds, 1),
        "images_per_second": round((steps - first_step) * global_batch_size / max(seconds, 1e-9), 1),
        "last_step": last,
        "versions": {"python": sys.version.split()[0], "tensorflow": tf.__version__},
    }
    if measured is not None:
        outputs = evaluate.collect(
            strategy, measured, stage.eval_batch, batch_size=eval_batch_size or min(512, global_batch_size),
        )
        result["evaluation"] = stage.measure(outputs)
    records.write_json(os.path.join(place.workdir, records.RESULT), result)
    top_1 = f", top-1 {100 * result['evaluation']['top_1']:.2f}% on {measured.source.name}" if measured else ""
    print(f"{stage.name}: done in {duration(seconds)}{top_1}; see {place.workdir}/{records.RESULT}")
    return result


def _check_workdir(workdir: str, description: dict) -> None:
    """Refuses to go on with a run of another stage or network."""
    path = os.path.join(workdir, records.ARCHITECTURE)
    if checkpoint.newest(workdir) is None or not tf.io.gfile.exists(path):
        return
    there = checkpoint.read_architecture(workdir, "--workdir")
    unlike = differences({"stage": there.get("stage")}, {"stage": description["stage"]})
    for name in ("encoder", "head"):
        sides = [side["network"].get(name) or {} for side in (there, description)]
        unlike += [f"{name}'s {line}" for line in differences(*sides)]
    for name in ("num_classes", "classifier_layer"):
        unlike += differences(*({name: side["network"].get(name)} for side in (there, description)))
    if unlike:
        raise UserError(f"--workdir={workdir} holds another run: {'; '.join(unlike)}; use a new --workdir")


def _loop(
    place: Place,
    stage: Stage,
    loop: Loop,
    checkpoints: checkpoint.Checkpoints,
    inputs: dict[str, Input],
    *,
    steps: int,
    global_batch_size: int,
    seed: int,
    checkpoint_every_steps: int,
    record_every_steps: int,
) -> dict[str, float]:
    """Trains to the end and returns the last step's record."""
    first_step = int(loop.step)
    replicas = place.strategy.num_replicas_in_sync
    bad_images = {
        name: BadImages(stage.max_bad_images, stream.source) for name, stream in inputs.items() if stream.source.may_fail
    }

    def shard(context: tf.distribute.InputContext) -> tf.data.Dataset:
        streams = {}
        for name, stream in inputs.items():
            batch_size = stream.batch_size or global_batch_size
            streams[name] = train_dataset(
                stream.source,
                stream.prepare,
                global_batch_size=batch_size,
                per_replica_batch_size=batch_size // replicas,
                seed=seed,
                first_step=first_step,
                num_steps=steps - first_step,
                shard_index=context.input_pipeline_id,
                num_shards=context.num_input_pipelines,
                bad_images=bad_images.get(name),
            )
        return tf.data.Dataset.zip(streams)

    iterator = iter(place.strategy.distribute_datasets_from_function(shard))
    log = records.Records(
        place.workdir,
        first_step=first_step,
        every_steps=record_every_steps,
        constants=stage.constants(global_batch_size),
    )
    progress = Progress(stage.name, total_steps=steps, first_step=first_step, images_per_step=global_batch_size)
    last: dict[str, float] = {}
    try:
        while int(loop.step) < steps:
            now = int(loop.step)
            stop = min(steps, (now // checkpoint_every_steps + 1) * checkpoint_every_steps)
            for chunk in loop.run(iterator, stop):
                if chunk.first_step == first_step:
                    place.stepped()
                throughput = {
                    "images_per_second": len(chunk.records) * global_batch_size / max(chunk.seconds, 1e-9),
                    "waiting_for_data": chunk.waiting_seconds / max(chunk.seconds, 1e-9),
                }
                if bad_images:
                    throughput["bad_images"] = sum(bad.count for bad in bad_images.values())
                log.add(chunk.first_step, chunk.records, throughput)
                last = chunk.records[-1]
                progress.update(
                    len(chunk.records),
                    seconds=chunk.seconds,
                    waiting_seconds=chunk.waiting_seconds,
                    loss=last["loss"],
                )
            log.flush()
            checkpoints.save(int(loop.step))
    except tf.errors.OpError:
        for bad in bad_images.values():
            bad.check()
        raise
    finally:
        progress.close()
        log.close()
    for bad in bad_images.values():
        if bad.count:
            print(f"  {bad.count} unreadable image(s) were skipped: {', '.join(sorted(bad.names)[:5])}")
    return last
