"""Running a network over a whole split."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.data.bad_images import BadImages, IgnoredImages, bad_image_counter
from simclr_tf.data.pipeline import Input, eval_dataset
from simclr_tf.distribute import cluster, collectives


def stream(
    strategy: tf.distribute.Strategy,
    examples: Input,
    compute: Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]],
    *,
    batch_size: int,
    bad_images: BadImages | IgnoredImages | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Computes values for every example of a split, in order, and yields them batch by batch.

    Args:
      strategy: strategy whose replicas share the work.
      examples: source and crop to run over.
      compute: function that takes a batch and returns name -> [B, ...].
      batch_size: batch size over all replicas. The last batch is padded; the padding is cut off again.
      bad_images: counter of unreadable images, which are left out; with None the first one is an error.

    Yields:
      Name -> [rows, ...], including `index` and `label`.

    Raises:
      UserError: if too many images are unreadable.
    """
    replicas = strategy.num_replicas_in_sync
    per_replica = max(1, batch_size // replicas)

    def shard(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return eval_dataset(
            examples.source,
            examples.prepare,
            batch_size=per_replica * replicas,
            per_replica_batch_size=per_replica,
            shard_index=context.input_pipeline_id,
            num_shards=context.num_input_pipelines,
            bad_images=bad_images,
        )

    def replica_step(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        outputs = {**compute(batch), **{name: batch[name] for name in ("index", "label", "weight")}}
        return {name: collectives.concat(value) for name, value in outputs.items()}

    @tf.function(reduce_retracing=True, autograph=False)
    def step(batch):
        outputs = strategy.run(replica_step, args=(batch,))
        return {name: strategy.experimental_local_results(value)[0] for name, value in outputs.items()}

    try:
        for batch in strategy.distribute_datasets_from_function(shard):
            outputs = {name: value.numpy() for name, value in step(batch).items()}
            real = outputs.pop("weight") > 0
            yield {name: value[real] for name, value in outputs.items()}
    except tf.errors.OpError:  # If it was one bad image too many, the counter raises an error that names the images.
        if bad_images is not None:
            bad_images.check()
        raise
    if bad_images is not None:
        bad_images.check()


def collect(
    strategy: tf.distribute.Strategy,
    examples: Input,
    compute: Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]],
    *,
    batch_size: int,
    max_bad_images: int = 100,
) -> dict[str, np.ndarray]:
    """Computes values for every example of a split, in order, and returns all of them.

    Args:
      strategy: see `stream`.
      examples: see `stream`.
      compute: see `stream`.
      batch_size: see `stream`.
      max_bad_images: number of unreadable images that may be left out.

    Returns:
      Name -> [examples, ...], including `index` and `label`.

    Raises:
      UserError: if too many images, or all of them, are unreadable.
    """
    bad_images = bad_image_counter(max_bad_images, examples.source, elsewhere=cluster.reads_elsewhere(strategy))
    rows: dict[str, list[np.ndarray]] = {}
    for outputs in stream(strategy, examples, compute, batch_size=batch_size, bad_images=bad_images):
        for name, value in outputs.items():
            rows.setdefault(name, []).append(value)
    if not rows:
        raise UserError(f"{examples.source.name} has no readable image; choose another split")
    whole = {name: np.concatenate(parts) for name, parts in rows.items()}
    order = np.argsort(whole["index"], kind="stable")
    return {name: value[order] for name, value in whole.items()}
