"""What every room stands on: errors, TensorFlow itself, files, text, random numbers, precision.

Imports nothing from other rooms.
"""
