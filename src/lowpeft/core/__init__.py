"""The core of lowpeft: find places in a network, attach adapters, switch them, and write adapter files.

attachment    adapters inside a network: slots, generated classes, switches, views, and the record of the changes
observation   read-only: run a copy of the network, find its blocks, describe and fingerprint it
planning      from a recipe to a plan: patterns select sites, conflicts raise
operations    carry out plans; switch, merge, calibrate, check and summarise adapted networks
files         adapter files, model cards, the Hub

Each package imports only from those above it.
"""
