"""The inner loop: takes steps of any stage in a compiled function."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from simclr_tf.core import randomness
from simclr_tf.core.errors import UserError
from simclr_tf.core.precision import on_cpu
from simclr_tf.core.tf import tf
from simclr_tf.distribute import collectives
from simclr_tf.models.convolution import cpu_kernel_gradients
from simclr_tf.optim.optimizers import Optimizer
from simclr_tf.stages import micro_batches
from simclr_tf.stages.stage import Stage

# A call should be long enough to hide Python's overhead, and short enough for a lively progress bar.
_SECONDS_PER_CALL = 1.0
_MAX_STEPS_PER_CALL = 500


class Chunk(NamedTuple):
    """Results of one call of the compiled loop.

    Attributes:
      first_step: number of the first step, from 0.
      records: one dict per step, name -> float.
      seconds: duration of the whole call.
      waiting_seconds: part of `seconds` spent waiting for the input pipeline.
      asked_to_stop: whether any process of the run wants to stop; all processes learn of it after the same step.
    """

    first_step: int
    records: list[dict[str, float]]
    seconds: float
    waiting_seconds: float
    asked_to_stop: bool = False


class Loop:
    """Takes steps: computes gradients, reduces them over the global batch, updates the weights, records metrics."""

    def __init__(
        self,
        stage: Stage,
        optimizer: Optimizer,
        learning_rate: Callable[[tf.Tensor], tf.Tensor],
        strategy: tf.distribute.Strategy,
        *,
        seed: int,
        jit_compile: bool = False,
        steps_per_call: int | None = None,
        accumulation_steps: int = 1,
        rows: dict[str, int] | None = None,
    ):
        """Prepares the loop; call this in the strategy's scope.

        Args:
          stage: stage to train.
          optimizer: optimizer, already built for the stage's variables.
          learning_rate: function from a step's number to the learning rate.
          strategy: strategy that runs the replicas.
          seed: seed of the run.
          jit_compile: whether to compile the step with XLA (TPUs always do).
          steps_per_call: steps per call of the compiled loop; None finds a number that takes about a second.
          accumulation_steps: number of parts in which a step's gradient is computed, one after another. Losses and
            gradient are those of the whole batch. Batch norm sees one part at a time, and updates its moving averages
            once for each part.
          rows: number of examples of each stream that a replica gets per step. With several workers, TensorFlow loses
            this static shape.

        Raises:
          UserError: if XLA is to compile several replicas in one process, which TensorFlow cannot do; or if gradients
            are to be accumulated although the loss compares a batch's examples with each other.
        """
        if (
            jit_compile
            and strategy.num_replicas_in_sync > 1
            and not isinstance(strategy, (tf.distribute.TPUStrategy, collectives.ReplicaProgram))
        ):
            raise UserError(
                f"train.jit_compile is True with {strategy.num_replicas_in_sync} replicas, but TensorFlow cannot "
                "compile their exchange outside TPUs; set it to False, or use one replica"
            )
        if accumulation_steps > 1 and not stage.separable:
            raise UserError(
                f"train.accumulation_steps is {accumulation_steps}, but the {stage.name} loss compares examples of a "
                f"batch with each other; set it to 1{stage.instead_of_accumulation}"
            )
        if stage.network.dtype == tf.float64:
            # float64 is for comparing strategies. Under some of them, and not under others, TensorFlow's arithmetic
            # optimization changes the last digits of the float32 images.
            tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        self.stage = stage
        self.optimizer = optimizer
        self._learning_rate = learning_rate
        self._strategy = strategy
        self._seed = seed
        self._fixed_steps = steps_per_call
        self.accumulation_steps = accumulation_steps
        self._rows = rows or {}
        # Measured by this process, and averaged over all of them. All processes must take the same number of steps per
        # call; otherwise their all-reduces deadlock.
        self._own_step_seconds = math.inf
        self._step_seconds: float | None = None
        self._variables = list(stage.trained_variables)
        self._names: list[str] = []
        self._recent: list[float] = []
        # On a CPU without XLA, TensorFlow's own kernel gradients of convolutions are slow.
        step = self._cpu_replica_step if on_cpu() and not jit_compile else self._replica_step
        self._replica_step_fn = tf.function(step, jit_compile=True, autograph=False) if jit_compile else step
        self._run = tf.function(self._steps, reduce_retracing=True, autograph=False)

    def _replica_step(self, batch: dict[str, dict[str, tf.Tensor]], step: tf.Tensor, host: tf.Tensor) -> tf.Tensor:
        """Takes one replica's step; returns the record, [names + 2] in the loss's type, equal on every replica.

        `host` is [stop requested, seconds per step] of this process. Their sums over the replicas follow the named
        values in the record, so that they need no all-reduce of their own.
        """
        batch = {name: self._with_static_shapes(name, stream) for name, stream in batch.items()}
        seeds = {
            name: randomness.example_seed(self._seed, randomness.stream(f"device/{name}"), step, stream["index"])
            for name, stream in batch.items()
        }
        gradients, measured = self._gradients(batch, seeds)
        rate = self._learning_rate(step)
        self.optimizer.apply(collectives.all_sum(gradients), rate, step)
        self.stage.after_update(step)
        dtype = self.stage.network.dtype
        record = collectives.all_sum(tf.concat([measured, tf.cast(host, dtype)], axis=0))
        return tf.concat([record[:-2], [tf.cast(rate, dtype)], record[-2:]], axis=0)

    def _with_static_shapes(self, stream: str, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        rows = self._rows.get(stream)
        if rows is None or all(value.shape[0] is not None for value in batch.values()):
            return batch
        return {name: tf.ensure_shape(value, [rows, *value.shape[1:]]) for name, value in batch.items()}

    def _cpu_replica_step(self, *args) -> tf.Tensor:
        with cpu_kernel_gradients():
            return self._replica_step(*args)

    def _gradients(self, batch, seeds) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Returns this replica's share of each variable's gradient, and of the losses and metrics, [names]."""
        count = self.accumulation_steps
        if count == 1:
            return self._gradients_of_part(batch, seeds)
        parts = micro_batches.cut((batch, seeds), count)

        def add(i: tf.Tensor, sums: list[tf.Tensor], measured: tf.TensorArray):
            part = tf.nest.map_structure(lambda value: value[i], parts)
            gradients, values = self._gradients_of_part(*part)
            sums = [total + tf.cast(g, total.dtype) / count for total, g in zip(sums, gradients)]
            return i + 1, sums, measured.write(i, values / count)

        sums = [tf.zeros(variable.shape, variable.dtype) for variable in self._variables]
        state = (tf.constant(0), sums, tf.TensorArray(self.stage.network.dtype, size=count))
        if collectives.may_loop():
            state = tf.while_loop(lambda i, *_: i < count, add, state, parallel_iterations=1, maximum_iterations=count)
        else:
            for _ in range(count):
                # One part at a time, so that only one part's activations are in memory.
                with tf.control_dependencies(state[1]):
                    state = add(*state)
        return state[1], tf.reduce_sum(state[2].stack(), axis=0)

    def _gradients_of_part(self, batch, seeds) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Returns what `_gradients` does, in a single pass."""
        dtype = self.stage.network.dtype
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self._variables)
            losses, metrics = self.stage.train_batch(batch, seeds)
            shares = {name: self._share(value, dtype) for name, value in losses.items()}
            replicas = collectives.num_replicas()
            shares.update((name, tf.cast(value, dtype) / replicas) for name, value in self.stage.penalties().items())
            loss = tf.add_n(list(shares.values()))
        gradients = tape.gradient(loss, self._variables)
        missing = [v.name for v, gradient in zip(self._variables, gradients) if gradient is None]
        if missing:
            raise ValueError(f"no gradient reaches {', '.join(missing)}")
        measured = {"loss": loss, **shares, **{name: self._share(value, dtype) for name, value in metrics.items()}}
        self._names = [*measured, "learning_rate"]
        return gradients, tf.stack(list(measured.values()))

    def one_step(self, batch: dict[str, dict[str, tf.Tensor]], step: tf.Tensor) -> dict[str, tf.Tensor]:
        """Takes one replica's step of `run`, for tracing a step that is compiled or run elsewhere.

        Args:
          batch: stream name -> this replica's tensors, by name.
          step: number of the step, scalar int64.

        Returns:
          The step's record, name -> scalar.
        """
        record = self._replica_step(batch, step, tf.zeros([2]))
        return dict(zip(self._names, tf.unstack(record)))

    def _share(self, values: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """Returns this replica's share of the global batch's mean; `values` is [B], with equal B on every replica."""
        return tf.reduce_mean(tf.cast(values, dtype)) / self._strategy.num_replicas_in_sync

    def _steps(self, iterator, count: tf.Tensor, host: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Takes `count` steps; ends early after a loss that is not finite, or if any process wants to stop."""

        def one(done: tf.Tensor, _, waited: tf.Tensor, records: tf.TensorArray):
            asked = tf.timestamp()
            with tf.control_dependencies([asked]):
                batch = next(iterator)
            with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
                waited += tf.timestamp() - asked
            # Without this dependency, a single thread may read the clock only after the step.
            with tf.control_dependencies([waited]):
                step = self.step.read_value()
            record = self._strategy.run(self._replica_step_fn, args=(batch, step, host))
            record = self._strategy.experimental_local_results(record)[0]
            self.step.assign_add(1)
            go_on = tf.logical_and(tf.math.is_finite(record[0]), tf.equal(record[-2], 0))
            return done + 1, go_on, waited, records.write(done, record)

        records = tf.TensorArray(self.stage.network.dtype, size=0, dynamic_size=True)
        state = (tf.constant(0), tf.constant(True), tf.constant(0.0, tf.float64), records)
        _, _, waited, records = tf.while_loop(lambda done, go_on, *_: tf.logical_and(done < count, go_on), one, state)
        return records.stack(), waited

    def run(
        self, iterator: Iterator, last_step: int, *, wants_to_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Chunk]:
        """Takes steps until the run has taken `last_step` in all; yields a `Chunk` after each call.

        Args:
          iterator: iterator over the strategy's batches.
          last_step: total number of steps, since the run's start, to end at.
          wants_to_stop: function that says whether this process wants to stop, called before each call. If one process
            wants to, all leave the call after the same step, with `asked_to_stop` true.

        Raises:
          UserError: if a loss is not finite; the message has the step, the learning rate and the last finite losses. By
            then the weights are ruined, but earlier checkpoints are not.
        """
        while (first := int(self.step.numpy())) < last_step:
            count = min(self._steps_in_call(), last_step - first)
            start = time.perf_counter()
            host = [float(wants_to_stop()), self._own_step_seconds]
            values, waited = self._run(iterator, tf.constant(count), tf.constant(host))
            values = values.numpy()
            seconds = time.perf_counter() - start
            # The first call includes tracing, so its time says nothing about the speed.
            traced = self._step_seconds is None and count == 1
            self._own_step_seconds = math.inf if traced else seconds / len(values)
            self._step_seconds = float(values[-1, -1]) / self._strategy.num_replicas_in_sync
            records = [dict(zip(self._names, map(float, row))) for row in values]
            yield Chunk(first, records, seconds, float(waited), asked_to_stop=bool(values[-1, -2] > 0))
            if not np.isfinite(records[-1]["loss"]):
                self._recent += [record["loss"] for record in records[:-1]]
                raise UserError(_diverged(first + len(records) - 1, records[-1]["learning_rate"], self._recent))
            self._recent = [*self._recent, *(record["loss"] for record in records)][-5:]

    def check_weights(self) -> None:
        """Raises UserError if the last update made the weights non-finite, so that they are never saved."""
        if not all(tf.reduce_all(tf.math.is_finite(variable)) for variable in self._variables):
            step = int(self.step.numpy()) - 1
            rate = float(self._learning_rate(tf.constant(step, tf.int64)))
            raise UserError(_diverged(step, rate, self._recent, what="weights are"))

    def _steps_in_call(self) -> int:
        if self._fixed_steps is not None:
            return self._fixed_steps
        if self._step_seconds is None:
            return 1
        return max(1, min(_MAX_STEPS_PER_CALL, int(_SECONDS_PER_CALL / self._step_seconds)))


def _diverged(step: int, learning_rate: float, recent: list[float], what: str = "loss is") -> str:
    losses = ", ".join(f"{loss:.4g}" for loss in recent[-5:]) or "none"
    return (
        f"the {what} not finite at step {step} (learning rate {learning_rate:.4g}, last finite losses: {losses}); "
        "the last good checkpoint is kept: lower the learning rate, or lengthen the warm-up, in a new --workdir"
    )
