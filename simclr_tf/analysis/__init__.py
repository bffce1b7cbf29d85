"""How good a network is, and what it sees: metrics, neighbors, features, contact sheets.

Imports what lies below; trains nothing.
"""
