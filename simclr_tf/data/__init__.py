"""From image files to batches: sources, the order of examples, what the host makes of an image, augmentation."""
