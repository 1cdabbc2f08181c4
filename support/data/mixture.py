"""mixture.json: datasets with their weights, as in Table 3.

    {"datasets": [{"path", "weight", "kind", "robot", "name"}, ...], "robot", "validation"}

Paths are relative to the file; all but the path may be absent. weight: 1. kind: robot, sim, real, or human, which is
without actions, whatever the files hold. robot: a name of support/data/robots.py or a file beside the mixture, of one
dataset or of all. name: for messages, else the path. validation: a dataset, all of it held out: its path, or {"path",
"robot"}.
"""

import json

from support.data.robots import find_robot


def read_mixture(listing, robot=None):
    """A mixture.json -> its datasets and validation's or None: rows as above, each with its Robot or None.

    robot: of all of them, whatever the file says. ValueError: one line.
    """
    try:
        stored = json.loads(listing.read_text())
        rows, validation = stored["datasets"], stored.get("validation")
        validation = {"path": validation} if isinstance(validation, str) else validation
        unknown = stored.keys() - {"datasets", "robot", "validation"}
        unknown |= {key for row in rows for key in row} - {"path", "weight", "kind", "robot", "name"}
        unknown |= ({} if validation is None else validation).keys() - {"path", "robot"}
        if unknown:
            raise KeyError(*sorted(unknown))
        for key in ("path", "kind", "robot", "name"):
            if not all(isinstance(row.get(key) or "", str) for row in [*rows, stored, validation or {}]):
                raise TypeError("path, kind, robot and name are text")
        trained = {(listing.parent / row["path"]).resolve() for row in rows}
        twice = validation and (listing.parent / validation["path"]).resolve() in trained
        positive = rows and all(0 < float(row.get("weight", 1)) < float("inf") for row in rows)
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{listing} is no mixture ({error!r}): it holds datasets, a list of path, weight, kind, "
                         f"robot, name; and robot, validation") from error
    if not positive:
        raise ValueError(f"{listing}: it needs at least one dataset, and weights above 0")
    strange = {row["kind"] for row in rows if row.get("kind")} - {"robot", "sim", "real", "human"}
    if strange:
        raise ValueError(f"{listing}: kind {', '.join(sorted(strange))}: choose from robot, sim, real, human")
    if twice:
        raise ValueError(f"{listing}: {validation['path']} is trained on and held out: without validation the last "
                         "episode of the first dataset is held out")

    def driven(row):
        named = row.get("robot") or stored.get("robot")
        beside = str(listing.parent / named) if str(named).endswith(".json") else named
        return {"name": row["path"]} | row | {"robot": robot or (find_robot(beside) if named else None)}
    return [driven(row) for row in rows], validation and driven(validation)
