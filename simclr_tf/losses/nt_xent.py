"""NT-Xent, the contrastive loss, per example: from the whole similarity matrix or tile by tile."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from simclr_tf.core import checks
from simclr_tf.core.tf import tf
from simclr_tf.distribute import collectives
from simclr_tf.losses import nt_xent_tiled

# "auto" tiles when one direction has more similarities than this on a replica: 16 MiB in float32.
_TILED_ABOVE = 2**22
NT_XENT_KINDS = ("auto", "plain", "tiled")


class Contrast(NamedTuple):
    """NT-Xent and its metrics, per image of this replica.

    Attributes:
      loss: [B], the sum of both directions.
      accuracy: [B], the share of the two directions in which the positive scores highest among the other view's images.
      entropy: [B], the entropy in nats of the prediction over the other view's images, averaged over both directions.
      alignment: [B], the squared distance between the two views on the unit sphere, in [0, 4] (Wang & Isola 2020,
        alpha = 2).
      uniformity: [B], the batch's log mean Gaussian potential, repeated, in [-8, 0] (Wang & Isola 2020, t = 2); 0 means
        that all images have collapsed to one point.
    """

    loss: tf.Tensor
    accuracy: tf.Tensor
    entropy: tf.Tensor
    alignment: tf.Tensor
    uniformity: tf.Tensor


class NtXentKeys(NamedTuple):
    """Keys from a momentum network that queries are compared with; see `stages.memory`. They take no gradient.

    Attributes:
      view_1: [N, D], keys of norm 1 of all replicas' first views.
      view_2: [N, D], the same for the second views.
      queue: [Q, D], keys from earlier steps.
      filled: scalar int32, the number of rows at the start of the queue that count.
    """

    view_1: tf.Tensor
    view_2: tf.Tensor
    queue: tf.Tensor
    filled: tf.Tensor


def nt_xent_chance(num_images: int, queue_size: int = 0) -> float:
    """Returns the NT-Xent loss at chance, when all similarities are equal: 2 ln(2N - 1 + Q)."""
    return 2 * math.log(2 * num_images - 1 + queue_size)


def nt_xent(
    view_1: tf.Tensor, view_2: tf.Tensor, *, temperature: float, keys: NtXentKeys | None = None, kind: str = "auto"
) -> Contrast:
    """Computes the normalized temperature-scaled cross-entropy over the global batch (Chen et al. 2020a).

    A view's positive is the other view of its image; its candidates are the 2N - 1 other views of all replicas. With
    `keys`, its positive is the key of its image's other view; its candidates are that key, the keys of both views of
    all other images, and the queue.

    Args:
      view_1: [B, D] projections of this replica's first views, float32 or float64, of any norm.
      view_2: [B, D] projections of the second views.
      temperature: divisor of the cosine similarities.
      keys: keys to compare the projections with; None compares the projections with each other.
      kind: "plain" computes the whole similarity matrix; "tiled" holds only a few MiB of it at a time, and computes it
        twice; "auto" tiles where the matrix would be large. The results differ only in the order of summation.

    Returns:
      A `Contrast`. Only `loss` carries gradients.
    """
    z1, z2 = tf.math.l2_normalize(view_1, axis=1), tf.math.l2_normalize(view_2, axis=1)
    all1, all2 = (keys.view_1, keys.view_2) if keys is not None else tf.unstack(_gathered(z1, z2), axis=1)
    queue = keys and (keys.queue, keys.filled)
    own = collectives.replica_id() * tf.shape(z1)[0] + tf.range(tf.shape(z1)[0])
    score = _tiled if _wants_tiles(kind, z1, all1, keys) else _plain

    # The positives are this replica's own rows of the other view.
    positives1, positives2 = (z1, z2) if keys is None else (tf.gather(all1, own), tf.gather(all2, own))

    def direction(queries: tf.Tensor, same: tf.Tensor, other: tf.Tensor, positives: tf.Tensor):
        logsumexp, best, entropy = score(queries, same, other, queue, own, temperature)
        positive = tf.reduce_sum(queries * positives, axis=1) / temperature
        return logsumexp - positive, tf.cast(tf.equal(best, own), queries.dtype), entropy

    loss_1, hit_1, entropy_1 = direction(z1, all1, all2, positives2)
    loss_2, hit_2, entropy_2 = direction(z2, all2, all1, positives1)
    constant1, constant2 = tf.stop_gradient(z1), tf.stop_gradient(z2)
    alignment = tf.reduce_sum(tf.square(constant1 - constant2), axis=1)
    # Keys come from the momentum network; uniformity describes the trained network's own projections.
    everything = tf.stop_gradient(all1) if keys is None else collectives.concat(constant1)
    return Contrast(
        loss_1 + loss_2,
        (hit_1 + hit_2) / 2,
        (entropy_1 + entropy_2) / 2,
        alignment,
        _uniformity(score, constant1, everything, own),
    )


def _gathered(view_1: tf.Tensor, view_2: tf.Tensor) -> tf.Tensor:
    """Returns both views of all replicas, [N, 2, D], with one collective instead of two."""
    return collectives.concat(tf.stack([view_1, view_2], axis=1))


def _wants_tiles(kind: str, queries: tf.Tensor, batch: tf.Tensor, keys: NtXentKeys | None) -> bool:
    checks.choice("Pretrain.nt_xent", kind, NT_XENT_KINDS)
    rows, columns = queries.shape[0], batch.shape[0]
    if kind != "auto" or rows is None or columns is None:
        return kind == "tiled"
    return rows * (2 * columns + (keys.queue.shape[0] if keys is not None else 0)) > _TILED_ABOVE


def _plain(queries, same, other, queue, own, temperature):
    """Scores queries with the whole similarity matrix.

    Returns:
      Three [B]: the log-sum-exp over all candidates but the query itself, the index of the most similar image of the
      other view, and the entropy in nats of the prediction over the other view's images. Without `other`, the last two
      are None.
    """

    def similarities(candidates: tf.Tensor) -> tf.Tensor:
        return tf.matmul(queries, candidates, transpose_b=True) / temperature

    masked = tf.constant(nt_xent_tiled.MASKED, queries.dtype)
    itself = tf.range(tf.shape(same)[0])[None] == own[:, None]
    logits = []
    if other is not None:
        towards_other = similarities(other)
        logits.append(towards_other)
        log_probabilities = tf.nn.log_softmax(tf.stop_gradient(towards_other))
        best = tf.argmax(log_probabilities, axis=1, output_type=own.dtype)
        entropy = -tf.reduce_sum(tf.exp(log_probabilities) * log_probabilities, axis=1)
    else:
        best = entropy = None
    logits.append(tf.where(itself, masked, similarities(same)))
    if queue is not None:
        past, filled = queue
        logits.append(tf.where((tf.range(tf.shape(past)[0]) < filled)[None], similarities(past), masked))
    return tf.reduce_logsumexp(tf.concat(logits, axis=1), axis=1), best, entropy


def _tiled(queries, same, other, queue, own, temperature):
    """Returns what `_plain` does, computed tile by tile."""
    parts = [nt_xent_tiled.scores(queries, same, temperature=temperature, own=own)]
    if queue is not None:
        parts.append(nt_xent_tiled.scores(queries, queue[0], temperature=temperature, valid=queue[1]))
    best = entropy = None
    if other is not None:
        towards_other = nt_xent_tiled.scores(queries, other, temperature=temperature, details=True)
        parts.append(towards_other)
        best = towards_other.best
        entropy = tf.stop_gradient(towards_other.logsumexp) - towards_other.mean
    return tf.reduce_logsumexp(tf.stack([part.logsumexp for part in parts]), axis=0), best, entropy


def _uniformity(score: Callable, rows: tf.Tensor, everything: tf.Tensor, own: tf.Tensor) -> tf.Tensor:
    """Returns [B], each the log of the mean of exp(-2 d^2) over all pairs of different images.

    On the unit sphere -2 d^2 equals 4 cos - 4, so the scorers of NT-Xent serve at a temperature of 1/4.
    """
    potential, _, _ = score(rows, everything, None, None, own, 0.25)
    others = tf.cast(tf.maximum(tf.shape(everything)[0] - 1, 1), rows.dtype)
    mean = collectives.all_mean(tf.reduce_mean(tf.exp(potential - 4) / others))
    return tf.ones_like(potential) * tf.math.log(mean)
