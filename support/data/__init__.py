"""Recorded data as they lie on disk, up to the arrays of one episode: readers, statistics, robots, mixtures.

Not here: training tuples and batches (data.py), and anything that knows of the model.
"""
