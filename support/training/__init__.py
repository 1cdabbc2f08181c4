"""What stands around the loop of train.py. Not here: the loop itself, the loss (model.py), the closed loop (worlds)."""
