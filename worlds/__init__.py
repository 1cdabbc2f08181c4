"""Where a policy is evaluated: simulated worlds behind one interface.

Not here: the model, and the policy that acts; a world is given one.
"""
