"""Published files in and out: backbones, Cosmos and the authors' release, to our names and back.

Not here: our own checkpoints (support/checkpoint.py).
"""
