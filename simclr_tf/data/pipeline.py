"""From a source to batches: order, decoding, crops, shards.

The contents of a batch depend on (seed, step) alone. If a decoded source fits in memory, the pipeline crops it a batch
at a time; otherwise it reads, decodes and crops images one by one, in parallel. No Python runs between batches.
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
# Order and random numbers cost a thousand small operations, however many examples they are computed for.
_EXAMPLES_PER_PLAN = 2048
# Ends the search in a source without readable images when nothing counts them.
_MAX_REPLACEMENTS = 1000


class _Plan(NamedTuple):
    """The examples of batches, as tensors [..., B].

    Attributes:
      seeds: [..., B, 2] int32, seeds of the crops.
      index: int64, numbers of the examples in the source.
      repeat_offset: int64, added to `index` in the batch, so that an image that comes twice gets two numbers.
      draws: [..., B, V, D] float32, random numbers of the crops.
      wanted: bool, False for padding.
    """

    seeds: tf.Tensor
    index: tf.Tensor
    repeat_offset: tf.Tensor
    draws: tf.Tensor
    wanted: tf.Tensor


class _Pixels(NamedTuple):
    """A source decoded in memory, as tensors; see `source.Resident`."""

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
    epoch is a separate permutation. A shard makes the rows of its replicas, one element for each step and replica:
    counted over all shards, replica k sees the rows from `k * per_replica_batch_size` on. Starting at a later step
    replays nothing.

    An unreadable image is replaced by another one, chosen by (seed, step, example), so that a resumed run sees the
    same images. It is added to `bad_images`, which ends the run once there are too many.

    Args:
      source: source of the images.
      prepare: crops to take of each image.
      global_batch_size: batch size over all shards, a multiple of num_shards * per_replica_batch_size.
      per_replica_batch_size: rows of one element.
      seed: seed of the run.
      first_step: step to start at.
      num_steps: number of steps to make.
      shard_index: number of this pipeline, from 0.
      num_shards: number of pipelines.
      bad_images: counter of unreadable images; without it the first one raises an error.
      stream_name: name of the random stream; different names give different orders and crops of the same source.

    Returns:
      Elements with the crops by name, [b, S, S, 3] uint8, `label` [b] int32 (-1 where unknown) and `index` [b] int64,
      the examples' numbers in the source, which determine their random numbers. In a batch that spans several epochs,
      the numbers rise by `source.num_examples` with each epoch, so that two copies of an image are augmented
      differently.
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
        repeat_offset = epochs * source.num_examples
        seeds = example_seed(seed, stream_id, step[:, None], index + repeat_offset)
        return _Plan(seeds, index, repeat_offset, prepare.draws(seeds), tf.ones_like(index, tf.bool))

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
    """Makes the evaluation batches of one input pipeline: each example once, in the source's order.

    Every shard makes the same number of elements of the same shape: the last ones are padded, with weight 0. An
    unreadable image has weight 0, too, and is added to `bad_images`.

    Args:
      source: source of the images.
      prepare: crops to take of each image.
      batch_size: batch size over all shards, a multiple of num_shards * per_replica_batch_size.
      per_replica_batch_size: rows of one element.
      shard_index: number of this pipeline, from 0.
      num_shards: number of pipelines.
      bad_images: counter of unreadable images; without it the first one raises an error.

    Returns:
      Elements like those of `train_dataset`, and `weight` [b] float32: 1 for an example, 0 for padding and unreadable
      images.
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
    """Returns the number of replicas that a shard feeds."""
    replicas, rest = divmod(batch_size, per_replica * num_shards)
    if rest or not replicas:
        raise ValueError(f"a batch of {batch_size} does not divide over {num_shards} shards in parts of {per_replica}")
    return replicas


def _rows(replica: tf.Tensor, per_replica: int) -> tf.Tensor:
    """Returns the rows of the global batch, [n, b] int64, that replicas see; replica: [n] their numbers."""
    return replica[:, None] * per_replica + tf.range(per_replica, dtype=tf.int64)


def _plans(plan: Callable[[tf.Tensor], _Plan], elements: int, per_replica: int) -> tf.data.Dataset:
    """Makes one plan for each element, many at a time."""
    elements_per_call = max(1, _EXAMPLES_PER_PLAN // per_replica)

    def plan_from(first: tf.Tensor) -> _Plan:
        return plan(tf.range(first, tf.minimum(first + elements_per_call, elements)))

    starts = tf.data.Dataset.range(0, elements, elements_per_call)
    return starts.map(plain(plan_from)).prefetch(1).unbatch()


def _finished(batches: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    # Each pipeline is a shard already.
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
    """Makes batches, with `weight`, from plans."""
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
            return _map(plans, lambda plan: _from_memory(pixels, prepare.of_batch, plan, replace=replace))
        make_example = functools.partial(_from_memory, pixels, prepare.of_image, replace=replace)
    else:
        make_example = _reader(source, prepare, bad_images, replace=replace)
    return _map(plans.unbatch(), make_example).batch(per_replica, drop_remainder=True)


def _map(dataset: tf.data.Dataset, function: Callable) -> tf.data.Dataset:
    """Maps in parallel and in order."""
    return dataset.map(plain(function), num_parallel_calls=tf.data.AUTOTUNE)


def _from_memory(
    pixels: _Pixels, crop: Callable[[tf.Tensor, tf.Tensor], Batch], plan: _Plan, *, replace: bool
) -> Batch:
    """Crops images in memory: one example or a batch."""
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
        "index": index + plan.repeat_offset,
        "weight": tf.cast(usable, tf.float32),
    }


def _reader(
    source: Source, prepare: Prepare, bad_images: BadImages | IgnoredImages | None, *, replace: bool
) -> Callable[[_Plan], Batch]:
    """Returns a function that reads, decodes and crops one example; it replaces unreadable ones or sets weight 0."""

    def read(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        if bad_images is not None:
            # A network failure does not make an image a bad one, so reading over a network may not fail silently.
            return try_decode(source.read, index, bit_depth=source.bit_depth, read_may_fail=not source.remote)
        encoded, label = source.read(index)
        return source.decode(encoded), label, tf.constant(True)

    # Used in two places but traced once.
    read = tf.function(read, input_signature=[tf.TensorSpec([], tf.int64)], autograph=False)
    nothing = (tf.zeros([1, 1, 3], tf.uint8), tf.constant(-1), tf.constant(False))

    def make_example(plan: _Plan) -> Batch:
        image, label, sound = tf.cond(plan.wanted, lambda: read(plan.index), lambda: nothing)
        index = plan.index
        if bad_images is not None and replace:
            image, label, sound, index, _ = tf.while_loop(
                lambda image, label, sound, index, attempt: tf.logical_not(sound) & (attempt <= _MAX_REPLACEMENTS),
                lambda image, label, sound, index, attempt: read_another(plan.seeds, index, attempt),
                (image, label, sound, index, tf.constant(1, tf.int64)),
                shape_invariants=(tf.TensorShape([None, None, 3]), *[tf.TensorShape([])] * 4),
            )
            tf.debugging.assert_equal(sound, True, f"no readable image among {_MAX_REPLACEMENTS}")
        elif bad_images is not None:
            noted = tf.cond(plan.wanted & ~sound, lambda: bad_images.add_in_graph(index), lambda: True)
            with tf.control_dependencies([noted]):
                image = tf.identity(image)
        crops = prepare.of_image(image, plan.draws)
        return {**crops, "label": label, "index": index + plan.repeat_offset, "weight": tf.cast(sound, tf.float32)}

    def read_another(seeds: tf.Tensor, index: tf.Tensor, attempt: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with tf.control_dependencies([bad_images.add_in_graph(index)]):
            index = replacement(seeds, attempt, source.num_examples)
        return (*read(index), index, attempt + 1)

    return make_example


class Input(NamedTuple):
    """A stream of examples.

    Attributes:
      source: source of the images.
      prepare: crops that the host takes of each image; see `host_crops.Prepare`.
      batch_size: examples per step over all replicas; None for the run's global batch size.
    """

    source: Source
    prepare: Callable
    batch_size: int | None = None
