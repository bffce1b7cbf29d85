"""What a reader of the papers looks for first: NT-Xent (plain and tiled), cross-entropy, distillation.

Imports `core` and `distribute`. Losses are per example; the training loop alone averages them.
"""
