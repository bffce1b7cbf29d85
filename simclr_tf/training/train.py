"""One training run, from its settings to `result.json`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable

from simclr_tf.analysis import collect, metrics
from simclr_tf.core import checks
from simclr_tf.core.errors import UserError
from simclr_tf.core.files import read_json, write_json, write_text
from simclr_tf.core.precision import resolve_precision
from simclr_tf.core.randomness import check_seed
from simclr_tf.core.text import duration, magnitude
from simclr_tf.core.tf import keras, tf
from simclr_tf.data.pipeline import Input
from simclr_tf.distribute.preemption import SigtermWatch
from simclr_tf.models.cost import count_parameters, flops_per_image
from simclr_tf.models.network import fingerprint
from simclr_tf.optim.optimizers import Optimizer
from simclr_tf.optim.schedules import WarmupCosine, train_steps
from simclr_tf.settings.run_context import RunContext
from simclr_tf.stages.stage import Stage
from simclr_tf.training import opened
from simclr_tf.training.loop import Loop
from simclr_tf.training.outer_loop import Outcome, check_same_step, meet, run_outer_loop
from simclr_tf.training.run_plan import RunPlan, batch_sizes
from simclr_tf.workdir import identity, records
from simclr_tf.workdir.checkpoints import Checkpoints, latest_step
from simclr_tf.workdir.lock import WorkdirLock

_OPTIONAL = ("steps", "steps_per_call", "checkpoint_every_steps", "eval_batch_size")
_COUNTS = ("global_batch_size", "accumulation_steps", "keep_checkpoints", "record_every_steps", *_OPTIONAL)


def _check_divides(name: str, batch_size: int, replicas: int, accumulation_steps: int = 1) -> None:
    if batch_size % replicas:
        raise UserError(
            f"{name} is {batch_size}, which does not divide over {replicas} replicas; use a multiple of {replicas}"
        )
    if batch_size // replicas % accumulation_steps:
        raise UserError(
            f"{name} is {batch_size} over {replicas} replica(s), which does not divide into train.accumulation_steps = "
            f"{accumulation_steps} parts; use a multiple of {replicas * accumulation_steps}"
        )


@dataclasses.dataclass(frozen=True)
class Training:
    """Trains a stage, or resumes its training.

    `build` only builds the run in memory, for planning and dry runs; `run` trains it to the end.

    Args:
      make_stage: function that makes the stage; takes `precision` and `data_dir`. Called in the strategy's scope.
      make_optimizer: function that makes the optimizer.
      make_schedule: function that makes the learning rate schedule.
      global_batch_size: examples per step, over all replicas.
      epochs: length of the run in epochs. Give either this or `steps`.
      steps: length of the run in steps.
      seed: seed of every random choice of the run.
      precision: "auto", "float32", "bfloat16" or "float64".
      jit_compile: whether to compile the step with XLA.
      steps_per_call: steps per call of the compiled loop; None finds a number that takes about a second.
      accumulation_steps: number of parts in which a step's gradient is computed, one after another, for stages whose
        losses allow it. The update is that of the whole batch, except that batch norm sees one part at a time.
      checkpoint_every_steps: steps between two checkpoints; None saves once per epoch, and at least every
        1,000 steps.
      keep_checkpoints: number of newest checkpoints to keep.
      record_every_steps: steps between two records of the metrics.
      eval_batch_size: batch size of the evaluation at the end; None takes the training batch size, 512 at most.
      board_images: number of images for TensorBoard's nearest neighbors and projector, drawn at the first, second,
        fourth, eighth and so on checkpoint, and at the last; 0 for no pictures.

    Raises:
      UserError: if a setting is wrong in a way that the user can fix; `build` and `run` likewise.
    """

    make_stage: Callable[..., Stage]
    make_optimizer: Callable[[], Optimizer]
    make_schedule: Callable[[], WarmupCosine]
    global_batch_size: int
    epochs: float | None = None
    steps: int | None = None
    seed: int = 0
    precision: str = "auto"
    jit_compile: bool = False
    steps_per_call: int | None = None
    accumulation_steps: int = 1
    checkpoint_every_steps: int | None = None
    keep_checkpoints: int = 3
    record_every_steps: int = 1
    eval_batch_size: int | None = None
    board_images: int = 200

    def __post_init__(self):
        """Checks the settings that need nothing built."""
        for name in _COUNTS:
            checks.whole(f"train.{name}", getattr(self, name), optional=name in _OPTIONAL)
        if (self.epochs is None) == (self.steps is None):
            raise UserError(
                f"train.epochs is {self.epochs!r} and train.steps {self.steps!r}; set one of them, and leave the "
                "other None"
            )
        checks.number("train.epochs", self.epochs, above=0, optional=True)
        checks.whole("train.board_images", self.board_images, least=0, hint="; 0 for no pictures")
        check_seed("train.seed", self.seed)

    def build(self, context: RunContext) -> RunPlan:
        """Builds the run in the strategy's scope and settles its numbers; takes no step and writes no file."""
        strategy, replicas = context.strategy, context.strategy.num_replicas_in_sync
        _check_divides("train.global_batch_size", self.global_batch_size, replicas)
        precision = resolve_precision(self.precision)
        keras.utils.set_random_seed(self.seed % 2**32)  # For the initial weights; Keras takes 32 bits.
        with strategy.scope():
            extra = {} if context.teacher is None else {"teacher": context.teacher}
            stage = self.make_stage(precision=precision, data_dir=context.data_dir, **extra)
            optimizer = self.make_optimizer()
            optimizer.build(stage.trained_variables, stage.network.undecayed_variables())
            schedule = self.make_schedule()
            inputs = stage.train_inputs()
            sizes = batch_sizes(inputs, self.global_batch_size)
            for name, size in sizes.items():
                _check_divides(f"the batch size of {name} images", size, replicas, self.accumulation_steps)
            stage.check_batch(self.global_batch_size, replicas)
            num_examples = next(iter(inputs.values())).source.num_examples
            length = {"num_examples": num_examples, "global_batch_size": self.global_batch_size}
            steps, length["epochs"] = self._steps_and_epochs(num_examples)
            schedule.configure(num_steps=steps, **length)
            loop = Loop(
                stage,
                optimizer,
                schedule,
                strategy,
                seed=self.seed,
                jit_compile=self.jit_compile,
                steps_per_call=self.steps_per_call,
                accumulation_steps=self.accumulation_steps,
                rows={name: size // replicas for name, size in sizes.items()},
            )
        context.settings.check_read()
        return RunPlan(
            stage,
            optimizer,
            loop,
            inputs,
            schedule=schedule,
            steps=steps,
            **length,
            seed=self.seed,
            precision=precision,
            replicas=replicas,
            checkpoint_every_steps=self.checkpoint_every_steps
            or max(1, min(1000, num_examples // self.global_batch_size)),
            record_every_steps=self.record_every_steps,
            board_images=self.board_images,
        )

    def _steps_and_epochs(self, num_examples: int) -> tuple[int, float]:
        if self.steps is None:
            return train_steps(num_examples, self.epochs, self.global_batch_size), self.epochs
        return self.steps, self.steps * self.global_batch_size / num_examples

    def run(self, context: RunContext) -> dict:
        """Trains to the end and evaluates, or only says what a dry run would do; returns what `result.json` holds."""
        plan = self.build(context)
        measured, overlaps = self._announce(context, plan)
        costs = plan.stage.costs(plan.global_batch_size)
        for name, cost in costs.items():
            context.say(f"  {name.replace('_', ' ')}: {magnitude(cost)}")
        if context.dry_run:
            flops = flops_per_image(plan.stage.network)
            size = f"{plan.stage.network.image_size} pixels"
            context.say(f"  encoder, forward, one image of {size}: {magnitude(flops)}FLOP")
            return {"steps": plan.steps, "flops_per_image": flops, **costs}
        with contextlib.ExitStack() as held:
            watch = held.enter_context(SigtermWatch())
            lock = held.enter_context(WorkdirLock(context.workdir)) if context.is_chief else None
            items = {**plan.stage.checkpoint_items(), "optimizer": plan.optimizer, "step": plan.loop.step}
            checkpoints = Checkpoints(context.workdir, items, keep=self.keep_checkpoints, chief=context.is_chief)
            _start(context, plan, checkpoints)
            done = os.path.join(context.workdir, records.RESULT)
            if plan.steps_taken >= plan.steps and tf.io.gfile.exists(done):
                context.say(f"  nothing to do: all {plan.steps} steps were taken before (see {done})")
                return read_json(done)
            frozen = fingerprint(plan.stage.frozen_variables)
            outcome = run_outer_loop(context, plan, checkpoints, watch, lock)
            if fingerprint(plan.stage.frozen_variables) != frozen:
                raise RuntimeError(f"{plan.stage.name} changed variables that were to stay frozen")
            result = {**_result(plan, outcome, costs), **self._evaluation(context, plan, measured, overlaps)}
            if context.is_chief:
                write_json(done, result)
            meet(context.strategy)
        scored = f", {metrics.told(result['evaluation'])} on {measured.source.name}" if measured else ""
        context.say(f"{plan.stage.name}: done in {duration(outcome.seconds)}{scored}; see {done}")
        return result

    def _announce(self, context: RunContext, plan: RunPlan) -> tuple[Input | None, dict]:
        """Says what the run will do.

        Returns:
          The evaluation examples, or None if nothing can be measured; and their overlap with the training data.
        """
        network, examples = plan.stage.network, next(iter(plan.inputs.values())).source
        measured = plan.stage.eval_input()
        context.say(
            f"{plan.stage.name}: {magnitude(plan.num_examples)} images of {examples.name}, {plan.steps} steps "
            f"of {plan.global_batch_size} ({plan.epochs:g} epochs), {plan.replicas} replica(s), {plan.precision}"
            + (f" (chosen from precision {self.precision!r})" if plan.precision != self.precision else "")
        )
        unlabelled = measured.source if measured and not measured.source.any_label() else None
        measured = None if unlabelled else measured
        tested = measured.source if measured else None
        overlaps = opened.tell_run(context, plan.stage, plan.inputs, tested, plan.global_batch_size)
        if unlabelled:
            context.say(
                f"  no image of {unlabelled.name} has a label: nothing is measured at the end (see Data.eval_split)"
            )
        for name, part in network.parts().items():
            context.say(f"  {name:<10} {magnitude(count_parameters(part)):>6} parameters")
        return measured, overlaps

    def _evaluation(self, context: RunContext, plan: RunPlan, measured: Input | None, overlaps: dict) -> dict:
        if measured is None:
            return {}
        outputs = collect.collect(
            context.strategy,
            measured,
            plan.stage.eval_batch,
            batch_size=self.eval_batch_size or min(512, plan.global_batch_size),
            max_bad_images=plan.stage.max_bad_images,
        )
        return {"evaluation": {**plan.stage.measure(outputs), **overlaps}}


def _result(plan: RunPlan, outcome: Outcome, costs: dict) -> dict:
    """Returns the content of `result.json`, except the evaluation."""
    images = plan.steps * plan.global_batch_size
    return {
        "stage": plan.stage.name,
        **plan.numbers("steps", "epochs", "global_batch_size", "seed", "precision", "replicas"),
        "encoder_parameters": count_parameters(plan.stage.network.encoder),
        **costs,
        "seconds": round(outcome.seconds, 1),
        "images_per_second": round(images / max(outcome.seconds, 1e-9), 1),
        "last_step": outcome.last,
        "versions": {"python": sys.version.split()[0], "tensorflow": tf.__version__},
    }


def _start(context: RunContext, plan: RunPlan, checkpoints: Checkpoints) -> None:
    """Resumes the run, initializes it from another, or starts from scratch; then writes what the run is."""
    names = ("global_batch_size", "steps", "epochs", "seed", "precision", "num_examples")
    mine = identity.identify(context.settings.values(), **plan.numbers(*names))
    before = identity.check(context.workdir, plan.stage.describe(), mine)
    path = checkpoints.resume()
    is_longer = False
    from_step = latest_step(context.init_from) if context.init_from is not None else None
    if path is None:
        mine["init_from_step"] = from_step
        table = plan.stage.start(context.init_from)
        for line in [f"  initialized from {context.init_from}", *table] if table else []:
            context.say(line)
    else:
        context.say(f"  resuming at step {plan.steps_taken} from {path}")
        is_longer = _lengthen(context, plan, mine, before, from_step)
    check_same_step(context.strategy, plan.steps_taken)
    if not context.is_chief:
        return
    records.remove_leftovers(context.workdir)
    is_named = tf.io.gfile.exists(os.path.join(context.workdir, identity.RUN))
    context.settings.save(context.workdir, is_new=path is None and not is_named)
    if is_longer:
        records.set_aside_result(context.workdir, before["steps"])
    if path is None or not is_named or is_longer:
        identity.save(context.workdir, mine)
    write_json(os.path.join(context.workdir, records.ARCHITECTURE), plan.stage.describe())
    for name, text in plan.stage.files().items():
        write_text(os.path.join(context.workdir, name), text)


def _lengthen(context: RunContext, plan: RunPlan, mine: dict, before: dict, from_step: int | None) -> bool:
    """Adds a resumed run's earlier lengths to its identity and schedule; returns whether the run is longer now."""
    is_longer = identity.lengthen(mine, before, plan.steps_taken)
    _check_origin(context, before, from_step, is_longer=is_longer)
    mine["init_from_step"] = before.get("init_from_step")
    for length in mine.get("earlier_lengths", ()):
        plan.schedule.shorter_until(length["until_step"], epochs=length["epochs"], num_steps=length["steps"])
    if is_longer:
        context.say(
            f"  the run grows from {before['steps']} steps to {plan.steps}: from step {plan.steps_taken} on its "
            f"learning rate is that of a run of {plan.steps}"
        )
    return is_longer


def _check_origin(context: RunContext, before: dict, from_step: int | None, *, is_longer: bool) -> None:
    """Says if `--init_from` has been trained further since this run started from it; then refuses a longer run."""
    then = before.get("init_from_step")
    if None in (then, from_step) or then == from_step:
        return
    told = f"this run started from step {then} of --init_from={context.init_from}, which is at step {from_step} now"
    if is_longer:
        raise UserError(f"{told}; use a new --workdir to start from there, or keep this run's length")
    context.say(f"  {told}; a new --workdir would start from there")
