"""Running a network over a whole split, and what accuracy it reaches there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from simclr_tf import collectives
from simclr_tf.data.bad_images import BadImages
from simclr_tf.data.pipeline import eval_dataset
from simclr_tf.errors import UserError
from simclr_tf.stack import tf
from simclr_tf.stages.base import Input


def collect(
    strategy: tf.distribute.Strategy,
    examples: Input,
    compute: Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]],
    *,
    batch_size: int,
    max_bad_images: int = 100,
) -> dict[str, np.ndarray]:
    """Computes something for every example of a split, each once and in order.

    Args:
      strategy: shares the work.
      examples: what to run over.
      compute: takes a batch and returns name -> [B, ...].
      batch_size: over all replicas; the last batch is padded and cut again.
      max_bad_images: how many unreadable images may be left out.

    Returns:
      name -> [examples, ...], with `index` and `label` among them.
    """
    bad_images = BadImages(max_bad_images, examples.source) if examples.source.may_fail else None
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

    def one(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        outputs = {**compute(batch), **{name: batch[name] for name in ("index", "label", "weight")}}
        return {name: collectives.concat(value) for name, value in outputs.items()}

    @tf.function(reduce_retracing=True)
    def step(batch):
        outputs = strategy.run(one, args=(batch,))
        return {name: strategy.experimental_local_results(value)[0] for name, value in outputs.items()}

    rows: dict[str, list[np.ndarray]] = {}
    try:
        for batch in strategy.distribute_datasets_from_function(shard):
            outputs = {name: value.numpy() for name, value in step(batch).items()}
            real = outputs.pop("weight") > 0
            for name, value in outputs.items():
                rows.setdefault(name, []).append(value[real])
    except tf.errors.OpError:
        if bad_images is not None:
            bad_images.check()
        raise
    if bad_images is not None:
        bad_images.check()
    if not rows:
        raise UserError(f"{examples.source.name} has no readable image; choose another split")
    whole = {name: np.concatenate(parts) for name, parts in rows.items()}
    order = np.argsort(whole["index"], kind="stable")
    return {name: value[order] for name, value in whole.items()}


def classification(labels: np.ndarray, logits: np.ndarray, class_names: list[str]) -> dict:
    """Measures a classifier.

    Args:
      labels: [N] int; -1 means unlabelled and is left out.
      logits: [N, classes].
      class_names: [classes].

    Returns:
      `examples`, `top_1`, `top_5` (in [0, 1]; top_5 only with more than five classes) and `per_class`, class name ->
      top-1 accuracy (None for a class without examples).

    Raises:
      UserError: when nothing is labelled.
    """
    labelled = labels >= 0
    labels, logits = labels[labelled], np.asarray(logits[labelled], np.float64)
    if not len(labels):
        raise UserError("none of the images to evaluate on has a label; choose a labelled split")
    # The label's rank among the logits; of equal logits the first counts as the higher, as in argmax.
    own = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[1])[None] < labels[:, None]
    rank = np.sum((logits > own) | ((logits == own) & earlier), axis=1)
    report = {"examples": int(len(labels)), "top_1": float(np.mean(rank == 0))}
    if logits.shape[1] > 5:
        report["top_5"] = float(np.mean(rank < 5))
    report["per_class"] = {
        name: float(np.mean(rank[labels == i] == 0)) if np.any(labels == i) else None for i, name in enumerate(class_names)
    }
    return report
