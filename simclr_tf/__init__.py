"""SimCLRv2 in TensorFlow 2: pretrain without labels, fine-tune on a few, distill into a small network.

Importing the package sets the environment variables that TensorFlow and Keras read once, on import.
"""

import importlib.util
import os

__version__ = "0.1.0"

# TensorFlow 2.16 and newer carry Keras 3, whose layers, checkpoints and distribution differ; tf-keras is Keras 2.
# Older TensorFlow is Keras 2 already, and takes the variable for a wish to have the tf-keras package.
if importlib.util.find_spec("tf_keras") is not None:
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
else:
    os.environ.pop("TF_USE_LEGACY_KERAS", None)
# TensorFlow's C++ start-up notes say nothing a user can act on. Errors still show; Python warnings are untouched.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
# A GPU's memory is taken as it is needed: reports and evaluations run beside a training.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
# Of gs:// files TensorFlow fetches 64 MB for whatever is asked; records and tensors are read one by one, by offsets.
os.environ.setdefault("GCS_READAHEAD_BUFFER_SIZE_BYTES", str(2**20))
