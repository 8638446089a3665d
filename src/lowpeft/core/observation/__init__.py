"""Observation without changes: run a copy of a network, find its blocks and stages, describe and fingerprint it."""
