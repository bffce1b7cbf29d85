"""Augmentation on the device: flip, color jitter, blur, and cutout and rotation from Addons."""
