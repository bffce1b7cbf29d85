"""Reloads a SavedModel in a fresh process: `python -m simclr_tf.commands.export.check`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import numpy as np

from simclr_tf.core.errors import UserError

# The relative error allowed. Two programs for the same mathematics differ by rounding, which is far smaller.
TOLERANCE = 1e-4
_SIGNATURES = {"images": "serving_default", "image_bytes": "serving_bytes"}


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    """Returns the norm of the difference over that of `expected`; infinite for other shapes or non-finite values."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape:
        return float("inf")
    difference = float(np.linalg.norm(actual - expected))
    return difference / max(float(np.linalg.norm(expected)), 1e-30) if np.isfinite(difference) else float("inf")


def compare(
    folder: str, images: np.ndarray, image_bytes: list[bytes], expected: dict[str, np.ndarray]
) -> dict[str, float]:
    """Compares the outputs of a SavedModel, computed in a fresh process, with the expected ones.

    Args:
      folder: The folder of the SavedModel.
      images: Images for the call and for `serving_default`, [B, H, W, 3] float32.
      image_bytes: Encoded images for `serving_bytes`, [B].
      expected: "call", "serving_default/NAME" and "serving_bytes/NAME" -> expected output.

    Returns:
      The relative errors, by the same names.

    Raises:
      UserError: The SavedModel cannot be loaded, or its outputs differ.
    """
    with tempfile.TemporaryDirectory() as temporary:
        task, answers = os.path.join(temporary, "task.npz"), os.path.join(temporary, "answers.npz")
        sizes = np.array([len(one) for one in image_bytes], np.int64)
        np.savez(task, images=images, bytes=np.frombuffer(b"".join(image_bytes), np.uint8), sizes=sizes)
        environment = dict(os.environ)
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
        # This process may hold all accelerators, and the expected outputs come from the CPU anyway.
        environment["CUDA_VISIBLE_DEVICES"] = "-1"
        done = subprocess.run(
            [sys.executable, "-m", "simclr_tf.commands.export.check", folder, task, answers],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            last = (done.stdout.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"the export could not be loaded by a fresh process ({last}); nothing was exported")
        with np.load(answers) as found:
            errors = {name: relative(found[name], value) for name, value in expected.items()}
    for name, error in errors.items():
        if not error < TOLERANCE:
            raise UserError(
                f"the export's {name} differs from the network by {error:.2g} (relative) when a fresh process loads "
                "it; nothing was exported"
            )
    return errors


def _main(folder: str, task: str, answers: str) -> None:
    from simclr_tf.core.tf import tf

    with np.load(task) as given:
        images, data, sizes = given["images"], given["bytes"].tobytes(), given["sizes"]
    ends = np.cumsum(sizes)
    encoded = [data[end - size : end] for end, size in zip(ends, sizes)]
    loaded = tf.saved_model.load(folder)
    outputs = {"call": loaded(tf.constant(images), training=False)}
    for argument, value in (("images", tf.constant(images)), ("image_bytes", tf.constant(encoded))):
        signature = _SIGNATURES[argument]
        for name, output in loaded.signatures[signature](**{argument: value}).items():
            outputs[f"{signature}/{name}"] = output
    # Fails unless the asset moved along with the SavedModel.
    json.loads(tf.io.read_file(loaded.assets["export.json"].asset_path).numpy())
    np.savez(answers, **{name: output.numpy() for name, output in outputs.items()})


if __name__ == "__main__":
    _main(*sys.argv[1:])
