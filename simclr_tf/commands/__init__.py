"""Everything that can be asked beside training: one file or folder for each mode.

Imports any room below; no room below imports a command.
"""
