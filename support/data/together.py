"""What ranks know together, and what datasets of one robot must have in common."""


class Alone:
    """One process: what is used here of support.training.ranks.Ranks."""

    first = True

    def gather(self, value):
        return [value]

    def agree(self, value):
        return self.gather(value)[0]


def gathered(ranks, of_own):
    """{dataset: value} of each rank's own datasets -> that of all, in order of the dataset's number."""
    everywhere = {i: value for own in ranks.gather(of_own) for i, value in own.items()}
    return dict(sorted(everywhere.items()))


def alike(robot, what, values):
    """Refuse datasets of one robot that differ in what must be the same in all of them. values: [(name, value), ...]"""
    first, expected = values[0]
    for name, value in values:
        if value != expected:
            raise ValueError(f"robot '{robot}' has {what} {expected} in dataset {first} and {value} in {name}: "
                             "they are not one robot; name them apart with a robot file for each")
