"""From a source to batches: order, decoding, crops, shards.

What is in a batch is a function of (seed, step) alone. Sources that fit in memory decoded are cropped a batch at a
time; of others each image is read, decoded and cropped by itself, many at once. No Python runs between batches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from simclr_tf.core.randomness import example_seed, stream
from simclr_tf.core.tf import tf
from simclr_tf.data.bad_images import BadImages, IgnoredImages
from simclr_tf.data.decode import plain, try_decode
from simclr_tf.data.host_crops import Prepare
from simclr_tf.data.order import permutation, replacement
from simclr_tf.data.sources.source import Source

Batch = dict[str, tf.Tensor]

_CROP_STREAM = stream("host crop")
# The order and the random numbers cost a thousand small operations, however many examples they are made for.
_EXAMPLES_PER_PLAN = 2048
# Where nobody counts unreadable images, a source of nothing else ends so.
_MAX_REPLACEMENTS = 1000


class _Plan(NamedTuple):
    """What is to be made: tensors [..., B]; `seeds` [..., B, 2]; `draws` [..., B, V, D]; `wanted` False for padding.

    `again` is added to `index` in the end, so that an image's copies in a batch have numbers of their own.
    """

    seeds: tf.Tensor
    index: tf.Tensor
    again: tf.Tensor
    draws: tf.Tensor
    wanted: tf.Tensor


class _Pixels(NamedTuple):
    """A source decoded in memory, as tensors."""

    images: tf.Tensor
    labels: tf.Tensor
    readable: tf.Tensor


def train_dataset(
    source: Source,
    prepare: Prepare,
    *,
    global_batch_size: int,
    per_replica_batch_size: int,
    seed: int,
    first_step: int = 0,
    num_steps: int,
    shard_index: int = 0,
    num_shards: int = 1,
    bad_images: BadImages | IgnoredImages | None = None,
    stream_name: str = "train",
) -> tf.data.Dataset:
    """Makes the training batches of one input pipeline.

    Row r of the global batch of step s is position `s * global_batch_size + r` of an endless order in which every
    epoch is a permutation of its own. A shard makes its replicas' rows, one element for each replica and step in turn:
    over all shards replica k sees rows `k * per_replica_batch_size` and on. Starting at a step costs no replay.

    An unreadable image is replaced by another of the source, chosen by (seed, step, example), so that a resumed run
    sees the same; it is added to `bad_images`, which ends the run once there are too many.

    Args:
      source: where images come from.
      prepare: what is made of each.
      global_batch_size: of all shards together, a multiple of num_shards * per_replica_batch_size.
      per_replica_batch_size: rows of one element.
      seed: the run's.
      first_step: where to start.
      num_steps: how many steps to make.
      shard_index: which pipeline this is.
      num_shards: of so many.
      bad_images: counts unreadable images; without it the first one fails.
      stream_name: another name gives another order and other crops of the same source.

    Returns:
      Elements with the crops' names -> [b, S, S, 3] uint8, `label` [b] int32 (-1 where unknown) and `index` [b] int64,
      the examples' numbers in the source, from which their random numbers follow. Where a batch goes on into another
      epoch these are higher by `source.num_examples`, and so on: an image that comes twice is not augmented alike.
    """
    replicas = _local_replicas(global_batch_size, per_replica_batch_size, num_shards)
    stream_id = _CROP_STREAM if stream_name == "train" else stream(f"host crop {stream_name}")

    def plan(element: tf.Tensor) -> _Plan:
        step = first_step + element // replicas
        rows = _rows(element % replicas + shard_index * replicas, per_replica_batch_size)
        positions = step[:, None] * global_batch_size + rows
        index = permutation(seed, stream_name, tf.reshape(positions, [-1]), source.num_examples)
        index = tf.reshape(index, tf.shape(positions))
        epochs = positions // source.num_examples - step[:, None] * global_batch_size // source.num_examples
        again = epochs * source.num_examples
        seeds = example_seed(seed, stream_id, step[:, None], index + again)
        return _Plan(seeds, index, again, prepare.draws(seeds), tf.ones_like(index, tf.bool))

    plans = _plans(plan, num_steps * replicas, per_replica_batch_size)
    batches = _batches(source, prepare, plans, per_replica_batch_size, bad_images, replace=True)
    return _finished(batches.map(plain(lambda batch: {name: batch[name] for name in batch if name != "weight"})))


def eval_dataset(
    source: Source,
    prepare: Prepare,
    *,
    batch_size: int,
    per_replica_batch_size: int,
    shard_index: int = 0,
    num_shards: int = 1,
    bad_images: BadImages | IgnoredImages | None = None,
) -> tf.data.Dataset:
    """Makes the batches of one input pipeline that show each example once, in the source's order.

    Every shard makes the same number of elements of the same shape: the last ones are padded, with weight 0. An
    unreadable image has weight 0, too, and is added to `bad_images`.

    Args:
      source: where images come from.
      prepare: what is made of each.
      batch_size: of all shards together, a multiple of num_shards * per_replica_batch_size.
      per_replica_batch_size: rows of one element.
      shard_index: which pipeline this is.
      num_shards: of so many.
      bad_images: counts unreadable images; without it the first one fails.

    Returns:
      Elements like those of `train_dataset`, and `weight` [b] float32, 1 for an example and 0 for padding.
    """
    replicas = _local_replicas(batch_size, per_replica_batch_size, num_shards)
    steps = -(-source.num_examples // batch_size)

    def plan(element: tf.Tensor) -> _Plan:
        step = element // replicas
        rows = _rows(element % replicas + shard_index * replicas, per_replica_batch_size)
        positions = step[:, None] * batch_size + rows
        index = tf.minimum(positions, source.num_examples - 1)
        seeds = tf.zeros(tf.concat([tf.shape(index), [2]], axis=0), tf.int32)
        return _Plan(seeds, index, tf.zeros_like(index), prepare.draws(seeds), positions < source.num_examples)

    plans = _plans(plan, steps * replicas, per_replica_batch_size)
    return _finished(_batches(source, prepare, plans, per_replica_batch_size, bad_images, replace=False))


def _local_replicas(batch_size: int, per_replica: int, num_shards: int) -> int:
    """How many replicas a shard feeds."""
    replicas, rest = divmod(batch_size, per_replica * num_shards)
    if rest or not replicas:
        raise ValueError(f"a batch of {batch_size} does not divide over {num_shards} shards in parts of {per_replica}")
    return replicas


def _rows(replica: tf.Tensor, per_replica: int) -> tf.Tensor:
    """[n] numbers of replicas -> [n, b] int64 rows of the global batch."""
    return replica[:, None] * per_replica + tf.range(per_replica, dtype=tf.int64)


def _plans(plan: Callable[[tf.Tensor], _Plan], elements: int, per_replica: int) -> tf.data.Dataset:
    """One plan for each element, made for many elements at a time."""
    together = max(1, _EXAMPLES_PER_PLAN // per_replica)

    def some(first: tf.Tensor) -> _Plan:
        return plan(tf.range(first, tf.minimum(first + together, elements)))

    starts = tf.data.Dataset.range(0, elements, together)
    return starts.map(plain(some)).prefetch(1).unbatch()


def _finished(batches: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return batches.with_options(options).prefetch(tf.data.AUTOTUNE)


def _batches(
    source: Source,
    prepare: Prepare,
    plans: tf.data.Dataset,
    per_replica: int,
    bad_images: BadImages | IgnoredImages | None,
    *,
    replace: bool,
) -> tf.data.Dataset:
    """Turns plans into batches with `weight`."""
    resident = source.resident()
    if resident is not None:
        if not resident.readable.all():
            for index in (~resident.readable).nonzero()[0]:
                if bad_images is None:
                    raise ValueError(f"{source.example_ids[index]} is unreadable, and nothing counts such images")
                bad_images.add(index)
            bad_images.check()
        replace = replace and not resident.readable.all()
        with tf.device("CPU:0"):
            pixels = _Pixels(*(tf.constant(part) for part in resident))
        if prepare.takes_batches(*resident.images.shape[1:3]):
            return _map(plans, lambda plan: _resident(pixels, prepare.of_batch, plan, replace=replace))
        one = functools.partial(_resident, pixels, prepare.of_image, replace=replace)
    else:
        one = _reader(source, prepare, bad_images, replace=replace)
    return _map(plans.unbatch(), one).batch(per_replica, drop_remainder=True)


def _map(dataset: tf.data.Dataset, function: Callable) -> tf.data.Dataset:
    """Maps in parallel and in order."""
    return dataset.map(plain(function), num_parallel_calls=tf.data.AUTOTUNE)


def _resident(pixels: _Pixels, crop: Callable[[tf.Tensor, tf.Tensor], Batch], plan: _Plan, *, replace: bool) -> Batch:
    """Crops what is in memory: one example or a batch."""
    index = plan.index

    def step(index: tf.Tensor, attempt: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        other = replacement(plan.seeds, attempt, len(pixels.readable))
        return tf.where(tf.gather(pixels.readable, index), index, other), attempt + 1

    if replace:
        index, _ = tf.while_loop(
            lambda index, _: tf.logical_not(tf.reduce_all(tf.gather(pixels.readable, index))),
            step,
            (index, tf.constant(1, tf.int64)),
        )
    usable = plan.wanted & tf.gather(pixels.readable, index)
    return {
        **crop(tf.gather(pixels.images, index), plan.draws),
        "label": tf.gather(pixels.labels, index),
        "index": index + plan.again,
        "weight": tf.cast(usable, tf.float32),
    }


def _reader(
    source: Source, prepare: Prepare, bad_images: BadImages | IgnoredImages | None, *, replace: bool
) -> Callable[[_Plan], Batch]:
    """Returns what reads, decodes and crops one example; an unreadable one is replaced, or has weight 0."""

    def read(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        if bad_images is not None:
            # A network that is away for a while makes no image a bad one.
            return try_decode(source.read, index, bit_depth=source.bit_depth, read_may_fail=not source.remote)
        encoded, label = source.read(index)
        return source.decode(encoded), label, tf.constant(True)

    # Called in two places and traced once.
    read = tf.function(read, input_signature=[tf.TensorSpec([], tf.int64)], autograph=False)
    nothing = (tf.zeros([1, 1, 3], tf.uint8), tf.constant(-1), tf.constant(False))

    def one(plan: _Plan) -> Batch:
        image, label, sound = tf.cond(plan.wanted, lambda: read(plan.index), lambda: nothing)
        index = plan.index
        if bad_images is not None and replace:
            image, label, sound, index, _ = tf.while_loop(
                lambda image, label, sound, index, attempt: tf.logical_not(sound) & (attempt <= _MAX_REPLACEMENTS),
                lambda image, label, sound, index, attempt: again(plan.seeds, index, attempt),
                (image, label, sound, index, tf.constant(1, tf.int64)),
                shape_invariants=(tf.TensorShape([None, None, 3]), *[tf.TensorShape([])] * 4),
            )
            tf.debugging.assert_equal(sound, True, f"no readable image among {_MAX_REPLACEMENTS}")
        elif bad_images is not None:
            noted = tf.cond(plan.wanted & ~sound, lambda: bad_images.add_in_graph(index), lambda: True)
            with tf.control_dependencies([noted]):
                image = tf.identity(image)
        crops = prepare.of_image(image, plan.draws)
        return {**crops, "label": label, "index": index + plan.again, "weight": tf.cast(sound, tf.float32)}

    def again(seeds: tf.Tensor, index: tf.Tensor, attempt: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with tf.control_dependencies([bad_images.add_in_graph(index)]):
            index = replacement(seeds, attempt, source.num_examples)
        return (*read(index), index, attempt + 1)

    return one


class Input(NamedTuple):
    """A stream of examples.

    Attributes:
      source: of the images.
      prepare: what the host makes of each image; see `data.prepare`.
      batch_size: examples of a step over all replicas; None for the run's global batch.
    """

    source: Source
    prepare: Callable
    batch_size: int | None = None
