"""Which packages there are, the gin files' folder among them; all else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["simclr_tf", "simclr_tf.*"]), "simclr_tf.gin_files"])
