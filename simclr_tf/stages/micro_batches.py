"""Outputs of a big batch and their exact gradient, with the activations of one micro-batch in memory at a time.

A first pass computes the outputs of all micro-batches and keeps nothing else. Once the loss's gradient with respect to
every output is known, a second pass computes each micro-batch again to get its gradient (Gao et al. 2021, "Scaling deep
contrastive learning batch size under memory limited setup"). The loss sees the whole batch; batch norm sees one
micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from simclr_tf.core.tf import tf
from simclr_tf.distribute import collectives
from simclr_tf.models.normalization import frozen_moving_averages

# Name -> tensor, possibly nested.
Tensors = dict[str, Any]
Function = Callable[[Tensors], dict[str, tf.Tensor]]


def cut(values: Tensors, count: int) -> Tensors:
    """Splits [B, ...] into [count, B / count, ...]; micro-batch i takes rows i, i + count, ...

    With this stride, micro-batches over all replicas hold the same examples whatever the number of replicas.
    """

    def split(value: tf.Tensor) -> tf.Tensor:
        rows, *shape = value.shape
        parts = tf.reshape(value, [rows // count, count, *shape])
        return tf.transpose(parts, [1, 0, *range(2, len(shape) + 2)])

    return tf.nest.map_structure(split, values)


def _joined(values: Tensors) -> Tensors:
    """Joins [count, B / count, ...] to [B, ...], the inverse of `cut`."""

    def join(value: tf.Tensor) -> tf.Tensor:
        count, rows, *shape = value.shape
        return tf.reshape(tf.transpose(value, [1, 0, *range(2, len(shape) + 2)]), [count * rows, *shape])

    return tf.nest.map_structure(join, values)


def _part(values: Tensors, i: tf.Tensor) -> Tensors:
    return tf.nest.map_structure(lambda value: value[i], values)


def _fold(step: Callable, state: list[tf.Tensor], count: int) -> list[tf.Tensor]:
    """Folds state = step(i, state) over the micro-batches; unrolls the loop if replicas cannot communicate in one."""
    if collectives.may_loop():
        return tf.while_loop(
            lambda i, *_: i < count,
            lambda i, *state: (i + 1, *step(i, list(state))),
            (tf.constant(0), *state),
            parallel_iterations=1,
            maximum_iterations=count,
        )[1:]
    for i in range(count):
        # Without this dependency the parts could run at the same time, and all their activations would be in memory.
        with tf.control_dependencies(state):
            state = step(tf.constant(i), state)
    return state


def outputs(function: Function, inputs: Tensors, count: int, returns: dict[str, tf.TensorSpec]) -> Tensors:
    """Computes a function of a batch one micro-batch at a time, without a gradient.

    Args:
      function: function of name -> tensor (possibly nested) that returns name -> tensor. The first dimension of each
        tensor is the examples of the micro-batch.
      inputs: name -> [B, ...]; all shapes are known when traced, and B is a multiple of `count`.
      count: number of micro-batches.
      returns: name -> shape and type of what the function returns for one example.

    Returns:
      Name -> [B, ...], in the order of the inputs.
    """
    parts = cut(inputs, count)

    def step(i: tf.Tensor, state: list[tf.Tensor]) -> list[tf.Tensor]:
        found = function(_part(parts, i))
        return [tf.tensor_scatter_nd_update(whole, [[i]], found[name][None]) for name, whole in zip(returns, state)]

    rows = tf.nest.flatten(parts)[0].shape[1]
    state = [tf.zeros([count, rows, *spec.shape], spec.dtype) for spec in returns.values()]
    return _joined(dict(zip(returns, _fold(step, state, count))))


def outputs_with_gradient(
    function: Function,
    inputs: Tensors,
    count: int,
    returns: dict[str, tf.TensorSpec],
    variables: Sequence[tf.Variable],
) -> Tensors:
    """Computes what `outputs` does, with a gradient for the variables but not for the inputs.

    Batch norm updates its moving averages in the first pass, once for each micro-batch.

    Args:
      function: see `outputs`.
      inputs: see `outputs`.
      count: see `outputs`.
      returns: see `outputs`; floats.
      variables: variables that receive the gradient.

    Returns:
      See `outputs`.
    """
    found = {name: tf.stop_gradient(value) for name, value in outputs(function, inputs, count, returns).items()}

    def gradient(*upstream: tf.Tensor):
        wanted, parts = cut(dict(zip(returns, upstream)), count), cut(inputs, count)

        def step(i: tf.Tensor, sums: list[tf.Tensor]) -> list[tf.Tensor]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(variables)
                with frozen_moving_averages():
                    again = function(_part(parts, i))
            gradients = tape.gradient(
                [again[name] for name in returns],
                variables,
                output_gradients=[wanted[name][i] for name in returns],
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            return [total + tf.cast(part, total.dtype) for total, part in zip(sums, gradients)]

        totals = _fold(step, [tf.zeros(variable.shape, variable.dtype) for variable in variables], count)
        return [None] * len(returns) + list(totals)

    @tf.custom_gradient
    def attach(*tensors: tf.Tensor):
        return [tf.identity(value) for value in tensors[: len(returns)]], gradient

    # A custom gradient returns one gradient per argument, so the variables' values are passed in to get theirs out.
    values = [tf.convert_to_tensor(variable) for variable in variables]
    return dict(zip(returns, attach(*(found[name] for name in returns), *values)))
