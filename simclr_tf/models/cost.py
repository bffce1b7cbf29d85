"""What a network costs: parameters and FLOPs."""

from __future__ import annotations

import json
import math

from simclr_tf.core.tf import tf
from simclr_tf.models.network import Network

# Architecture and image size -> FLOPs: making the graph to count takes seconds.
_known_flops: dict[str, int] = {}


def count_parameters(module: tf.Module) -> int:
    """Returns the number of values in a network, a batch norm's moving averages included, as published tables count."""
    return sum(math.prod(variable.shape) for variable in module.variables)


def flops_per_image(network: Network) -> int:
    """Returns the FLOPs of the encoder's forward pass on one image, a multiplication and an addition counted as two.

    Convolutions and matrix products are counted, as papers do; the rest is a few per cent.
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
