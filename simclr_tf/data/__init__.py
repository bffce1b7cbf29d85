"""From image files to batches: sources, the order of examples, decoding and cropping on the host, augmentation.

May import `core` alone: data knows neither devices nor networks.
"""
