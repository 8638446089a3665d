"""The core adapts a network: it finds places, attaches adapters, switches them, and writes adapter files.

attachment    adapters inside a network: slots, generated classes, switches, views, and the record of what was changed
observation   read-only: run a copy of the network, find its blocks, describe and fingerprint it
planning      from a recipe to a plan: patterns become sites, and conflicts are refused
operations    carry plans out, and what is done to an adapted network: switch, merge, calibrate, check, count
files         adapter files, model cards, the Hub

Each imports from those above it alone.
"""
