"""Finds the class logits of any SavedModel: how to call it, and which of its outputs they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from simclr_tf.core.errors import UserError, first_line
from simclr_tf.core.files import read_json
from simclr_tf.core.tf import tf
from simclr_tf.data.class_names import known_class_names
from simclr_tf.stages import saved_model_check

# The asset in which `--mode=export` describes its SavedModels.
EXPORT_DETAILS = "export.json"
# Outputs that are 2-D and float but certainly not class scores.
_FEATURE_NAMES = frozenset(
    "default_features embedding embeddings feature_vector features final_avg_pool pooled_features pre_logits "
    "proj_head_input "
    "proj_head_output projection".split()
)
# What TensorFlow raises if a SavedModel is truncated, has another format, or needs operations that are missing here.
_UNLOADABLE = (OSError, ValueError, RuntimeError, KeyError, tf.errors.OpError)
_PROBE_SIZE = 128


def find_saved_model(path: str) -> str | None:
    """Returns `path` if it is a SavedModel, else the newest version, classifier or published SavedModel in it."""
    if any(tf.io.gfile.exists(os.path.join(path, f"saved_model.{kind}")) for kind in ("pb", "pbtxt")):
        return path
    if not tf.io.gfile.isdir(path):
        return None
    names = [name.rstrip("/") for name in tf.io.gfile.listdir(path)]
    versions = sorted((name for name in names if name.isdigit()), key=int, reverse=True)
    for name in [*versions, *(known for known in ("classifier", "saved_model") if known in names)]:
        found = find_saved_model(os.path.join(path, name))
        if found is not None:
            return found
    return None


class SavedModelLogits(NamedTuple):
    """A classifier found in a SavedModel.

    Attributes:
      compute: function from images, [B, H, W, 3] float32 in [0, 1], to logits, [B, num_classes].
      num_classes: number of logits.
      image_size: side in pixels of the images that it was made for; None if unknown.
      takes_any_size: whether it also accepts images of other sizes.
      class_names: [num_classes], or empty if unknown.
      variables: all of its variables.
      description: origin of the model and how it is called, as plain values.
    """

    compute: Callable[[tf.Tensor], tf.Tensor]
    num_classes: int
    image_size: int | None
    takes_any_size: bool
    class_names: list[str]
    variables: list[tf.Variable]
    description: dict


def load_logits(folder: str, flag: str) -> SavedModelLogits:
    """Loads a SavedModel and finds its class logits; call this in the strategy's scope.

    Args:
      folder: folder of the SavedModel.
      flag: flag that `folder` was given with, for messages.

    Raises:
      UserError: if it cannot be loaded, has no class logits, or it is unclear which output they are.
    """
    refused = saved_model_check.objection(folder)
    if refused:
        raise UserError(f"the SavedModel {flag}={folder} was not loaded: {refused}; give a model that only computes")
    try:
        loaded = tf.saved_model.load(folder)
    except _UNLOADABLE as error:
        raise UserError(
            f"the SavedModel {flag}={folder} cannot be loaded ({first_line(error)}); for a published SimCLR "
            "checkpoint or TF1 hub module, run --mode=convert with it as --source first and give the new workdir"
        ) from None
    details = _details(folder)
    if details.get("kind") == "feature_vector":
        raise UserError(
            f"{flag}={folder} exports features, not class logits; give the classifier that was exported "
            "beside it, or a fine-tuned run's workdir"
        )
    reasons = []
    for way in (_signature, _call):
        try:
            run, spec, how = way(loaded)
            size = _image_size(spec)
            name, pick = _choose(run, spec, size)
        except _Unfit as reason:
            reasons.append(str(reason))
            continue
        fixed, size = size is not None, size or details.get("image_size")
        break
    else:
        raise UserError(f"{flag}={folder} cannot serve as a teacher: {'; '.join(reasons)}")

    def compute(images: tf.Tensor) -> tf.Tensor:
        return pick(run(images))

    sample = _run_once(compute, size or _PROBE_SIZE)
    if sample.shape[1] < 2:
        raise UserError(
            f"{flag}={folder}: its output {name!r} has {sample.shape[1]} column(s), but a teacher needs a logit for "
            "each of two classes or more; give another SavedModel"
        )
    # The logarithm of softmax probabilities is the logits minus a constant, which softmax ignores.
    probabilities = bool(np.all(sample >= 0) and np.allclose(sample.sum(axis=1), 1, atol=1e-3))

    def logits(images: tf.Tensor) -> tf.Tensor:
        outputs = compute(images)
        return tf.math.log(tf.maximum(tf.cast(outputs, tf.float32), 1e-30)) if probabilities else outputs

    return SavedModelLogits(
        logits,
        num_classes=sample.shape[1],
        image_size=size,
        class_names=known_class_names(details.get("class_names")),
        variables=_variables(loaded),
        description={
            "kind": "saved_model",
            "path": folder,
            "called_by": how,
            "output": name,
            "output_is": "probabilities" if probabilities else "logits",
        },
        takes_any_size=not fixed,
    )


class _Unfit(Exception):
    """Says why one way of calling a SavedModel gives no logits."""


def _signature(loaded) -> tuple[Callable, tf.TensorSpec, str]:
    """Finds the serving signature, which always runs in inference mode."""
    signatures = dict(getattr(loaded, "signatures", None) or {})
    name = "serving_default" if "serving_default" in signatures else next(iter(signatures), None)
    if name is None:
        raise _Unfit("it has no signature")
    function = signatures[name]
    inputs = function.structured_input_signature[1]
    if len(inputs) != 1:
        raise _Unfit(
            f"its signature {name} takes {len(inputs)} inputs ({', '.join(sorted(inputs))}), not one image batch"
        )
    argument, spec = next(iter(inputs.items()))
    _check_images(spec, f"its signature {name}")
    return lambda images: function(**{argument: images}), spec, f"signature {name}"


def _call(loaded) -> tuple[Callable, tf.TensorSpec, str]:
    """Finds the call of a hub module with training (in the published SimCLR exports: trainable) off."""
    functions = getattr(getattr(loaded, "__call__", None), "concrete_functions", ())
    if not functions:
        raise _Unfit("it cannot be called either")
    # Looked up instead of tried out: in TensorFlow 2.15 a call that does not fit never releases its lock.
    for function in functions:
        leaves = tf.nest.flatten(function.structured_input_signature)
        specs = [leaf for leaf in leaves if isinstance(leaf, tf.TensorSpec)]
        modes = _modes(function)
        if len(specs) == 1 and specs[0].shape.rank in (None, 4) and not any(modes.values()):
            _check_images(specs[0], "the call")
            how = ", ".join(f"{name}={value}" for name, value in modes.items()) or "the images alone"
            return _bind(loaded, function.structured_input_signature), specs[0], f"call with {how}"
    raise _Unfit("it cannot be called with one image batch (and training or trainable off)")


def _modes(function) -> dict[str, object]:
    """Returns the arguments of a saved call that choose between training and inference, by name."""
    positional, named = function.structured_input_signature
    values = {**dict(zip(function.function_type.parameters, positional)), **named}
    return {name: value for name, value in values.items() if name in ("training", "trainable", "is_training")}


def _bind(loaded, signature: tuple) -> Callable:
    def run(images: tf.Tensor):
        args, kwargs = tf.nest.map_structure(lambda x: images if isinstance(x, tf.TensorSpec) else x, signature)
        return loaded(*args, **kwargs)

    return run


def _check_images(spec: tf.TensorSpec, what: str) -> None:
    shape = spec.shape
    if spec.dtype != tf.float32:
        raise _Unfit(f"{what} takes {spec.dtype.name}, not float32 images in [0, 1]")
    if shape.rank is not None and (shape.rank != 4 or shape[-1] not in (3, None) or shape[0] is not None):
        raise _Unfit(f"{what} takes shape {tuple(shape)}, not [batch, height, width, 3] of any batch")


def _image_size(spec: tf.TensorSpec) -> int | None:
    return spec.shape[1] if spec.shape.rank == 4 else None


def _flatten(outputs) -> dict[str, tf.Tensor]:
    """Returns a function's outputs by name, whatever their structure."""
    if isinstance(outputs, dict):
        parts = {str(name): value for name, value in outputs.items()}
    elif isinstance(outputs, (list, tuple)):
        parts = {f"output_{i}": value for i, value in enumerate(outputs)}
    else:
        return {"output": outputs}
    named = {}
    for name, value in parts.items():
        nested = _flatten(value)
        named.update({name: value} if set(nested) == {"output"} else {f"{name}/{k}": v for k, v in nested.items()})
    return named


def _choose(run: Callable, spec: tf.TensorSpec, size: int | None) -> tuple[str, Callable]:
    """Finds the output with the class scores by its shape and type, then by its name if several remain."""
    size = size or _PROBE_SIZE
    traced = tf.function(run, autograph=False).get_concrete_function(tf.TensorSpec([None, size, size, 3], spec.dtype))
    outputs = _flatten(traced.structured_outputs)
    flat = {
        name: value
        for name, value in outputs.items()
        if isinstance(value, (tf.Tensor, tf.TensorSpec)) and value.dtype.is_floating and value.shape.rank in (2, None)
    }
    named = [name for name in flat if name == "logits"] or [name for name in flat if "logits" in name.lower()]
    others = [name for name in flat if name.lower() not in _FEATURE_NAMES]
    chosen = named or others
    if not chosen:
        raise _Unfit(f"no output has class scores, [batch, classes] (found {', '.join(sorted(outputs)) or 'none'})")
    if len(chosen) > 1:
        raise _Unfit(
            f"it is not clear which of its outputs are the logits ({', '.join(sorted(chosen))}); name one 'logits'"
        )
    return chosen[0], lambda structure: _flatten(structure)[chosen[0]]


def _run_once(compute: Callable, size: int) -> np.ndarray:
    """Computes two images as training does: by the strategy; returns the first replica's outputs."""
    strategy = tf.distribute.get_strategy()
    images = tf.constant(np.random.default_rng(0).uniform(size=(2, size, size, 3)), tf.float32)

    @tf.function(autograph=False)
    def run(images):
        return strategy.run(compute, args=(images,))

    return strategy.experimental_local_results(run(images))[0].numpy()


def _details(folder: str) -> dict:
    """Returns the description in an export of this project; empty for other SavedModels."""
    file = os.path.join(folder, "assets", EXPORT_DETAILS)
    return read_json(file) if tf.io.gfile.exists(file) else {}


def _variables(loaded) -> list[tf.Variable]:
    """Returns every variable that the object tracks, each once, in a fixed order."""
    found = [part for part in tf.train.TrackableView(loaded).descendants() if isinstance(part, tf.Variable)]
    return list({id(variable): variable for variable in found}.values())
