"""Losses and what is recorded about them. Losses are per example; the training loop alone averages them."""

from __future__ import annotations

import math
from typing import NamedTuple

from simclr_tf import collectives
from simclr_tf.errors import UserError
from simclr_tf.stack import tf

# Stands for minus infinity where a view would be compared with itself; exp() of it is exactly 0 in every type.
_MASKED = -1e9


class Contrast(NamedTuple):
    """One NT-Xent evaluation, per image of this replica.

    Attributes:
      loss: [B], both directions summed.
      accuracy: [B], share of the two directions whose positive scores highest among the other view's images.
      entropy: [B], nats, of the prediction over the other view's images, averaged over the two directions.
      alignment: [B], squared distance of the two views on the sphere, in [0, 4] (Wang & Isola 2020, alpha = 2).
      uniformity: [B], each the batch's log mean Gaussian potential, in [-8, 0] (Wang & Isola 2020, t = 2): 0 when
        all is collapsed to a point.
    """

    loss: tf.Tensor
    accuracy: tf.Tensor
    entropy: tf.Tensor
    alignment: tf.Tensor
    uniformity: tf.Tensor


def check_temperature(owner: str, temperature: float) -> None:
    """Raises UserError unless `temperature` is a positive finite number."""
    if not isinstance(temperature, (int, float)) or not 0 < temperature < math.inf:
        raise UserError(f"{owner}.temperature is {temperature!r}; use a positive number, such as 0.1")


def nt_xent_chance(num_images: int) -> float:
    """Returns the NT-Xent loss of a network that tells nothing apart: 2 ln(2N - 1)."""
    return 2 * math.log(2 * num_images - 1)


def nt_xent(view_1: tf.Tensor, view_2: tf.Tensor, *, temperature: float) -> Contrast:
    """Normalized temperature-scaled cross-entropy over the global batch (Chen et al. 2020a).

    Each view's positive is the image's other view, among the 2N - 1 other views of all replicas.

    Args:
      view_1: [B, D] projections of this replica's first views, float32 or float64; any norm.
      view_2: [B, D] projections of the second views.
      temperature: divides the cosine similarities.

    Returns:
      A `Contrast`. Only `loss` carries gradients.
    """
    z1, z2 = tf.math.l2_normalize(view_1, axis=1), tf.math.l2_normalize(view_2, axis=1)
    all1, all2 = collectives.concat(z1), collectives.concat(z2)
    rows, columns = tf.shape(z1)[0], tf.shape(all1)[0]
    own = tf.one_hot(collectives.replica_id() * rows + tf.range(rows), columns, dtype=z1.dtype)
    masked = own * tf.constant(_MASKED, z1.dtype)

    def direction(queries: tf.Tensor, same: tf.Tensor, other: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        towards_other = tf.matmul(queries, other, transpose_b=True) / temperature
        towards_same = tf.matmul(queries, same, transpose_b=True) / temperature + masked
        positive = tf.reduce_sum(towards_other * own, axis=1)
        return tf.reduce_logsumexp(tf.concat([towards_other, towards_same], axis=1), axis=1) - positive, towards_other

    loss_1, logits_1 = direction(z1, all1, all2)
    loss_2, logits_2 = direction(z2, all2, all1)

    accuracy, entropy = _prediction(tf.stop_gradient(tf.stack([logits_1, logits_2])), tf.argmax(own, axis=1))
    still_1, still_2, still_all = (tf.stop_gradient(z) for z in (z1, z2, all1))
    alignment = tf.reduce_sum(tf.square(still_1 - still_2), axis=1)
    return Contrast(loss_1 + loss_2, accuracy, entropy, alignment, _uniformity(still_1, still_all, own))


def _prediction(logits: tf.Tensor, positives: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """logits: [2, B, N]; returns accuracy and entropy, [B] each, averaged over the two directions."""
    hit = tf.cast(tf.equal(tf.argmax(logits, axis=2), positives[None]), logits.dtype)
    log_probabilities = tf.nn.log_softmax(logits)
    entropy = -tf.reduce_sum(tf.exp(log_probabilities) * log_probabilities, axis=2)
    return tf.reduce_mean(hit, axis=0), tf.reduce_mean(entropy, axis=0)


def _uniformity(rows: tf.Tensor, everything: tf.Tensor, own: tf.Tensor) -> tf.Tensor:
    squared_distance = 2 - 2 * tf.matmul(rows, everything, transpose_b=True)
    potential = tf.reduce_sum(tf.exp(-2 * squared_distance) * (1 - own), axis=1)
    others = tf.cast(tf.maximum(tf.shape(everything)[0] - 1, 1), rows.dtype)
    mean = collectives.all_mean(tf.reduce_mean(potential / others))
    return tf.ones_like(potential) * tf.math.log(mean)


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of classes given as numbers.

    Args:
      labels: [B] int32; -1 means no label, and the example's loss is 0.
      logits: [B, classes].

    Returns:
      [B] in the logits' type.
    """
    known = labels >= 0
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.where(known, labels, 0), logits=logits)
    return tf.where(known, losses, tf.zeros_like(losses))


def distillation(teacher_logits: tf.Tensor, student_logits: tf.Tensor, *, temperature: float) -> tf.Tensor:
    """Cross-entropy of the student's class probabilities under the teacher's (Hinton et al. 2015; Chen et al. 2020b, eq. 2).

    Args:
      teacher_logits: [B, classes].
      student_logits: [B, classes], of the same type.
      temperature: divides the logits of both sides. As in the paper, the loss is not multiplied by its square.

    Returns:
      [B]: -sum_y P_teacher(y; T) log P_student(y; T).
    """
    wanted = tf.nn.softmax(tf.stop_gradient(teacher_logits) / temperature)
    return tf.nn.softmax_cross_entropy_with_logits(labels=wanted, logits=student_logits / temperature)


def top_1(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns [B] of 1 where the highest logit is the label's, else 0, in the logits' type."""
    return tf.cast(tf.equal(tf.argmax(logits, axis=1, output_type=labels.dtype), labels), logits.dtype)
