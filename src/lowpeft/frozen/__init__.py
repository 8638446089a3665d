"""Forwards of frozen layers that keep less for the backward pass than PyTorch's own; `lowpeft.optimize` puts them in.

A frozen layer passes the gradient on and needs none of its own. So much of what PyTorch keeps for it can be left out
(`layers`), or made again from tensors that are kept anyway (`rebuilding`). All of it is exact, and first order only.
"""
