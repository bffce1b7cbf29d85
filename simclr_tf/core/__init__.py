"""What every room stands on: errors, checks, TensorFlow itself, files, text, random numbers, precision.

Imports nothing from other rooms.
"""
