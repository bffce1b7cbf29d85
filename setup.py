"""The list of packages, with the folder of gin files. Everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["simclr_tf", "simclr_tf.*"]), "simclr_tf.gin_files"])
