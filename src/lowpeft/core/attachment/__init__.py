"""Adapters inside a network: slots, generated classes, switches, views, and the record of the changes."""
