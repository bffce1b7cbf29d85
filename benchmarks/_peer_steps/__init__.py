"""The same step in other implementations, each run by `benchmarks/peers.py` in an environment of its own."""
