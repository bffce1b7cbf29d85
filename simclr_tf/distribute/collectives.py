"""Exchange of tensors between replicas. The only file that talks to replica contexts.

Every function works inside `strategy.run`, and outside any strategy, where there is one replica. Gradients flow through
`all_mean` and `concat`: a replica receives the derivative of the *sum over replicas* of what they compute. If each
replica's loss is its share of the global sum, this is the derivative of the whole step's loss.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from typing import Any

from simclr_tf.core.tf import tf


class ReplicaProgram:
    """Stand-in strategy for tracing a step of many replicas that is compiled for other machines.

    Inside `tracing`, sums over replicas become XLA's all-reduce, and a replica's number becomes XLA's replica id. The
    step is then one program that each of the replicas runs. XLA can lower it, but this process cannot run it.
    """

    _tracing = threading.local()

    def __init__(self, num_replicas: int, *, unrolled: bool = False):
        """Describes the machines.

        Args:
          num_replicas: The number of replicas.
          unrolled: Whether to write out micro-batches one by one, as for several replicas, instead of in a loop.
            Compilers count the work of a loop only once, whatever its number of iterations.
        """
        self.num_replicas_in_sync, self.unrolled = num_replicas, unrolled

    def scope(self) -> contextlib.AbstractContextManager:
        """Returns a scope that creates plain variables, those of one replica."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def tracing(self) -> Iterator[None]:
        """Makes this module's functions act for one of the replicas, inside the block."""
        before = self.current()
        self._tracing.program = self
        # Keys start anew, so that equal steps give equal programs, whatever was traced before.
        self._sums = itertools.count(1)
        try:
            yield
        finally:
            self._tracing.program = before

    @classmethod
    def current(cls) -> ReplicaProgram | None:
        """Returns the program that is being traced in this thread, or None."""
        return getattr(cls._tracing, "program", None)

    def sum(self, value: tf.Tensor) -> tf.Tensor:
        """Sums a tensor over the replicas, by the only collective that TensorFlow hands to XLA."""

        @tf.custom_gradient
        def summed(x):
            total = tf.raw_ops.CollectiveReduceV2(
                input=x,
                group_size=self.num_replicas_in_sync,
                group_key=1,
                instance_key=next(self._sums),
                ordering_token=[],
                merge_op="Add",
                final_op="Id",
            )
            # Every replica's total depends on this replica's x, so their gradients add up.
            return total, self.sum

        return summed(value)

    def replica_id(self) -> tf.Tensor:
        """Returns this replica's number, scalar int32, known only when the program runs."""
        # TensorFlow has no public name for XLA's replica id.
        from tensorflow.compiler.tf2xla.python import xla

        return xla.replica_id()


def num_replicas() -> int:
    """Returns the number of replicas that work in step."""
    if ReplicaProgram.current() is not None:
        return ReplicaProgram.current().num_replicas_in_sync
    context = tf.distribute.get_replica_context()
    return context.num_replicas_in_sync if context is not None else 1


def may_loop() -> bool:
    """Whether a loop in the graph may run micro-batches; several replicas cannot exchange tensors inside a loop."""
    program = ReplicaProgram.current()
    return num_replicas() == 1 and not (program is not None and program.unrolled)


def replica_id() -> tf.Tensor:
    """Returns this replica's number, scalar int32 in [0, num_replicas)."""
    if ReplicaProgram.current() is not None and num_replicas() > 1:
        return ReplicaProgram.current().replica_id()
    context = tf.distribute.get_replica_context()
    return tf.convert_to_tensor(context.replica_id_in_sync_group if context is not None else 0, tf.int32)


def _all_sum(values):
    if ReplicaProgram.current() is not None:
        return tf.nest.map_structure(ReplicaProgram.current().sum, values)
    context = tf.distribute.get_replica_context()

    @tf.custom_gradient
    def summed(*tensors):
        # While tracing, TensorFlow searches everything that went into a sum for variables, on all replicas, which takes
        # long for sums late in the step. A stopped gradient ends the search.
        stopped = [tf.stop_gradient(tensor) for tensor in tensors]
        return context.all_reduce(tf.distribute.ReduceOp.SUM, stopped), lambda *upstream: _all_sum(list(upstream))

    return tf.nest.pack_sequence_as(values, summed(*tf.nest.flatten(values)))


def all_sum(values: Any) -> Any:
    """Sums tensors over the replicas.

    Args:
      values: A tensor or a (nested) list of tensors, of the same shapes on every replica.

    Returns:
      The sums in the same structure, on every replica.
    """
    return _all_sum(values) if num_replicas() > 1 else values


def all_mean(value: tf.Tensor) -> tf.Tensor:
    """Averages a tensor over the replicas; all of them receive the mean."""
    replicas = num_replicas()
    return _all_sum(value) / tf.cast(replicas, value.dtype) if replicas > 1 else value


def _on_tpu() -> bool:
    context = tf.distribute.get_replica_context()
    strategy = context.strategy if context is not None else None
    return ReplicaProgram.current() is not None or isinstance(strategy, tf.distribute.TPUStrategy)


def concat(value: tf.Tensor) -> tf.Tensor:
    """Concatenates the replicas' rows.

    Each replica puts its rows into a zero tensor of the global shape, and `_all_sum` adds these. Adding zeros is exact,
    a sum has a gradient under every strategy, and it is the only collective that all of them, XLA included, offer.
    Whole numbers travel in the type that the devices can add: int32 on TPUs, int64 elsewhere.

    Args:
      value: A tensor [B, ...] of the same shape on every replica; whole numbers have to be below 2^31.

    Returns:
      [replicas * B, ...], in replica order, on every replica.
    """
    replicas = num_replicas()
    if replicas == 1:
        return value
    whole = tf.int32 if _on_tpu() else tf.int64
    if value.dtype.is_integer and value.dtype != whole:
        return tf.cast(concat(tf.cast(value, whole)), value.dtype)
    mine = tf.reshape(tf.equal(tf.range(replicas), replica_id()), [replicas] + [1] * value.shape.rank)
    # Selected, not multiplied by a mask: inf * 0 would put NaN into the other replicas' rows.
    placed = _all_sum(tf.where(mine, value[None], tf.zeros([], value.dtype)))
    return tf.reshape(placed, tf.concat([[replicas * tf.shape(value)[0]], tf.shape(value)[1:]], axis=0))
