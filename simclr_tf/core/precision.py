"""The number type that a network computes in, and the one that this machine computes fast."""

from __future__ import annotations

import os

from simclr_tf.core import checks
from simclr_tf.core.tf import tf

# Precision -> Keras's name of it.
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float64": "float64"}


def resolve_precision(precision: str) -> str:
    """Turns "auto" into the precision that this machine computes fast; checks any other name.

    bfloat16 is fast on TPUs, on GPUs from NVIDIA's Ampere on, and on CPUs with AVX512-BF16 or AMX where TensorFlow may
    use oneDNN.

    Raises:
      UserError: for an unknown name.
    """
    if precision in POLICIES:
        return precision
    checks.choice("train.precision", precision, ("auto", *POLICIES))
    return "bfloat16" if _has_bfloat16() else "float32"


def on_cpu() -> bool:
    """Whether this process computes on CPUs only."""
    return not any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU"))


def _has_bfloat16() -> bool:
    if tf.config.list_physical_devices("TPU") or tf.config.list_logical_devices("TPU"):
        return True
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capabilities = (tf.config.experimental.get_device_details(gpu).get("compute_capability") for gpu in gpus)
        return all(capability is not None and capability[0] >= 8 for capability in capabilities)
    return cpu_has_bfloat16()


def cpu_has_bfloat16() -> bool:
    """Whether oneDNN computes bfloat16 on this CPU, quickly and adding up in float32.

    TensorFlow's own kernels widen every number, are slower than in float32, and may add up in bfloat16.
    """
    if os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1").lower() in ("0", "false"):
        return False
    return bool(_cpu_flags() & {"avx512_bf16", "amx_bf16"})


def _cpu_flags() -> set[str]:
    """Returns the CPU features that Linux lists; empty on other systems."""
    try:
        with open("/proc/cpuinfo") as file:
            return set(next((line for line in file if line.startswith("flags")), "").split())
    except OSError:
        return set()
