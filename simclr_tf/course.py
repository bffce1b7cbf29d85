"""The course of a run: batches in, records and checkpoints out, until the last step or SIGTERM."""

from __future__ import annotations

import contextlib
import math
import time
from typing import NamedTuple

from simclr_tf import checkpoint, cluster, collectives, records
from simclr_tf.board import Board, is_worth_a_look
from simclr_tf.data.bad_images import bad_image_counter
from simclr_tf.data.pipeline import train_dataset
from simclr_tf.errors import StartAgain, UserError, first_line
from simclr_tf.lock import WorkdirLock
from simclr_tf.loop import Loop
from simclr_tf.place import Place
from simclr_tf.preemption import Watch
from simclr_tf.progress import Progress
from simclr_tf.stack import tf
from simclr_tf.stages.base import Input, Stage

# What file systems answer when files vanish under a run.
_LOST = (
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.DeadlineExceededError,
)


class Numbers(NamedTuple):
    """The run in numbers."""

    steps: int
    epochs: float
    global_batch_size: int
    seed: int
    precision: str
    num_examples: int
    checkpoint_every_steps: int
    record_every_steps: int
    board_images: int
    replicas: int


def check_same_step(strategy: tf.distribute.Strategy, step: int) -> None:
    """Refuses to start where workers found different checkpoints."""
    if cluster.role(strategy).count == 1:
        return

    @tf.function
    def gathered() -> tf.Tensor:
        steps = strategy.run(lambda: collectives.concat(tf.constant([step], tf.int64)))
        return strategy.experimental_local_results(steps)[0]

    steps = gathered().numpy().tolist()
    if len(set(steps)) > 1:
        raise UserError(
            f"the workers found checkpoints of different steps ({', '.join(map(str, steps))}); --workdir has to be one "
            "folder that all of them see, on a shared file system or in a bucket"
        )


def meet(strategy: tf.distribute.Strategy) -> None:
    """Lets no process leave before the others have written what they write."""
    with contextlib.suppress(tf.errors.OpError):  # Of one that was here first and is gone now.
        check_same_step(strategy, 0)


class Course(NamedTuple):
    """How a run went: its last record, and seconds over all its interruptions."""

    last: dict[str, float]
    seconds: float


def _board(place: Place, stage: Stage, numbers: Numbers, *, show: bool) -> Board:
    """Makes what draws for TensorBoard, and has it show the first images where it is to."""
    board = Board(
        place.workdir, stage.network, stage.describe(), num_images=numbers.board_images, data_dir=place.data_dir
    )
    if show:
        board.show_augmentations(numbers.seed, stage.first_stream)
    return board


def take_course(
    place: Place,
    stage: Stage,
    loop: Loop,
    checkpoints: checkpoint.Checkpoints,
    inputs: dict[str, Input],
    numbers: Numbers,
    watch: Watch,
    lock: WorkdirLock | None,
) -> Course:
    """Trains to the end.

    Raises:
      StartAgain: after SIGTERM, when the step is finished and saved.
    """
    first_step = int(loop.step.numpy())
    role = cluster.role(place.strategy)
    elsewhere = cluster.reads_elsewhere(place.strategy)
    counters = {
        name: bad_image_counter(stage.max_bad_images, stream.source, elsewhere=elsewhere)
        for name, stream in inputs.items()
    }
    bad_images = {name: counter for name, counter in counters.items() if counter is not None}

    def shard(context: tf.distribute.InputContext) -> tf.data.Dataset:
        streams = {}
        for name, stream in inputs.items():
            batch_size = stream.batch_size or numbers.global_batch_size
            streams[name] = train_dataset(
                stream.source,
                stream.prepare,
                global_batch_size=batch_size,
                per_replica_batch_size=batch_size // numbers.replicas,
                seed=numbers.seed,
                first_step=first_step,
                num_steps=numbers.steps - first_step,
                shard_index=context.input_pipeline_id,
                num_shards=context.num_input_pipelines,
                bad_images=bad_images.get(name),
                stream_name=name,
            )
        return tf.data.Dataset.zip(streams)

    iterator = iter(place.strategy.distribute_datasets_from_function(shard))
    log = board = None
    if role.is_chief:
        log = records.Records(
            place.workdir,
            first_step=first_step,
            num_steps=numbers.steps,
            every_steps=numbers.record_every_steps,
            constants=stage.constants(numbers.global_batch_size),
        )
    progress = Progress(
        stage.name,
        total_steps=numbers.steps,
        first_step=first_step,
        images_per_step=numbers.global_batch_size,
        silent=not role.is_chief,
    )
    last: dict[str, float] = {}
    clock = time.monotonic()
    try:
        with watch.finishing():
            while int(loop.step.numpy()) < numbers.steps:
                now = int(loop.step.numpy())
                stop = min(numbers.steps, (now // numbers.checkpoint_every_steps + 1) * numbers.checkpoint_every_steps)
                stopped = False
                for chunk in loop.run(iterator, stop, wants_to_stop=lambda: watch.asked):
                    last = chunk.records[-1]
                    if log is not None:
                        if chunk.first_step == first_step:
                            place.stepped()
                        clock, seconds = time.monotonic(), time.monotonic() - clock
                        images = len(chunk.records) * numbers.global_batch_size
                        throughput = {
                            "images_per_second": images / max(chunk.seconds, 1e-9),
                            "waiting_for_data": chunk.waiting_seconds / max(chunk.seconds, 1e-9),
                            "seconds": seconds,
                        }
                        if bad_images:
                            throughput["bad_images"] = sum(bad.count for bad in bad_images.values())
                        log.add(chunk.first_step, chunk.records, throughput)
                    progress.update(
                        len(chunk.records),
                        seconds=chunk.seconds,
                        waiting_seconds=chunk.waiting_seconds,
                        loss=last["loss"],
                    )
                    # Several processes stop only together: a step, and a checkpoint, takes all of them.
                    stopped = chunk.asked_to_stop or (role.count == 1 and watch.asked)
                    # A loss that is not finite is for the loop to refuse, and nothing to save.
                    if stopped and math.isfinite(last["loss"]):
                        break
                    if log is not None and board is None and numbers.board_images:
                        # Only now: the first step is what users wait for.
                        board = _board(place, stage, numbers, show=first_step == 0)
                        clock = time.monotonic()
                if log is not None:
                    lock.check()
                    log.flush()
                loop.check_weights()
                checkpoints.save(int(loop.step.numpy()))
                now = int(loop.step.numpy())
                if (
                    board is not None
                    and not stopped
                    and is_worth_a_look(now, numbers.steps, numbers.checkpoint_every_steps)
                ):
                    board.look(now)
                if stopped and int(loop.step.numpy()) < numbers.steps:
                    meet(place.strategy)
                    done = int(loop.step.numpy())
                    raise StartAgain(
                        f"stopped by SIGTERM; saved at step {done} of {numbers.steps}: the same command goes on there"
                    )
        course = Course(last, 0.0) if log is None else Course(last or log.last(), log.total("seconds"))
    except tf.errors.OpError as error:
        for bad in bad_images.values():
            bad.check()
        lost_host = cluster.may_lose_hosts(place.strategy) and isinstance(error, cluster.LOST_HOST)
        if role.count == 1 and isinstance(error, _LOST) and not lost_host:
            names = ", ".join(stream.source.name for stream in inputs.values())
            again = any(stream.source.remote for stream in inputs.values()) and isinstance(error, records.PASSING)
            raise (StartAgain if again else UserError)(
                f"{names} cannot be read any more ({first_line(error)}); restore the access, and give "
                "the same command again: it goes on from the last checkpoint"
            ) from None
        raise
    finally:
        progress.close()
        if log is not None:
            log.close(write=not lock.lost)
        if board is not None:
            board.close()
    for bad in bad_images.values():
        if bad.count:
            place.say(f"  {bad.count} unreadable image(s) were skipped: {', '.join(sorted(bad.names)[:5])}")
    if watch.asked:
        raise StartAgain("stopped by SIGTERM after the last step; the same command goes on with the measurement")
    return course
