"""RoboTwin 2.0: the command, a table of its results, and policy/, which goes into RoboTwin.

Not here: its demonstrations (support/data/robotwin.py), the simulator, which evaluates in its own programs and Python,
and the server that they ask."""
