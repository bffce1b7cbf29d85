"""The papers' losses: NT-Xent (plain and tiled), cross-entropy and distillation.

May import `core` and `distribute`. Every loss is per example; only the training loop averages.
"""
