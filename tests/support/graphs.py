"""What is in TensorFlow's graphs."""

from __future__ import annotations

from simclr_tf.core.tf import tf


def convolutions(graph: tf.Graph) -> list[tuple[str, tuple[int, ...], int]]:
    """Type, kernel's size and stride of every convolution and its gradients, in nested functions too."""
    found = []
    kernels = {
        "Conv2D": lambda operation: operation.inputs[1].shape,
        "Conv2DBackpropInput": lambda operation: operation.inputs[1].shape,
        "Conv2DBackpropFilter": lambda operation: operation.outputs[0].shape,
    }
    for operation in graph.get_operations():
        if operation.type in kernels:
            size = tuple(kernels[operation.type](operation)[:2])
            found.append((operation.type, size, max(operation.get_attr("strides"))))
    for function in graph._functions.values():
        found += convolutions(function.graph)
    return found
