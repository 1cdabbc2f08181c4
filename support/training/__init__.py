"""What stands around the loop of train.py.

Not here: the loss and the loop itself (model.py, train.py), the closed loop of the report (worlds/training.py).
"""
