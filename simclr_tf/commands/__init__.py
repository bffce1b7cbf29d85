"""The modes other than training: one file or folder for each.

Commands may import any room below; no room below imports a command.
"""
