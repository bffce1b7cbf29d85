"""Weights for PyTorch: a state dict that torchvision's ResNet loads, as a safetensors file (no pickle, no PyTorch).

Torchvision can express plain bottleneck networks (depth 50, 101, 152, 200) of width 1 with the ImageNet stem. Their
convolutions agree: both libraries pad strided ones by (k - 1) / 2 on either side and put a block's stride on its 3x3.
Only the pooling after the stem differs. Ours, like the published one, pads as TensorFlow's SAME, which on maps of even
size adds one row and column at the end; torchvision's pads at the start. With

    model.maxpool = torch.nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)

the results agree for images whose sides are multiples of 4. `docs/export.md` says how much they differ without it.
"""

from __future__ import annotations

import json
import struct

import numpy as np

from simclr_tf.commands.export.check import TOLERANCE, relative
from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf
from simclr_tf.models.blocks import ConvNorm, basic_block
from simclr_tf.models.means import spatial_mean
from simclr_tf.models.network import Network
from simclr_tf.models.normalization import BatchNorm
from simclr_tf.models.resnet import DEPTHS

FILE = "model.safetensors"
_TYPES = {"float32": "F32", "int64": "I64"}


def why_not(network: Network) -> str | None:
    """Returns the reason why torchvision's ResNet cannot hold a network, or None if it can."""
    encoder = network.encoder
    if encoder.sk_ratio or encoder.se_ratio:
        return "selective kernels and squeeze-and-excitation are not in torchvision's ResNet"
    if encoder.stem_kind != "imagenet":
        return "the CIFAR stem is not in torchvision's ResNet"
    if DEPTHS[encoder.depth][0] is basic_block:
        return f"the first block of ResNet-{encoder.depth} has a projection here, but none in torchvision"
    if encoder.width != 1:
        return f"torchvision's ResNet has no width {encoder.width:g} (its wide ones widen only the 3x3 convolutions)"
    return None


def state_dict(network: Network, *, classifier: bool) -> dict[str, np.ndarray]:
    """Returns a network's values by torchvision's names.

    Args:
      network: A network for which `why_not` returns None.
      classifier: Whether to include `fc`. For a classifier that reads the encoder's output, `fc` is one linear layer.
        For one that reads head layer k, it is k times (linear without bias, batch norm, ReLU), then the linear layer,
        numbered as in `torch.nn.Sequential`.

    Raises:
      UserError: Torchvision's ResNet cannot hold the network.
    """
    reason = why_not(network)
    if reason is not None:
        raise UserError(f"torchvision's ResNet cannot hold this network: {reason}; leave 'torch' out of export.formats")
    state: dict[str, np.ndarray] = {}
    _put_pair(state, "conv1", "bn1", network.encoder.stem[0])
    for group, blocks in enumerate(network.encoder.block_groups):
        for i, block in enumerate(blocks):
            prefix = f"layer{group + 1}.{i}"
            for k, pair in enumerate(block.branch):
                _put_pair(state, f"{prefix}.conv{k + 1}", f"{prefix}.bn{k + 1}", pair)
            if block.shortcut is not None:
                _put_pair(state, f"{prefix}.downsample.0", f"{prefix}.downsample.1", block.shortcut.project)
    if classifier:
        _put_classifier(state, network)
    return state


def _put_pair(state: dict, conv: str, norm: str, pair: ConvNorm) -> None:
    state[f"{conv}.weight"] = pair.conv.kernel.numpy().transpose(3, 2, 0, 1)
    _put_norm(state, norm, pair.norm)


def _put_norm(state: dict, name: str, norm: BatchNorm) -> None:
    state[f"{name}.weight"] = norm.gamma.numpy()
    state[f"{name}.bias"] = norm.beta.numpy() if norm.beta is not None else np.zeros_like(norm.gamma.numpy())
    state[f"{name}.running_mean"] = norm.moving_mean.numpy()
    state[f"{name}.running_var"] = norm.moving_variance.numpy()
    state[f"{name}.num_batches_tracked"] = np.int64(0)


def _put_classifier(state: dict, network: Network) -> None:
    depth, prefix = 0, "fc"
    if network.classifier_layer:
        if network.classifier_layer == network.head.num_layers:
            raise UserError(
                "torchvision's ResNet cannot hold this network: its classifier reads the projection itself, which has "
                "no ReLU; leave 'torch' out of export.formats"
            )
        for layer in network.head.projections[: network.classifier_layer]:
            state[f"fc.{depth}.weight"] = layer.dense.kernel.numpy().T
            _put_norm(state, f"fc.{depth + 1}", layer.norm)
            depth += 3  # Linear, batch norm, ReLU.
        prefix = f"fc.{depth}"
    state[f"{prefix}.weight"] = network.classifier.dense.kernel.numpy().T
    state[f"{prefix}.bias"] = network.classifier.dense.bias.numpy()


def forward(state: dict[str, np.ndarray], images: np.ndarray, depth: int) -> np.ndarray:
    """Computes the outputs of torchvision's ResNet, with the pooling above, from a state dict.

    Args:
      state: The result of `state_dict`.
      images: [B, H, W, 3]; sides must be multiples of 4 for agreement with this project.
      depth: The depth of the network.

    Returns:
      Logits [B, classes] or, without `fc`, features [B, 2048].
    """

    def conv(x, name, stride, padding):
        kernel = state[f"{name}.weight"].transpose(2, 3, 1, 0)
        x = tf.pad(x, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
        return tf.nn.conv2d(x, kernel, stride, "VALID")

    def norm(x, name):
        scale = state[f"{name}.weight"] / np.sqrt(state[f"{name}.running_var"] + 1e-5)
        return x * scale + (state[f"{name}.bias"] - state[f"{name}.running_mean"] * scale)

    x = tf.nn.relu(norm(conv(images, "conv1", 2, 3), "bn1"))
    # Ceil mode without padding leaves only the end incomplete. Zeros there change no maximum after a ReLU.
    odd = [(size - 3) % 2 for size in x.shape[1:3]]
    x = tf.nn.max_pool2d(tf.pad(x, [[0, 0], [0, odd[0]], [0, odd[1]], [0, 0]]), 3, 2, "VALID")
    for group, count in enumerate(DEPTHS[depth][2]):
        for i in range(count):
            name, stride = f"layer{group + 1}.{i}", 2 if group and not i else 1
            y = tf.nn.relu(norm(conv(x, f"{name}.conv1", 1, 0), f"{name}.bn1"))
            y = tf.nn.relu(norm(conv(y, f"{name}.conv2", stride, 1), f"{name}.bn2"))
            y = norm(conv(y, f"{name}.conv3", 1, 0), f"{name}.bn3")
            if f"{name}.downsample.0.weight" in state:
                x = norm(conv(x, f"{name}.downsample.0", stride, 0), f"{name}.downsample.1")
            x = tf.nn.relu(x + y)
    x = spatial_mean(x)
    if "fc.weight" in state:
        return (x @ state["fc.weight"].T + state["fc.bias"]).numpy()
    index = 0
    while f"fc.{index}.weight" in state:
        x = x @ state[f"fc.{index}.weight"].T
        if f"fc.{index}.bias" in state:
            return (x + state[f"fc.{index}.bias"]).numpy()
        x, index = tf.nn.relu(norm(x, f"fc.{index + 1}")), index + 3
    return x.numpy()


def save(state: dict[str, np.ndarray], path: str) -> None:
    """Writes a safetensors file: the length of the header in 8 bytes, the header in JSON, then all values."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, value in state.items():
        value = np.asarray(value)
        start, end = end, end + value.nbytes
        header[name] = {"dtype": _TYPES[value.dtype.name], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # Aligns the values.
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for value in state.values():
            file.write(np.ascontiguousarray(value).tobytes())


def load(path: str) -> dict[str, np.ndarray]:
    """Reads a file that `save` wrote."""
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    length = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    types = {short: np.dtype(long) for long, short in _TYPES.items()}
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], types[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def write(network: Network, path: str, images: np.ndarray, expected: np.ndarray, *, classifier: bool) -> float:
    """Writes a network's state dict, compares its outputs on images, and returns the relative error."""
    save(state_dict(network, classifier=classifier), path)
    error = relative(forward(load(path), images, network.encoder.depth), expected)
    if not error < TOLERANCE:
        raise UserError(
            f"the PyTorch state dict differs from the network by {error:.2g} (relative); nothing was exported"
        )
    return error
