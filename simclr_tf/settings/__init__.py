"""What a user can say: flags, modes, and gin files.

Imports `core`; `run_context` also imports `distribute`. Knows gin, but no class that gin configures.
"""
