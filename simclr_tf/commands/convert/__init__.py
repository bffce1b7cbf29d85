"""Published checkpoints come in: which variable is which, and a workdir that every other mode accepts."""
