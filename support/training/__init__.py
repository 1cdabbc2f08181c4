"""What stands around the loop of train.py: what is checked before, how a model and its optimizer are prepared, several
ranks, saving and resuming, validation, and what a run writes and draws.

Not here: the loss and the loop itself (model.py, train.py), the closed loop of the report (worlds/training.py).
"""
