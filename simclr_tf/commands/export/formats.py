"""TFLite and ONNX models beside a SavedModel, compared with the network on real images."""

from __future__ import annotations

import importlib
import os
import tempfile
import warnings
from collections.abc import Callable
from types import ModuleType

import numpy as np

from simclr_tf.commands.export.check import relative
from simclr_tf.core.errors import UserError
from simclr_tf.core.tf import tf

# The relative error allowed. Other kernels sum in another order.
TOLERANCE = 1e-3
_OPSET = 17


def _optional(name: str, purpose: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{purpose} needs {name}, which cannot be imported ({error}); run: pip install -r requirements-export.txt "
            "(or '.[export]') in the clone, or leave this format out of export.formats"
        ) from None


def check_available(formats: list[str]) -> None:
    """Raises a UserError, before anything is written, if a package that a format needs is not installed."""
    if "onnx" in formats:
        for name in ("onnx", "tf2onnx", "onnxruntime"):
            _optional(name, "ONNX export")


def _function(module, outputs, image_size: int | None):
    spec = tf.TensorSpec([None, image_size, image_size, 3], tf.float32, name="images")

    @tf.function(input_signature=[spec])
    def infer(images):
        return outputs(module, images)

    return infer, spec


def write_tflite(
    module: tf.Module,
    outputs: Callable[[tf.Module, tf.Tensor], dict[str, tf.Tensor]],
    image_size: int,
    path: str,
    images: np.ndarray,
    expected: dict[str, np.ndarray],
) -> float:
    """Writes a TFLite model (float32, any batch size, one image size) and compares its outputs.

    Args:
      module: The object from `module.make_module`.
      outputs: A function (module, images) -> {name: tensor}.
      image_size: The side of the images in pixels.
      path: The file to write.
      images: Images for the comparison, [B, image_size, image_size, 3].
      expected: Name -> expected output for these images.

    Returns:
      The greatest relative error.

    Raises:
      UserError: The model's outputs differ.
    """
    infer, _ = _function(module, outputs, image_size)
    # The converter takes `module` to keep its variables alive.
    converter = tf.lite.TFLiteConverter.from_concrete_functions([infer.get_concrete_function()], module)
    content = converter.convert()
    with warnings.catch_warnings():
        # TensorFlow warns that its interpreter will move to another package.
        warnings.simplefilter("ignore")
        interpreter = tf.lite.Interpreter(model_content=content)
    runner = interpreter.get_signature_runner()
    actual = runner(images=images)
    error = _compare("TFLite", actual, expected)
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(content)
    return error


def write_onnx(
    module: tf.Module,
    outputs: Callable[[tf.Module, tf.Tensor], dict[str, tf.Tensor]],
    image_size: int,
    path: str,
    images: np.ndarray,
    expected: dict[str, np.ndarray],
) -> float:
    """Writes an ONNX model (float32, any batch size, one image size, channels last); otherwise like `write_tflite`."""
    tf2onnx = _optional("tf2onnx", "ONNX export")
    onnxruntime = _optional("onnxruntime", "ONNX export")
    infer, spec = _function(module, outputs, image_size)
    with tempfile.TemporaryDirectory() as temporary:
        local = os.path.join(temporary, "model.onnx")
        tf2onnx.convert.from_function(infer, input_signature=[spec], opset=_OPSET, output_path=local)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # Errors only.
        session = onnxruntime.InferenceSession(local, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        actual = dict(zip(names, session.run(None, {session.get_inputs()[0].name: images})))
        error = _compare("ONNX", actual, expected)
        tf.io.gfile.copy(local, path)
    return error


def _compare(kind: str, actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    if set(actual) != set(expected):
        raise UserError(f"the {kind} model has outputs {sorted(actual)}, not {sorted(expected)}; nothing was exported")
    errors = {name: relative(actual[name], value) for name, value in expected.items()}
    worst = max(errors, key=errors.get)
    if not errors[worst] < TOLERANCE:
        raise UserError(
            f"the {kind} model's {worst} differs from the network by {errors[worst]:.2g} (relative); nothing was "
            "exported"
        )
    return errors[worst]


WRITERS = {"tflite": ("model.tflite", write_tflite), "onnx": ("model.onnx", write_onnx)}
