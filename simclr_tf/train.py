"""One training run: builds a stage in its strategy's scope, finds where to start, loops, saves, measures."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from simclr_tf import checkpoint, cluster, evaluate, identity, metrics, opened, records, summary
from simclr_tf.course import Numbers, check_same_step, meet, take_course
from simclr_tf.errors import UserError
from simclr_tf.lock import WorkdirLock
from simclr_tf.loop import Loop
from simclr_tf.optim.groups import excluded_variables
from simclr_tf.optim.optimizers import Optimizer
from simclr_tf.optim.schedules import WarmupCosine, train_steps
from simclr_tf.place import Built, Place
from simclr_tf.precision import resolve_precision
from simclr_tf.preemption import Watch
from simclr_tf.progress import duration
from simclr_tf.randomness import check_seed
from simclr_tf.stack import keras, tf
from simclr_tf.stages.base import Stage


def _check_positive(**values) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"train.{name} is {value!r}; use a whole number of at least 1")


def _check_divides(name: str, batch_size: int, replicas: int, accumulation_steps: int = 1) -> None:
    if batch_size % replicas:
        raise UserError(
            f"{name} is {batch_size} and does not divide over {replicas} replicas; use a multiple of {replicas}"
        )
    if batch_size // replicas % accumulation_steps:
        raise UserError(
            f"{name} is {batch_size} over {replicas} replica(s) and does not divide into train.accumulation_steps = "
            f"{accumulation_steps} parts; use a multiple of {replicas * accumulation_steps}"
        )


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
    accumulation_steps: int = 1,
    checkpoint_every_steps: int | None = None,
    keep_checkpoints: int = 3,
    record_every_steps: int = 1,
    eval_batch_size: int | None = None,
    board_images: int = 200,
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
      accumulation_steps: parts in which a step's gradient is computed, one after another, for stages whose losses allow
        it; the update is that of the whole batch, less what batch norm sees of it.
      checkpoint_every_steps: None saves about once an epoch.
      keep_checkpoints: how many of the newest to keep.
      record_every_steps: of the metrics.
      eval_batch_size: for the measurement at the end; None takes the training batch, 512 at most.
      board_images: how many images TensorBoard shows neighbours and the projector of, at the first, second, fourth,
        eighth and so on checkpoint, and the last; 0 for no pictures.

    Returns:
      What `result.json` says.

    Raises:
      UserError: for what the user can put right.
    """
    _check_positive(
        global_batch_size=global_batch_size,
        accumulation_steps=accumulation_steps,
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
        raise UserError(
            f"train.epochs is {epochs!r} and train.steps {steps!r}; give one of them, and None to the other"
        )
    if epochs is not None and (not isinstance(epochs, (int, float)) or not epochs > 0):
        raise UserError(f"train.epochs is {epochs!r}; use a positive number")
    if not isinstance(board_images, int) or isinstance(board_images, bool) or board_images < 0:
        raise UserError(f"train.board_images is {board_images!r}; use a whole number, 0 for no pictures")
    check_seed("train.seed", seed)
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
            size = stream.batch_size or global_batch_size
            _check_divides(f"the batch size of {name} images", size, replicas, accumulation_steps)
        stage.check_batch(global_batch_size, replicas)
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
            accumulation_steps=accumulation_steps,
            rows={name: (stream.batch_size or global_batch_size) // replicas for name, stream in inputs.items()},
        )
    if place.instead is not None:
        place.built()
        return place.instead(
            Built(
                stage,
                optimizer,
                loop,
                inputs,
                global_batch_size=global_batch_size,
                num_examples=num_examples,
                steps=steps,
                epochs=epochs,
                seed=seed,
                precision=chosen,
            )
        )
    measured = stage.eval_input()
    unlabelled = measured.source if measured and not measured.source.any_label() else None
    measured = None if unlabelled else measured
    place.built()
    place.say(
        f"{stage.name}: {summary.magnitude(num_examples)} images of {examples.source.name}, {steps} steps of "
        f"{global_batch_size} ({epochs:g} epochs), {replicas} replica(s), {chosen}"
        + (f" (chosen from precision {precision!r})" if chosen != precision else "")
    )
    overlaps = opened.tell_run(place, stage, inputs, measured.source if measured else None, global_batch_size)
    if unlabelled:
        place.say(f"  none of {unlabelled.name} has a label: nothing is measured in the end (see Data.eval_split)")
    for name, part in stage.network.parts().items():
        place.say(f"  {name:<10} {summary.magnitude(summary.count_parameters(part)):>6} parameters")
    costs = stage.costs(global_batch_size)
    for name, cost in costs.items():
        place.say(f"  {name.replace('_', ' ')}: {summary.magnitude(cost)}")
    if place.dry_run:
        place.say(
            f"  encoder, forward, one image of {stage.network.image_size} pixels: "
            f"{summary.magnitude(summary.flops_per_image(stage.network))}FLOP"
        )
        return {"steps": steps, "flops_per_image": summary.flops_per_image(stage.network), **costs}

    numbers = Numbers(
        steps=steps,
        epochs=epochs,
        global_batch_size=global_batch_size,
        seed=seed,
        precision=chosen,
        num_examples=num_examples,
        checkpoint_every_steps=checkpoint_every_steps or max(1, min(1000, num_examples // global_batch_size)),
        record_every_steps=record_every_steps,
        board_images=board_images,
        replicas=replicas,
    )
    role = cluster.role(strategy)
    with contextlib.ExitStack() as held:
        watch = held.enter_context(Watch())
        lock = held.enter_context(WorkdirLock(place.workdir)) if role.is_chief else None
        checkpoints = checkpoint.Checkpoints(
            place.workdir,
            {**stage.checkpoint_items(), "optimizer": optimizer, "step": loop.step},
            keep=keep_checkpoints,
            chief=role.is_chief,
        )
        _start(place, stage, loop, checkpoints, schedule, numbers)
        done = os.path.join(place.workdir, records.RESULT)
        if int(loop.step.numpy()) >= steps and tf.io.gfile.exists(done):
            place.say(f"  nothing to do: all {steps} steps were taken before (see {done})")
            return records.read_json(done)
        frozen = checkpoint.fingerprint(stage.frozen_variables)
        course = take_course(place, stage, loop, checkpoints, inputs, numbers, watch, lock)
        if checkpoint.fingerprint(stage.frozen_variables) != frozen:
            raise RuntimeError(f"{stage.name} changed variables that were to stay frozen")
        outputs = None
        if measured is not None:
            outputs = evaluate.collect(
                strategy,
                measured,
                stage.eval_batch,
                batch_size=eval_batch_size or min(512, global_batch_size),
                max_bad_images=stage.max_bad_images,
            )
        result = {
            "stage": stage.name,
            "steps": steps,
            "epochs": epochs,
            "global_batch_size": global_batch_size,
            "seed": seed,
            "precision": chosen,
            "replicas": replicas,
            "encoder_parameters": summary.count_parameters(stage.network.encoder),
            **costs,
            "seconds": round(course.seconds, 1),
            "images_per_second": round(steps * global_batch_size / max(course.seconds, 1e-9), 1),
            "last_step": course.last,
            "versions": {"python": sys.version.split()[0], "tensorflow": tf.__version__},
        }
        if outputs is not None:
            result["evaluation"] = {**stage.measure(outputs), **overlaps}
        if role.is_chief:
            records.write_json(os.path.join(place.workdir, records.RESULT), result)
        meet(strategy)
    scored = f", {metrics.told(result['evaluation'])} on {measured.source.name}" if measured else ""
    place.say(f"{stage.name}: done in {duration(course.seconds)}{scored}; see {place.workdir}/{records.RESULT}")
    return result


def _start(
    place: Place,
    stage: Stage,
    loop: Loop,
    checkpoints: checkpoint.Checkpoints,
    schedule: WarmupCosine,
    numbers: Numbers,
) -> None:
    """Resumes, else initializes from another run, else leaves all as it is; then writes what the run is."""
    chosen = {
        "global_batch_size": numbers.global_batch_size,
        "steps": numbers.steps,
        "epochs": numbers.epochs,
        "seed": numbers.seed,
        "precision": numbers.precision,
        "num_examples": numbers.num_examples,
    }
    mine = identity.identify(place.settings(), **chosen)
    before = identity.check(place.workdir, stage.describe(), mine)
    path = checkpoints.resume()
    is_longer = False
    from_step = checkpoint.latest_step(place.init_from) if place.init_from is not None else None
    if path is None:
        mine["init_from_step"] = from_step
        table = stage.start(place.init_from)
        if table:
            place.say(f"  initialized from {place.init_from}")
        for line in table:
            place.say(line)
    else:
        step = int(loop.step.numpy())
        place.say(f"  resuming at step {step} from {path}")
        is_longer = identity.lengthen(mine, before, step)
        _check_origin(place, before, from_step, is_longer=is_longer)
        mine["init_from_step"] = before.get("init_from_step")
        for length in mine.get("earlier_lengths", ()):
            schedule.shorter_until(length["until_step"], epochs=length["epochs"], num_steps=length["steps"])
        if is_longer:
            place.say(
                f"  the run grows from {before['steps']} steps to {numbers.steps}: from step {step} on its learning "
                f"rate is that of a run of {numbers.steps}"
            )
    check_same_step(place.strategy, int(loop.step.numpy()))
    if not cluster.role(place.strategy).is_chief:
        return
    records.remove_leftovers(place.workdir)
    is_named = tf.io.gfile.exists(os.path.join(place.workdir, identity.RUN))
    place.accepted(path is None and not is_named)
    if is_longer:
        records.set_aside_result(place.workdir, before["steps"])
    if path is None or not is_named or is_longer:
        identity.save(place.workdir, mine)
    records.write_json(os.path.join(place.workdir, records.ARCHITECTURE), stage.describe())
    for name, text in stage.files().items():
        records.write_text(os.path.join(place.workdir, name), text)


def _check_origin(place: Place, before: dict, from_step: int | None, *, is_longer: bool) -> None:
    """Tells where `--init_from` has been trained further since a run started from it; refuses to lengthen that run."""
    then = before.get("init_from_step")
    if None in (then, from_step) or then == from_step:
        return
    told = f"this run started from step {then} of --init_from={place.init_from}, which is at step {from_step} by now"
    if is_longer:
        raise UserError(
            f"{told}; use a new --workdir to start from there, or the run's own length to leave it as it is"
        )
    place.say(f"  {told}; a new --workdir would start from there")
