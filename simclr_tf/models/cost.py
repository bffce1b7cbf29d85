"""The cost of a network: parameters and FLOPs."""

from __future__ import annotations

import json
import math

from simclr_tf.core.tf import tf
from simclr_tf.models.network import Network

# Architecture and image size -> FLOPs, since building the graph to count them takes seconds.
_known_flops: dict[str, int] = {}


def count_parameters(module: tf.Module) -> int:
    """Returns the number of parameters, including batch norm's moving averages, as published tables count them."""
    return sum(math.prod(variable.shape) for variable in module.variables)


def flops_per_image(network: Network) -> int:
    """Returns the FLOPs of the encoder's forward pass on one image; a multiply-add counts as two.

    Like papers, this counts convolutions and matrix products only; everything else adds a few per cent.
    """
    size = network.image_size
    key = json.dumps([network.encoder.describe(), size], sort_keys=True)
    if key in _known_flops:
        return _known_flops[key]

    @tf.function(input_signature=[tf.TensorSpec([1, size, size, 3], network.dtype)], autograph=False)
    def forward(images):
        return network.encoder(images, training=False)["final_avg_pool"]

    total = 0
    for operation in forward.get_concrete_function().graph.get_operations():
        if operation.type == "Conv2D":
            total += 2 * math.prod(operation.outputs[0].shape) * math.prod(operation.inputs[1].shape[:3])
        elif operation.type in ("MatMul", "BatchMatMulV2"):
            total += 2 * math.prod(operation.outputs[0].shape) * operation.inputs[0].shape[-1]
    _known_flops[key] = total
    return total
