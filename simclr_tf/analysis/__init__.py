"""How good a network is and what it sees: metrics, nearest neighbors, features, contact sheets.

May import `core`, `distribute`, `data` and `models`. Nothing here trains.
"""
