"""What lies in a run's folder: checkpoints, records, the lock, the run's identity.

Imports `core`, `settings`, `distribute`, `data`, `models`. No other room decides how these files are written.
"""
