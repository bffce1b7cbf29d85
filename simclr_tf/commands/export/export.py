"""`--mode=export`: writes the network of a workdir as SavedModels, and on request as TFLite, ONNX or safetensors."""

from __future__ import annotations

import json
import os
import re
import tempfile

import numpy as np

from simclr_tf.commands.export import check, formats, pytorch, versions
from simclr_tf.commands.export.module import CLASSIFIER, DETAILS, FEATURES, LABELS, asset, make_module, write
from simclr_tf.core import checks
from simclr_tf.core.errors import UserError
from simclr_tf.core.files import read_json
from simclr_tf.core.tf import tf
from simclr_tf.data.class_names import numbered_classes
from simclr_tf.data.crop import EVALUATION_PROPORTION, LARGEST_UNCROPPED_SIZE
from simclr_tf.data.host_crops import preprocess
from simclr_tf.data.sources.open import open_source
from simclr_tf.models import cost
from simclr_tf.models.network import Network, fingerprint, layers
from simclr_tf.settings.run_context import RunContext
from simclr_tf.workdir.networks import load_network

_WEIGHTS = ("trained", "momentum")
_SAMPLES = 4
_LARGEST_FILE = 2**31  # The limit of protocol buffers and flatbuffers, in bytes.
_FILES = {**{name: file for name, (file, _) in formats.WRITERS.items()}, "torch": pytorch.FILE}


def run_export(
    context: RunContext,
    layer: str = "final_avg_pool",
    formats: list[str] | tuple[str, ...] = (),
    image_size: int | None = None,
    keep: int = 3,
    weights: str = "trained",
) -> dict[str, str]:
    """Exports the newest checkpoint of a run.

    Writes `OUTPUT/feature_vector/STEP` and, if there is a classifier, `OUTPUT/classifier/STEP`; `export.module`
    describes their inputs and outputs. Before an export gets its name, a fresh process loads it and compares it with
    the network on real images.

    Args:
      context: The run's context. Its `workdir` is the run. Its `output` is the folder to write to, None for `export` in
        the workdir.
      layer: The output that is the feature vector: "final_avg_pool", "head_layer_1" .., or a map such as
        "block_group4".
      formats: The formats to write beside the SavedModels: "tflite", "onnx", or "torch" (a state dict for torchvision's
        ResNet).
      image_size: The side of the images for `serving_bytes`, TFLite and ONNX, in pixels; None takes the run's.
      keep: The number of versions of each kind to keep; older versions that this mode wrote are deleted.
      weights: "trained", or "momentum" for the momentum network of a run with a memory (features only).

    Returns:
      "feature_vector" and "classifier" -> folder.

    Raises:
      UserError: The network cannot be exported. No unfinished files are left.
    """
    wanted = list(formats)
    _check_settings(wanted, image_size, keep, weights)
    network, description, path = load_network(context.workdir, momentum=weights == "momentum")
    if "torch" in wanted and layer != "final_avg_pool":
        raise UserError(
            f"export.layer is {layer!r}, but export.formats has 'torch', and torchvision's ResNet ends in "
            "'final_avg_pool'; leave one of the two out"
        )
    if "torch" in wanted:
        pytorch.state_dict(network, classifier=network.classifier is not None)
    _check_size(wanted, sum(cost.count_parameters(part) for part in network.parts().values()))
    checks.choice("export.layer", layer, layers(network))
    size = image_size or network.image_size
    step = _step(path)
    output = context.output or os.path.join(context.workdir, "export")
    kinds = [FEATURES, *([CLASSIFIER] if network.classifier is not None else [])]
    context.settings.check_read()
    details = {kind: _details(kind, network, description, layer, size, path, step, weights) for kind in kinds}
    if context.dry_run:
        print(f"export: would write {', '.join(f'{output}/{kind}/{step}' for kind in kinds)} from {path}")
        return {}
    if not context.is_chief:
        return {}
    finished: dict[str, str] = {}
    for kind in kinds:
        parent = os.path.join(output, kind)
        final = os.path.join(parent, str(step))
        if _is_done(final, details[kind], wanted):
            print(f"export: {final} already exists")
        else:
            _export_one(network, kind, layer, details[kind], wanted, parent, step)
        finished[kind] = final
        for old in versions.prune(parent, step, keep):
            print(f"  deleted {old}, an older version")
    if CLASSIFIER not in kinds:
        print(f"  no classifier: the {'run' if weights == 'trained' else 'momentum network'} has none")
    return finished


def _check_settings(wanted: list[str], image_size: int | None, keep: int, weights: str) -> None:
    for name in wanted:
        if name not in _FILES:
            raise UserError(f"export.formats has {name!r}; choose from {', '.join(_FILES)}")
    checks.whole("export.image_size", image_size, least=8, optional=True, hint=", in pixels")
    checks.whole("export.keep", keep)
    checks.choice("export.weights", weights, _WEIGHTS)
    formats.check_available(wanted)


def _check_size(wanted: list[str], num_parameters: int) -> None:
    limited = [name for name in wanted if name in formats.WRITERS]
    if limited and 4 * num_parameters >= _LARGEST_FILE:
        raise UserError(
            f"export.formats has {limited[0]!r}, whose files must be below 2 GiB, but the network's weights take "
            f"{4 * num_parameters / 2**30:.1f} GiB; leave it out: SavedModels have no such limit"
        )


def _step(path: str) -> int:
    return int(re.search(r"(\d+)$", path).group(1))


def _details(
    kind: str, network: Network, description: dict, layer: str, size: int, path: str, step: int, weights: str
) -> dict:
    names = list(description.get("class_names") or ())
    names = names if len(names) == network.num_classes else numbered_classes(network.num_classes)
    return {
        "kind": kind,
        "step": step,
        "checkpoint": path,
        "weights": weights,
        "layer": f"head_layer_{network.classifier_layer}" if kind == CLASSIFIER else layer,
        "network": network.describe(),
        "fingerprint": fingerprint(v for part in network.parts().values() for v in part.variables)[:16],
        "image_size": size,
        "bit_depth": description["data"].get("bit_depth"),
        "class_names": names if kind == CLASSIFIER else [],
        "preprocessing": {
            "decoded": "RGB, 8 bits a channel",
            "crop": "central square",
            "crop_proportion_of_shorter_side": 1.0 if size <= LARGEST_UNCROPPED_SIZE else EVALUATION_PROPORTION,
            "resize": f"bicubic (a = -0.5, no anti-aliasing) to {size} x {size}, rounded to 8 bits",
            "range": [0.0, 1.0],
        },
        "tensorflow": tf.__version__,
        **({"assumed": description["assumed"]} if kind == CLASSIFIER and "assumed" in description else {}),
    }


def _is_done(final: str, details: dict, wanted: list[str]) -> bool:
    """Returns whether this same version exists; raises an error if a different one does."""
    if not tf.io.gfile.exists(final):
        return False
    found = versions.read_details(final, os.path.join("assets", DETAILS))
    if found is None or not tf.io.gfile.exists(os.path.join(final, versions.MARKER)):
        raise UserError(f"{final} exists and was not written by --mode=export; give another --output, or move it away")
    same = ("kind", "step", "layer", "network", "image_size", "weights", "class_names", "bit_depth")
    missing = [name for name in wanted if not tf.io.gfile.exists(os.path.join(final, _FILES[name]))]
    differences = [
        f"{key} {found.get(key)!r}" for key in same if found.get(key) != json.loads(json.dumps(details[key]))
    ]
    differences += [f"no {name}" for name in missing]
    if found.get("fingerprint") != details["fingerprint"]:
        differences.append("other weights")
    if differences:
        raise UserError(
            f"{final} is an export of the same step with {'; '.join(differences)[:300]}; give another --output, or "
            "delete it"
        )
    return True


def _samples(size: int) -> tuple[np.ndarray, list[bytes]]:
    """Returns real images: preprocessed as for evaluation, [B, size, size, 3], and encoded."""
    pixels = open_source("embedded:cifar10_mini", f"test[:{_SAMPLES}]").resident().images
    encoded = [tf.io.encode_png(image).numpy() for image in pixels]
    return preprocess(tf.constant(encoded), size).numpy(), encoded


def _outputs(kind: str):
    def outputs(module, images: tf.Tensor) -> dict[str, tf.Tensor]:
        value = module.__call__(images, training=False, return_endpoints=False)
        return (
            {"logits": value, "probabilities": tf.nn.softmax(value)}
            if kind == CLASSIFIER
            else {"feature_vector": value}
        )

    return outputs


def _expected(network: Network, kind: str, layer: str, images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the outputs of the network itself, computed without any of the saved functions."""
    with tf.device("CPU:0"):  # The fresh process that checks the export computes there.
        outputs = network.outputs(tf.constant(images), training=False)
        if kind == CLASSIFIER:
            logits = network.classifier(outputs[f"head_layer_{network.classifier_layer}"])
            return {"logits": logits.numpy(), "probabilities": tf.nn.softmax(logits).numpy()}
        value = outputs[layer].numpy()
    return {"feature_vector": value.mean(axis=(1, 2)) if value.ndim == 4 else value}


def _export_one(
    network: Network, kind: str, layer: str, details: dict, wanted: list[str], parent: str, step: int
) -> None:
    images, encoded = _samples(details["image_size"])
    named = _expected(network, kind, layer, images)
    folder = versions.aside(parent)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            files = {DETAILS: json.dumps(details, indent=2) + "\n"}
            if details["class_names"]:
                files[LABELS] = "".join(" ".join(name.split()) + "\n" for name in details["class_names"])
            for name, text in files.items():
                with open(os.path.join(temporary, name), "w", encoding="utf-8") as file:
                    file.write(text)
            module = make_module(network, kind, layer, {name: os.path.join(temporary, name) for name in files})
            write(module, kind, details["image_size"], folder, details["bit_depth"])
        expected = {"call": next(iter(named.values()))}
        for signature in ("serving_default", "serving_bytes"):
            expected.update({f"{signature}/{name}": value for name, value in named.items()})
        errors = {"SavedModel": max(check.compare(folder, images, encoded, expected).values())}
        for name in wanted:
            path = os.path.join(folder, _FILES[name])
            if name == "torch":
                errors[name] = _write_torch(network, kind, path, encoded)
                continue
            errors[name] = formats.WRITERS[name][1](module, _outputs(kind), details["image_size"], path, images, named)
        final = versions.publish(folder, parent, step)
    finally:
        versions.discard(folder)
    differences = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    print(
        f"export: {final} ({'classes' if kind == CLASSIFIER else details['layer']}); differs on {len(images)} images "
        f"by {differences}"
    )


def _write_torch(network: Network, kind: str, path: str, encoded: list[bytes]) -> float:
    """Writes the state dict; compares it at the network's own size, rounded up to where both poolings can agree."""
    size = -(-max(network.image_size, 32) // 4) * 4
    images = preprocess(tf.constant(encoded), size).numpy()
    expected = next(iter(_expected(network, kind, "final_avg_pool", images).values()))
    return pytorch.write(network, path, images, expected, classifier=kind == CLASSIFIER)


def details_of(folder: str) -> dict:
    """Returns the details that were stored with an export."""
    return read_json(asset(folder, DETAILS))
