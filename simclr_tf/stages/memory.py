"""The paper's memory: a momentum network, whose outputs are the keys, and a queue of past keys.

Chen et al. 2020b, section 2, after MoCo (He et al. 2019). The authors' code leaves it out.

All of it lives once per replica and is equal on all, like batch norm's moving averages: every replica computes the same
updates from the same numbers, so only the keys travel.
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

# Encoder and head of the momentum network, by the names that a checkpoint has for them.
PARTS = ("encoder", "head")


def _once_per_replica(next_creator, **kwargs):
    """Creates any variable as batch norm creates its moving averages."""
    kwargs.update(
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )
    return next_creator(**kwargs)


def moved(average: tf.Tensor, value: tf.Tensor, decay: float) -> tf.Tensor:
    """Returns one step of an exponential moving average, which stays exactly where it is when both are equal."""
    return average + (1 - decay) * (value - average)


def projection_dim(network: Network) -> int:
    """Returns how wide the projections of a network with a projection head are."""
    return network.head.output_dim if network.head.num_layers else network.encoder.feature_dim


class Memory(tf.Module):
    """Momentum network and queue beside an online network, which alone learns by gradient."""

    def __init__(self, online: Network, queue_size: int = 65536, decay: float = 0.999):
        """Creates the momentum network as a copy of the online one, and an empty queue; inside the strategy's scope.

        Args:
          online: encoder and projection head that are trained.
          queue_size: keys that are kept, two for each image; 65,536 in the paper.
          decay: share of the momentum network that is kept at each step, in [0, 1).

        Raises:
          UserError: for values that make no sense, or a network without a projection head.
        """
        super().__init__(name="memory")
        checks.whole("Memory.queue_size", queue_size, hint=", or set Pretrain.make_memory to None for no memory")
        checks.number("Memory.decay", decay, least=0, below=1, hint=", such as 0.999")
        if online.head is None:
            raise UserError("the memory needs a projection head, and the network has none")
        self.queue_size, self.decay = queue_size, decay
        self._dtype = online.dtype
        with tf.variable_creator_scope(_once_per_replica):
            network = Network.from_description(
                {**online.describe(), "num_classes": 0, "classifier_layer": 0}, precision=online.precision
            )
            self.queue = tf.Variable(tf.zeros([queue_size, projection_dim(online)], self._dtype), name="queue")
            # Of the whole run; the next key goes to this number modulo the queue's size.
            self.enqueued = tf.Variable(0, dtype=tf.int64, name="enqueued")
        self.network = network
        self.copy(online)

    def items(self) -> dict[str, tf.Module | tf.Variable]:
        """Returns what another run can bring, by its path in a checkpoint."""
        return {f"memory/{name}": getattr(self, name) for name in ("network", "queue", "enqueued")}

    def misfit(self, item: str, description: dict) -> list[str]:
        """Lists why one of `items` cannot take its values from the run whose `architecture.json` is `description`."""
        there = description.get("memory")
        if not there:
            return ["there is no memory there"]
        unlike = [line for part in PARTS for line in self.network.mismatch(part, description["network"])]
        return unlike or (differences(there, self.describe()) if item != "memory/network" else [])

    def _pairs(self, online: Network) -> list[tuple[tf.Variable, tf.Variable]]:
        """Each variable of the momentum network with the online one that it follows."""
        networks = self.network.parts(), online.parts()
        mine, theirs = ([v for name in PARTS for v in parts[name].variables] for parts in networks)
        assert [v.shape for v in mine] == [v.shape for v in theirs]
        return list(zip(mine, theirs))

    def copy(self, online: Network) -> None:
        """Makes the momentum network equal to the online one; outside the replicas."""
        for mine, theirs in self._pairs(online):
            mine.assign(theirs)

    def follow(self, online: Network) -> None:
        """Moves the momentum network, its moving averages included, towards the online one; inside a replica."""
        for mine, theirs in self._pairs(online):
            mine.assign(moved(tf.convert_to_tensor(mine), tf.convert_to_tensor(theirs), self.decay))

    def project(self, images: tf.Tensor, *, training: bool = True) -> tf.Tensor:
        """Computes the momentum network's projections; inside a replica.

        Batch norm in training mode takes its statistics of all replicas' images, and leaves its moving averages alone:
        they follow the online network's.

        Args:
          images: [B, H, W, 3] in [0, 1].
          training: batch norm's mode.

        Returns:
          [B, D], in the queue's type, without a gradient.
        """
        with frozen_moving_averages():
            projections = self.network.outputs(images, training=training)["projection"]
        return tf.cast(tf.stop_gradient(projections), self._dtype)

    def keys(self, view_1: tf.Tensor, view_2: tf.Tensor) -> NtXentKeys:
        """Makes the keys of a step; inside a replica.

        Args:
          view_1: [B, D], what `project` returned for this replica's first views.
          view_2: the same for the second ones.

        Returns:
          All replicas' keys, with the queue as it is before this step.
        """
        keys = tf.math.l2_normalize(tf.stack([view_1, view_2], axis=1), axis=2)
        filled = tf.cast(tf.minimum(self.enqueued.read_value(), self.queue_size), tf.int32)
        return NtXentKeys(*tf.unstack(collectives.concat(keys), axis=1), self.queue.read_value(), filled)

    def enqueue(self, keys: NtXentKeys) -> None:
        """Puts a step's keys into the queue, in the order of the global batch, over the oldest; inside a replica."""
        new = tf.reshape(tf.stack([keys.view_1, keys.view_2], axis=1), [-1, keys.view_1.shape[1]])
        # Of more keys than the queue holds, only the last ones stay.
        kept = new[-self.queue_size :]
        enqueued = self.enqueued.read_value() + new.shape[0]
        first = tf.cast(tf.math.floormod(enqueued - kept.shape[0], self.queue_size), tf.int32)
        places = tf.math.floormod(first + tf.range(kept.shape[0]), self.queue_size)
        self.queue.assign(tf.tensor_scatter_nd_update(self.queue.read_value(), places[:, None], kept))
        self.enqueued.assign(enqueued)

    def costs(self, global_batch_size: int) -> dict[str, int]:
        """Returns what the memory adds to a step without it.

        Args:
          global_batch_size: images of a step.

        Returns:
          `memory_flops_per_step`, over all replicas (the keys' forward pass and the products with the queue, forward
          and backward), and `memory_bytes`, on each replica (momentum network and queue).
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
        """Returns what must stay the same when a run goes on."""
        return {"queue_size": self.queue_size}
