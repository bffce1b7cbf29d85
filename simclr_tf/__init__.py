"""SimCLRv2 in TensorFlow 2: pretrain without labels, fine-tune on a few, distill into a small network."""

from simclr_tf import _environment  # noqa: F401  (must come before anything that imports TensorFlow)

__version__ = "0.1.0"
