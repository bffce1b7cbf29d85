"""Optimizers, learning rate schedules, and which variables are left out of decay and trust ratio."""
