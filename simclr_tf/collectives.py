"""What replicas tell each other. The only file that talks to replica contexts.

Every function works inside `strategy.run`, and outside any strategy, where there is one replica. Gradients flow through
`all_mean` and `concat`: a replica receives the derivative of the *sum over replicas* of what they compute, which is the
derivative of the whole step's loss when each replica's loss is its share of the global sum.
"""

from __future__ import annotations

from simclr_tf.stack import tf


def num_replicas() -> int:
    """Returns how many replicas work in step."""
    context = tf.distribute.get_replica_context()
    return context.num_replicas_in_sync if context is not None else 1


def replica_id() -> tf.Tensor:
    """Returns this replica's number, scalar int32 in [0, num_replicas)."""
    context = tf.distribute.get_replica_context()
    return tf.convert_to_tensor(context.replica_id_in_sync_group if context is not None else 0, tf.int32)


def _all_sum(values):
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def all_sum(values):
    """Sums tensors over the replicas.

    Args:
      values: a tensor or a (nested) list of tensors, of the same shapes on every replica.

    Returns:
      The same structure; every replica has the sums.
    """
    return _all_sum(values) if num_replicas() > 1 else values


def all_mean(value: tf.Tensor) -> tf.Tensor:
    """Averages a tensor over the replicas, which all receive the mean."""
    replicas = num_replicas()
    return _all_sum(value) / tf.cast(replicas, value.dtype) if replicas > 1 else value


def concat(value: tf.Tensor) -> tf.Tensor:
    """Concatenates the replicas' rows.

    Each replica puts its rows into a zero tensor of the global shape and the tensors are summed. Adding zeros is exact,
    a sum has a gradient under every strategy, and it is the one collective that all of them (XLA's included) offer.

    Args:
      value: [B, ...], of the same shape on every replica.

    Returns:
      [replicas * B, ...], in replica order, on every replica.
    """
    replicas = num_replicas()
    if replicas == 1:
        return value
    ones = tf.ones([1] * value.shape.rank, value.dtype)
    mine = tf.one_hot(replica_id(), replicas, dtype=value.dtype)
    mine = tf.reshape(mine, [replicas] + [1] * value.shape.rank) * ones
    placed = _all_sum(mine * value[None])
    return tf.reshape(placed, tf.concat([[replicas * tf.shape(value)[0]], tf.shape(value)[1:]], axis=0))
