"""The networks: SK-ResNet encoders, and the projection heads and classifiers on top of them.

May import `core` and `distribute`. Losses and training live elsewhere.
"""
