"""What a network learns: each stage defines its data, network and losses; the loop in `training` does the rest.

Imports the rooms below it, from `workdir` and `analysis` down. Neither the loop nor the command line is known here.
"""
