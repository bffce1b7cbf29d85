"""The outer loop of a run: writes records, checkpoints and pictures between steps, until the last step or SIGTERM."""

from __future__ import annotations

import contextlib
import math
import time
from typing import NamedTuple

from simclr_tf.core.errors import StartAgain, UserError, first_line
from simclr_tf.core.files import PASSING
from simclr_tf.core.progress import Progress
from simclr_tf.core.tf import tf
from simclr_tf.data.bad_images import bad_image_counter
from simclr_tf.data.pipeline import train_dataset
from simclr_tf.distribute import cluster, collectives
from simclr_tf.distribute.preemption import SigtermWatch
from simclr_tf.settings.run_context import RunContext
from simclr_tf.training.loop import Chunk
from simclr_tf.training.pictures import Pictures, is_worth_a_look
from simclr_tf.training.run_plan import RunPlan
from simclr_tf.workdir import records
from simclr_tf.workdir.checkpoints import Checkpoints
from simclr_tf.workdir.lock import WorkdirLock

# Errors of file systems whose files vanish during a run.
_LOST = (
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.DeadlineExceededError,
)


def check_same_step(strategy: tf.distribute.Strategy, step: int) -> None:
    """Raises UserError if the workers found checkpoints of different steps."""
    if cluster.role(strategy).count == 1:
        return

    @tf.function
    def gathered() -> tf.Tensor:
        steps = strategy.run(lambda: collectives.concat(tf.constant([step], tf.int64)))
        return strategy.experimental_local_results(steps)[0]

    steps = gathered().numpy().tolist()
    if len(set(steps)) > 1:
        raise UserError(
            f"the workers found checkpoints of different steps ({', '.join(map(str, steps))}); --workdir must be one "
            "folder that all of them see, on a shared file system or in a bucket"
        )


def meet(strategy: tf.distribute.Strategy) -> None:
    """Waits for all processes, so that none exits before the others have written their files."""
    with contextlib.suppress(tf.errors.OpError):  # Another process may have come first and exited.
        check_same_step(strategy, 0)


class Outcome(NamedTuple):
    """Outcome of a run: its last record, and its seconds of training over all interruptions."""

    last: dict[str, float]
    seconds: float


def run_outer_loop(
    context: RunContext, plan: RunPlan, checkpoints: Checkpoints, watch: SigtermWatch, lock: WorkdirLock | None
) -> Outcome:
    """Trains to the end.

    Args:
      context: workdir, strategy and settings of the run.
      plan: plan of the run, at the step where it starts or resumes.
      checkpoints: checkpoints to save to.
      watch: watch that notices SIGTERM.
      lock: lock on the workdir; None in processes that do not write there.

    Raises:
      StartAgain: after SIGTERM, once the step is finished and saved.
      UserError: if the data can no longer be read, a loss is not finite, or the disk is full.
    """
    outer = _OuterLoop(context, plan, checkpoints, watch, lock)
    try:
        with watch.finishing():
            while plan.steps_taken < plan.steps:
                outer.go_on_to_checkpoint()
        outcome = outer.outcome()
    except tf.errors.OpError as error:
        outer.refuse(error)
        raise
    finally:
        outer.close()
    outer.tell_bad_images()
    if watch.asked:
        raise StartAgain("stopped by SIGTERM after the last step; give the same command again to evaluate")
    return outcome


class _OuterLoop:
    """State of one process while it trains: input, records, progress bar and pictures."""

    def __init__(
        self,
        context: RunContext,
        plan: RunPlan,
        checkpoints: Checkpoints,
        watch: SigtermWatch,
        lock: WorkdirLock | None,
    ):
        self._context, self._plan, self._checkpoints, self._watch, self._lock = context, plan, checkpoints, watch, lock
        self._first_step = plan.steps_taken
        self._is_alone = cluster.role(context.strategy).count == 1
        elsewhere = cluster.reads_elsewhere(context.strategy)
        counters = {
            name: bad_image_counter(plan.stage.max_bad_images, stream.source, elsewhere=elsewhere)
            for name, stream in plan.inputs.items()
        }
        self._bad_images = {name: counter for name, counter in counters.items() if counter is not None}
        self._iterator = iter(context.strategy.distribute_datasets_from_function(self._shard))
        self._log = self._pictures = None
        if context.is_chief:
            self._log = records.Records(
                context.workdir,
                first_step=self._first_step,
                num_steps=plan.steps,
                every_steps=plan.record_every_steps,
                constants=plan.stage.constants(plan.global_batch_size),
            )
        self._progress = Progress(
            plan.stage.name,
            total_steps=plan.steps,
            first_step=self._first_step,
            images_per_step=plan.global_batch_size,
            silent=not context.is_chief,
        )
        self._last: dict[str, float] = {}
        self._clock = time.monotonic()

    def _shard(self, context: tf.distribute.InputContext) -> tf.data.Dataset:
        """Makes one input pipeline, which zips all streams."""
        plan, streams = self._plan, {}
        for name, batch_size in plan.batch_sizes.items():
            streams[name] = train_dataset(
                plan.inputs[name].source,
                plan.inputs[name].prepare,
                global_batch_size=batch_size,
                per_replica_batch_size=batch_size // plan.replicas,
                seed=plan.seed,
                first_step=self._first_step,
                num_steps=plan.steps - self._first_step,
                shard_index=context.input_pipeline_id,
                num_shards=context.num_input_pipelines,
                bad_images=self._bad_images.get(name),
                stream_name=name,
            )
        return tf.data.Dataset.zip(streams)

    def go_on_to_checkpoint(self) -> None:
        """Trains to the next checkpoint and saves it; after SIGTERM, saves at the end of the current step."""
        plan, every = self._plan, self._plan.checkpoint_every_steps
        stopped = self._take_steps(min(plan.steps, (plan.steps_taken // every + 1) * every))
        if self._log is not None:
            self._lock.check()
            self._log.flush()
        plan.loop.check_weights()
        taken = plan.steps_taken
        self._checkpoints.save(taken)
        if self._pictures is not None and not stopped and is_worth_a_look(taken, plan.steps, every):
            self._pictures.draw(taken)
        if stopped and taken < plan.steps:
            meet(self._context.strategy)
            raise StartAgain(
                f"stopped by SIGTERM; saved at step {taken} of {plan.steps}: the same command goes on there"
            )

    def _take_steps(self, last_step: int) -> bool:
        """Takes steps up to `last_step`; returns whether SIGTERM stopped it early."""
        for chunk in self._plan.loop.run(self._iterator, last_step, wants_to_stop=lambda: self._watch.asked):
            self._last = chunk.records[-1]
            self._record(chunk)
            # Several processes must stop together: a step or a checkpoint needs all of them.
            stopped = chunk.asked_to_stop or (self._is_alone and self._watch.asked)
            # If the loss is not finite, the loop raises an error next, and nothing must be saved.
            if stopped and math.isfinite(self._last["loss"]):
                return True
            self._start_pictures()
        return False

    def _record(self, chunk: Chunk) -> None:
        if self._log is not None:
            if chunk.first_step == self._first_step:
                # gin knows all values in use only after the first step.
                self._context.settings.save_operative(self._context.workdir)
            self._clock, seconds = time.monotonic(), time.monotonic() - self._clock
            images = len(chunk.records) * self._plan.global_batch_size
            throughput = {
                "images_per_second": images / max(chunk.seconds, 1e-9),
                "waiting_for_data": chunk.waiting_seconds / max(chunk.seconds, 1e-9),
                "seconds": seconds,
            }
            if self._bad_images:
                throughput["bad_images"] = sum(bad.count for bad in self._bad_images.values())
            self._log.add(chunk.first_step, chunk.records, throughput)
        self._progress.update(
            len(chunk.records), seconds=chunk.seconds, waiting_seconds=chunk.waiting_seconds, loss=self._last["loss"]
        )

    def _start_pictures(self) -> None:
        """Prepares TensorBoard's pictures; only after the first step, which is what users wait for."""
        context, plan = self._context, self._plan
        if self._log is None or self._pictures is not None or not plan.board_images:
            return
        self._pictures = Pictures(
            context.workdir,
            plan.stage.network,
            plan.stage.describe(),
            num_images=plan.board_images,
            data_dir=context.data_dir,
        )
        if self._first_step == 0:
            self._pictures.show_augmentations(plan.seed, plan.stage.first_stream)
        self._clock = time.monotonic()

    def outcome(self) -> Outcome:
        """Returns the outcome; call this after the last step."""
        if self._log is None:
            return Outcome(self._last, 0.0)
        return Outcome(self._last or self._log.last(), self._log.total("seconds"))

    def refuse(self, error: tf.errors.OpError) -> None:
        """Raises a one-line error if images cannot be read, or no longer; returns for any other error."""
        for bad in self._bad_images.values():
            bad.check()
        lost_host = cluster.may_lose_hosts(self._context.strategy) and isinstance(error, cluster.LOST_HOST)
        if not self._is_alone or not isinstance(error, _LOST) or lost_host:
            return
        sources = [stream.source for stream in self._plan.inputs.values()]
        again = any(source.remote for source in sources) and isinstance(error, PASSING)
        raise (StartAgain if again else UserError)(
            f"{', '.join(source.name for source in sources)} can no longer be read ({first_line(error)}); restore "
            "the access, and give the same command again: it goes on from the last checkpoint"
        ) from None

    def tell_bad_images(self) -> None:
        """Says how many images were skipped."""
        for bad in self._bad_images.values():
            if bad.count:
                names = ", ".join(sorted(bad.names)[:5])
                self._context.say(f"  {bad.count} unreadable image(s) were skipped: {names}")

    def close(self) -> None:
        """Closes the files; writes nothing to them if another run took over the workdir."""
        self._progress.close()
        if self._log is not None:
            self._log.close(write=not self._lock.lost)
        if self._pictures is not None:
            self._pictures.close()
