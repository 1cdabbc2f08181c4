"""mixture.json: datasets with their weights, as in Table 3.

    {"datasets": [{"path", "weight", "kind", "robot", "name", "only_episodes", "hold_out"}, ...],
     "robot", "validation"}

Paths are relative to the file; all but the path may be absent. weight: 1. kind: robot, sim, real, or human, which is
without actions, whatever the files hold. robot: a name of support/data/robots.json or a file beside the mixture, of one
dataset or of all. name: for messages, else the path.

only_episodes: those that are used, as the flag says: "0-19,25", a list of numbers, or a file beside the mixture.
hold_out: of one dataset, those of them that are held out, likewise, or "none"; without it --hold_out, of the first
dataset with actions. A folder that is listed twice, by whatever path, is one dataset, and so is a copy of it: what is
held out is so in both.
validation: a dataset, all of it held out: its path, or {"path", "robot", "only_episodes"}."""

from support.bounds import EPISODES, check, must
from support.data.robots import find_robot
from support.files import read_json
from support.flags import episodes

PATH = {"form": r"(?=[\s\S]*[^/\s])([^/\0]{0,255}/){0,255}[^/\0]{0,255}", "help": "a path"}   # that a folder can have
CHOICE = {"form": EPISODES, "help": "text such as 0-19,25, or a list of numbers"}
FIELDS = {"path": (str, PATH), "weight": (float, {"above": 0, "at_most": 10**9}), "robot": (str, {}), "name": (str, {}),
          "kind": (str, {"choices": ("robot", "sim", "real", "human")}), "only_episodes": (str, CHOICE),
          "hold_out": (str, CHOICE)}   # of a dataset, as support.bounds.check takes them


def read_mixture(listing, robot=None):
    """A mixture.json -> its datasets and validation's or None: rows as above, each with its Robot or None.
    robot: of all of them, whatever the file says. ValueError: one line."""
    stored, names = _given(read_json(listing), ("datasets", "robot", "validation"), listing), {}
    rows, validation, of_all = stored.get("datasets"), stored.get("validation"), stored.get("robot", "")
    must(isinstance(rows, list) and rows, f"{listing}: datasets: at least one dataset")

    def dataset(row, known=FIELDS):
        row = {"path": None, "robot": of_all} | _given(row, known, listing)
        where = f"{listing}, {row['path']}"
        for key in {"only_episodes", "hold_out"} & row.keys():
            parts = row[key] if isinstance(row[key], list) else [row[key]]
            text = ",".join(str(n) if type(n) in (int, str) else f"{n!r:.40}" for n in parts)
            row[key] = episodes(text, listing.parent)
        for key, value in row.items():
            check(f"{where}: {key}", value, *FIELDS[key])
        name, named = row.get("name", row["path"]), row["robot"]
        must(names.setdefault(name, row["path"]) == row["path"], f"{where}: two datasets are called {name[:80]}")
        beside = str(listing.parent / named) if named.endswith(".json") else named
        return row | {"name": name, "robot": robot or (find_robot(beside) if named else None)}
    found = [dataset(row) for row in rows]
    validation = {"path": validation} if isinstance(validation, str) else validation
    return found, None if validation is None else dataset(validation, ("path", "robot", "only_episodes"))


def _given(part, known, listing):
    """A part of the file -> what of it is not null. ValueError: it is of another kind, or holds what is not known."""
    must(isinstance(part, dict), f"{listing} holds {part!r:.60}, expected {{{', '.join(known)}}}")
    given = {key: value for key, value in part.items() if value is not None}
    unknown = ", ".join(sorted(given.keys() - {*known}))
    must(not unknown, f"{listing}: {unknown[:200]} is unknown; known are {', '.join(known)}")
    return given
