"""How a network learns: one run (`train`), its outer loop (records, checkpoints, pictures), its inner loop (steps).

Imports any room below it; names no particular stage.
"""
