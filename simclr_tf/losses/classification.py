"""Losses and what is recorded about them. Losses are per example; the training loop alone averages them."""

from __future__ import annotations

from simclr_tf.core.tf import tf


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
    """T^2 times the cross-entropy of the student's class probabilities under the teacher's (Chen et al. 2020b, eq. 2).

    The factor keeps the scale of the gradients when T changes (Hinton et al. 2015, section 2). The paper's equation
    leaves it out; the authors' released code has it.

    Args:
      teacher_logits: [B, classes].
      student_logits: [B, classes], of the same type.
      temperature: T, divides the logits of both sides.

    Returns:
      [B]: -T^2 sum_y P_teacher(y; T) log P_student(y; T).
    """
    wanted = tf.nn.softmax(tf.stop_gradient(teacher_logits) / temperature)
    return temperature**2 * tf.nn.softmax_cross_entropy_with_logits(labels=wanted, logits=student_logits / temperature)


def divergence(teacher_logits: tf.Tensor, student_logits: tf.Tensor) -> tf.Tensor:
    """Kullback-Leibler divergence of the student's class probabilities from the teacher's, both at temperature 1.

    Args:
      teacher_logits: [B, classes].
      student_logits: [B, classes], of the same type.

    Returns:
      [B], nats, at least 0: sum_y P_teacher(y) (log P_teacher(y) - log P_student(y)).
    """
    wanted, given = tf.nn.log_softmax(teacher_logits), tf.nn.log_softmax(student_logits)
    return tf.reduce_sum(tf.exp(wanted) * (wanted - given), axis=1)


def top_1(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns [B] of 1 where the highest logit is the label's, else 0, in the logits' type."""
    return tf.cast(tf.equal(tf.argmax(logits, axis=1, output_type=labels.dtype), labels), logits.dtype)
