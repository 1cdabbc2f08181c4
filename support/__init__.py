"""The machine room: nothing here is needed to understand the paper.

Four rooms (data, training, inference, weights), and beside them what belongs to none: vision towers, rotary tables, the
embedded world's network parts, checkpoints, flags, pictures, Table 1.
"""
