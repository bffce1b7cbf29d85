"""TensorFlow and Keras as this project uses them: `from simclr_tf.core.tf import keras, tf`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from types import ModuleType

from simclr_tf.core.errors import UserError

# Messages that TensorFlow logs at import on every machine: 2.15 as errors, 2.21 before it reads its log level.
_NOISE = re.compile(
    r"Unable to register cu\w+ factory|TF-TRT Warning|All log messages before absl::InitializeLog|^I0000 |cuInit"
)


@contextlib.contextmanager
def _without_import_noise() -> Iterator[None]:
    """Holds back what C++ code writes to stderr, then prints all of it but the known noise."""
    sys.stderr.flush()
    try:
        stderr = os.dup(2)
    except OSError:  # This process has no stderr.
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held.read().decode(errors="replace").splitlines():
                if not _NOISE.search(line):
                    print(line, file=sys.stderr)


with _without_import_noise():
    import tensorflow as tf

    tf.config.list_physical_devices()  # Looks for GPUs, which logs as well; it does not start the runtime.


def _keras_two() -> ModuleType:
    """Returns Keras 2: TensorFlow's own up to 2.15, tf-keras from 2.16 on.

    Raises:
      UserError: where Keras 2 is missing, or Keras 3 was loaded first.
    """
    major, minor = (int(part) for part in tf.__version__.split(".")[:2])
    if (major, minor) < (2, 16):
        return tf.keras
    if importlib.util.find_spec("tf_keras") is None:
        raise UserError(
            f"Keras 2 is needed, but TensorFlow {tf.__version__} comes with Keras 3 and tf-keras is not installed; "
            f"run: pip install tf-keras=={major}.{minor}.0"
        )
    asked = os.environ.get("TF_USE_LEGACY_KERAS", "")
    if asked.lower() not in ("1", "true"):
        raise UserError(
            f"Keras 2 is needed, but TF_USE_LEGACY_KERAS is {asked!r}, which asks for Keras 3; unset it or set it to 1"
        )
    if "tf_keras" not in tf.keras.Model.__module__:
        raise UserError(
            "Keras 2 is needed, but Keras 3 was loaded before simclr_tf; import simclr_tf before using tf.keras, or "
            "set TF_USE_LEGACY_KERAS=1"
        )
    return tf.keras


keras = _keras_two()


def addons(purpose: str) -> ModuleType:
    """Returns tensorflow_addons, which few settings need.

    Args:
      purpose: The feature that needs it, for the message, such as "random cutout".

    Raises:
      UserError: where Addons is not installed (it has no build for Python 3.12 and newer).
    """
    try:
        with warnings.catch_warnings():
            # Every import of Addons warns of its end of life and of versions it was not tested with.
            warnings.simplefilter("ignore")
            return importlib.import_module("tensorflow_addons")
    except ImportError as error:
        raise UserError(
            f"{purpose} needs tensorflow-addons, which is not installed here ({error}); it exists for Python 3.9-3.11 "
            "with TensorFlow 2.15: use such an environment, or a setting that does not need it"
        ) from None
