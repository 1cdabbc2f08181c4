"""What stands around the loop of train.py: preparing a model, optimizers, memory, ranks, saving and resuming, validation.

Not here: the loss and the loop itself (model.py, train.py).
"""
