"""Optimizers and the learning rate schedule.

May import `core`. Optimizers are told which variables take no weight decay; they never look at names.
"""
