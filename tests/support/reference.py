"""The published implementation's weights and images, made by rule (see the reference folder's README)."""

from __future__ import annotations

import json
import os
import re
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(os.environ.get("SIMCLR_REFERENCE_DIR") or Path(__file__).parents[3] / "shared" / "reference")


def cases() -> list[Path]:
    """Every encoder case there is."""
    return sorted(path for path in FOLDER.glob("r*.npz") if path.stem[1:2].isdigit())


def official_cases() -> list[Path]:
    """Every case of the published TF2 code's checkpoint layout."""
    return sorted(FOLDER.glob("official_tf2_*.npz"))


def stage_cases() -> list[Path]:
    """Every case of a stage after pretraining."""
    return sorted(FOLDER.glob("stage_*.npz"))


def value(key: str, shape) -> np.ndarray:
    """The weight called `key`."""
    n = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    kind = re.findall("kernel|gamma|moving_variance|beta|bias|moving_mean", key)[-1]
    if kind == "kernel":
        n = n * np.sqrt(2 / np.prod(shape[:-1]))
    elif kind == "gamma":
        n = 0.5 + 0.05 * n
    elif kind == "moving_variance":
        n = np.exp(0.2 * n)
    else:
        n = 0.1 * n
    return n.astype(np.float32)


def images(seed: int, count: int, size: int) -> np.ndarray:
    """Blocky random images, [count, size, size, 3] float32."""
    low = np.random.default_rng(seed).uniform(size=(count, 4, 4, 3))
    return np.repeat(np.repeat(low, size // 4, axis=1), size // 4, axis=2).astype(np.float32)


def load(path: Path) -> tuple[dict, dict]:
    """Returns a case's settings and its arrays."""
    with np.load(path) as arrays:
        return json.loads(str(arrays["case"])), {name: arrays[name] for name in arrays.files if name != "case"}


def relative(actual, expected) -> float:
    """Norm of the difference over norm of the reference."""
    expected = np.asarray(expected, np.float64)
    difference = np.linalg.norm(np.asarray(actual, np.float64) - expected)
    return float(difference / max(np.linalg.norm(expected), 1e-30))
