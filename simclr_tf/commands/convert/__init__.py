"""`--mode=convert`: recognizes a published checkpoint and writes it as a workdir that every other mode accepts."""
