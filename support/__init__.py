"""The machine room: nothing here is an idea of the paper's own.

It has four rooms: data, training, inference, weights. Beside them stands what belongs to none of the rooms. Parts of
the network are the vision towers, the rotary tables and the embedded world's network parts. Tools are checkpoints,
flags and bounds of values, strangers' files, owners of folders, how commands begin and end, pictures, Table 1."""

VERSION = "1.0"   # of the project: what a policy server says it is
