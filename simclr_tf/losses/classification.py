"""Losses and metrics on class logits, per example: cross-entropy, distillation, divergence, top-1 accuracy."""

from __future__ import annotations

from simclr_tf.core.tf import tf


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Computes the softmax cross-entropy of integer labels.

    Args:
      labels: [B] int32; -1 marks an unlabeled example, whose loss is 0.
      logits: [B, classes].

    Returns:
      [B] in the logits' type.
    """
    known = labels >= 0
    # TensorFlow fails on a label of -1 on CPUs and returns NaN on GPUs, so unlabeled examples borrow class 0.
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.where(known, labels, 0), logits=logits)
    return tf.where(known, losses, tf.zeros_like(losses))


def distillation(teacher_logits: tf.Tensor, student_logits: tf.Tensor, *, temperature: float) -> tf.Tensor:
    """Computes T^2 times the cross-entropy between the teacher's and the student's classes (Chen et al. 2020b, eq. 2).

    The factor T^2 keeps the scale of the gradients independent of T (Hinton et al. 2015, section 2). The paper's
    equation omits it; the authors' released code includes it.

    Args:
      teacher_logits: [B, classes].
      student_logits: [B, classes], of the same type.
      temperature: T, which divides the logits of both networks.

    Returns:
      [B]: -T^2 sum_y P_teacher(y; T) log P_student(y; T).
    """
    targets = tf.nn.softmax(tf.stop_gradient(teacher_logits) / temperature)
    return temperature**2 * tf.nn.softmax_cross_entropy_with_logits(labels=targets, logits=student_logits / temperature)


def divergence(teacher_logits: tf.Tensor, student_logits: tf.Tensor) -> tf.Tensor:
    """Computes the Kullback-Leibler divergence from the teacher's classes to the student's, at temperature 1.

    Args:
      teacher_logits: [B, classes].
      student_logits: [B, classes], of the same type.

    Returns:
      [B] in nats, at least 0: sum_y P_teacher(y) (log P_teacher(y) - log P_student(y)).
    """
    teacher, student = tf.nn.log_softmax(teacher_logits), tf.nn.log_softmax(student_logits)
    return tf.reduce_sum(tf.exp(teacher) * (teacher - student), axis=1)


def top_1(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns [B] in the logits' type: 1 where the label has the highest logit, else 0."""
    return tf.cast(tf.equal(tf.argmax(logits, axis=1, output_type=labels.dtype), labels), logits.dtype)
