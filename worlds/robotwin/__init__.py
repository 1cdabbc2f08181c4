"""RoboTwin 2.0: the command, and policy/, which goes into RoboTwin. Not here: its demonstrations
(support/data/robotwin.py), the simulator, which evaluates in its own programs and Python, the server that they ask."""
