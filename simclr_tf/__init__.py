"""SimCLRv2 in TensorFlow 2: pretrain without labels, fine-tune on a few, distill into a small network.

Importing the package sets the environment variables that TensorFlow and Keras read once, on import.
"""

import importlib.util
import os

__version__ = "0.1.0"

# TensorFlow 2.16 and newer ship Keras 3, whose layers, checkpoints and distribution differ; tf-keras is Keras 2.
# Older TensorFlow ships Keras 2; if the variable is set, it looks for the tf-keras package instead.
if importlib.util.find_spec("tf_keras") is not None:
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
else:
    os.environ.pop("TF_USE_LEGACY_KERAS", None)
# Users cannot act on what TensorFlow's C++ code logs at startup. Errors and Python warnings still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
# Allocate GPU memory as it is needed, so that reports and evaluations can run beside a training run.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
# TensorFlow reads 64 MB ahead of every read from gs://. Records and tensors are small and read by their offsets.
os.environ.setdefault("GCS_READAHEAD_BUFFER_SIZE_BYTES", str(2**20))
