"""Flax modules, Linen or NNX, as pure functions over one tree.

A tree is {"params": nested dict, collection: nested dict, ...}, with the module's own paths. All that a module changes
when it runs, and all its random streams, are explicit inputs and outputs.
"""
