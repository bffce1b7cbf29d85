"""The paper's memory: a momentum network that computes keys, and a queue of past keys.

Chen et al. 2020b, section 2, after MoCo (He et al. 2019). The authors' code leaves it out.

Every replica holds an equal copy of the memory, as it does of batch norm's moving averages. All replicas compute the
same updates from the same numbers, so they only exchange keys.
"""

from __future__ import annotations

import math

from simclr_tf.core import checks
from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.distribute import collectives
from simclr_tf.losses.nt_xent import NtXentKeys
from simclr_tf.models import cost
from simclr_tf.models.network import Network, differences
from simclr_tf.models.normalization import frozen_moving_averages

# Parts of the momentum network, by their names in a checkpoint.
PARTS = ("encoder", "head")


def _once_per_replica(next_creator, **kwargs):
    """Variable creator that keeps one copy per replica, as batch norm does for its moving averages."""
    kwargs.update(
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )
    return next_creator(**kwargs)


def moved(average: tf.Tensor, value: tf.Tensor, decay: float) -> tf.Tensor:
    """Returns the exponential moving average after one more value."""
    # In this form the average stays bit for bit the same when both are equal; `decay * average + ...` would round.
    return average + (1 - decay) * (value - average)


def projection_dim(network: Network) -> int:
    """Returns the width of the projections of a network with a projection head."""
    return network.head.output_dim if network.head.num_layers else network.encoder.feature_dim


class Memory(tf.Module):
    """Momentum network and queue beside an online network; only the online network learns by gradient."""

    def __init__(self, online: Network, queue_size: int = 65536, decay: float = 0.999):
        """Copies the online network and creates an empty queue; call this in the strategy's scope.

        Args:
          online: network that is trained.
          queue_size: number of keys to keep, two for each image; 65,536 in the paper.
          decay: share of the momentum network that is kept at each step, in [0, 1).

        Raises:
          UserError: if a value is out of range, or the network has no projection head.
        """
        super().__init__(name="memory")
        checks.whole("Memory.queue_size", queue_size, hint=", or set Pretrain.make_memory to None for no memory")
        checks.number("Memory.decay", decay, least=0, below=1, hint=", such as 0.999")
        if online.head is None:
            raise UserError("the memory needs a projection head, but the network has none")
        self.queue_size, self.decay = queue_size, decay
        self._dtype = online.dtype
        with tf.variable_creator_scope(_once_per_replica):
            network = Network.from_description(
                {**online.describe(), "num_classes": 0, "classifier_layer": 0}, precision=online.precision
            )
            self.queue = tf.Variable(tf.zeros([queue_size, projection_dim(online)], self._dtype), name="queue")
            # Counts over the whole run; the next key goes to this position modulo the queue's size.
            self.enqueued = tf.Variable(0, dtype=tf.int64, name="enqueued")
        self.network = network
        self.copy(online)

    def items(self) -> dict[str, tf.Module | tf.Variable]:
        """Returns what another run's checkpoint can fill, by path in the checkpoint."""
        return {f"memory/{name}": getattr(self, name) for name in ("network", "queue", "enqueued")}

    def misfit(self, item: str, description: dict) -> list[str]:
        """Lists why an item does not fit the run whose `architecture.json` is `description`; empty if it fits."""
        there = description.get("memory")
        if not there:
            return ["that run has no memory"]
        unlike = [line for part in PARTS for line in self.network.mismatch(part, description["network"])]
        return unlike or (differences(there, self.describe()) if item != "memory/network" else [])

    def _pairs(self, online: Network) -> list[tuple[tf.Variable, tf.Variable]]:
        """Pairs each variable of the momentum network with the online variable that it follows."""
        networks = self.network.parts(), online.parts()
        mine, theirs = ([v for name in PARTS for v in parts[name].variables] for parts in networks)
        assert [v.shape for v in mine] == [v.shape for v in theirs]
        return list(zip(mine, theirs))

    def copy(self, online: Network) -> None:
        """Sets the momentum network to the online one; call this in cross-replica context."""
        for mine, theirs in self._pairs(online):
            mine.assign(theirs)

    def follow(self, online: Network) -> None:
        """Moves the momentum network, with its batch norm averages, toward the online one; call this in a replica."""
        for mine, theirs in self._pairs(online):
            mine.assign(moved(tf.convert_to_tensor(mine), tf.convert_to_tensor(theirs), self.decay))

    def project(self, images: tf.Tensor, *, training: bool = True) -> tf.Tensor:
        """Computes the momentum network's projections; call this in a replica.

        In training mode, batch norm normalizes with the statistics of all replicas' images. It does not update its
        moving averages, because these follow the online network's.

        Args:
          images: [B, H, W, 3] in [0, 1].
          training: whether batch norm runs in training mode.

        Returns:
          [B, D] in the queue's type; no gradient flows back.
        """
        with frozen_moving_averages():
            projections = self.network.outputs(images, training=training)["projection"]
        return tf.cast(tf.stop_gradient(projections), self._dtype)

    def keys(self, view_1: tf.Tensor, view_2: tf.Tensor) -> NtXentKeys:
        """Makes the keys of a step; call this in a replica.

        Args:
          view_1: [B, D], outputs of `project` for this replica's first views.
          view_2: [B, D], outputs of `project` for its second views.

        Returns:
          The keys of all replicas, and the queue as it is before this step.
        """
        keys = tf.math.l2_normalize(tf.stack([view_1, view_2], axis=1), axis=2)
        filled = tf.cast(tf.minimum(self.enqueued.read_value(), self.queue_size), tf.int32)
        return NtXentKeys(*tf.unstack(collectives.concat(keys), axis=1), self.queue.read_value(), filled)

    def enqueue(self, keys: NtXentKeys) -> None:
        """Overwrites the oldest keys in the queue with a step's, in the order of the batch; call this in a replica."""
        new = tf.reshape(tf.stack([keys.view_1, keys.view_2], axis=1), [-1, keys.view_1.shape[1]])
        # If a step has more keys than fit, only the last ones stay; scattering to repeated places has no defined order.
        kept = new[-self.queue_size :]
        enqueued = self.enqueued.read_value() + new.shape[0]
        first = tf.cast(tf.math.floormod(enqueued - kept.shape[0], self.queue_size), tf.int32)
        places = tf.math.floormod(first + tf.range(kept.shape[0]), self.queue_size)
        self.queue.assign(tf.tensor_scatter_nd_update(self.queue.read_value(), places[:, None], kept))
        self.enqueued.assign(enqueued)

    def costs(self, global_batch_size: int) -> dict[str, int]:
        """Returns what the memory adds to the cost of a step.

        Args:
          global_batch_size: images per step.

        Returns:
          `memory_flops_per_step`, over all replicas: the keys' forward pass, and the products with the queue, forward
          and backward. `memory_bytes`, on each replica: momentum network and queue.
        """
        keys = 2 * global_batch_size
        encoder = cost.flops_per_image(self.network)
        head = sum(2 * math.prod(layer.dense.kernel.shape) for layer in self.network.head.projections)
        queue = 2 * 2 * self.queue_size * self.queue.shape[1]
        variables = [self.queue, *(variable for part in self.network.parts().values() for variable in part.variables)]
        return {
            "memory_flops_per_step": keys * (encoder + head + queue),
            "memory_bytes": sum(math.prod(variable.shape) * variable.dtype.size for variable in variables),
        }

    def describe(self) -> dict:
        """Returns the settings that must stay the same when a run is resumed."""
        return {"queue_size": self.queue_size}
