"""Devices and hosts, and what replicas tell each other.

Imports `core` alone. Only this room names resolvers and strategies.
"""
