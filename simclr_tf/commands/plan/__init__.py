"""Planning: compiles the training step for a TPU that need not exist, to see whether it fits and how long it takes."""
