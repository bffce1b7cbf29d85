"""Know before you rent: the training step compiled for a TPU, without a TPU."""
