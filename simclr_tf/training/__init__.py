"""How it is learnt: one run (`train`), its outer loop (records, checkpoints, pictures), its inner loop (steps).

Imports everything below it; names no single stage.
"""
