"""The robots of Table 3's sources, and a user's own: features of the dataset, camera slots, and the delta mask.

A robot is known by the `robot_type` of its dataset, or by --robot: a name of the table or a JSON file such as

    {"name": "my_arm", "cameras": {"head": "observation.images.top", "left_wrist": "observation.images.wrist"},
     "state": ["observation.state"], "action": [["action", [0, 6], "gripper"]], "delta": [6, -1],
     "kind": "position", "instruction": "language_instruction"}

All but the name may be left out. An entry of `state` and `action` is a feature, or a list of a feature and what is
taken of it: dimensions [first, end) or names, in this order. "state": [] is no state. `delta` counts, in order, 6
dimensions that are relative to the state at t and 1 (a gripper) that is absolute. `kind` says what the actions are, in
one word or one for each dimension: position, velocity or torque. `instruction` is the column that holds the text."""

import difflib
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from config import VIEWS
from support.data.file_hashes import digest
from support.files import must, numbers, read_json

WIDEST = 1000   # dimensions of a feature, or chosen
KINDS = {"position": "", "velocity": "vel|velocity|velocities|qvel|dq|speeds?|twist", "torque": "torques?|efforts?|tau"}
RELEASE_FEATURES, RELEASE_EPSILON = {"state": ("observation.state",), "action": ("action",)}, 1e-6   # of other robots
TABLE = Path(__file__).with_name("robots.json")   # of the robots of Table 3's sources, and of the worlds
WORD = "(?<![a-z])"   # where a word begins: a laptop is no top, and what is bright is not right


@dataclass(frozen=True)
class Robot:
    """What is not given is the reader's default."""

    name: str
    relative: tuple = ()    # per dimension, whether delta mode subtracts the state at t
    state: tuple | None = None   # features, or (feature, (first, end) or name, ...), concatenated in order; (): none
    action: tuple = ()
    widths: tuple = ()      # their dimensions, where known
    cameras: dict = field(default_factory=dict)   # slot -> feature
    grippers_by_range: bool = False   # absolute dimensions are scaled to +-0.5 of their range, not standardised
    kinds: tuple | str = ()  # of KINDS, of each action dimension or of all
    instruction: str = ""   # the column that holds it


def find_robot(name_or_file):
    """A name of the table, or a user's JSON file -> Robot. ValueError: one line."""
    if name_or_file in ROBOTS:
        return ROBOTS[name_or_file]
    path = Path(name_or_file)
    if path.suffix != ".json":
        near = difflib.get_close_matches(str(name_or_file), ROBOTS, 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(ROBOTS)}"
        raise ValueError(f"--robot {name_or_file}: unknown; {hint}; or give a .json file, see support/data/robots.py")
    return described(read_json(path), f"--robot {path}")


def described(row, where):
    """What a robot file holds -> Robot. `where` names it in the ValueError."""
    known = {"name": str, "cameras": dict, "state": list, "action": list, "delta": list, "kind": (str, list),
             "instruction": str}
    wrong = [key for key, value in row.items() if not isinstance(value, known.get(key, ()))]
    must(not wrong and "name" in row, f"{where}: {', '.join(wrong)[:200] or 'name'} is missing, unknown or of another "
         f"type; it takes {', '.join(known)}, see support/data/robots.py")
    name, cameras, delta, kinds = row["name"], row.get("cameras", {}), row.get("delta", []), row.get("kind", ())
    must(name.isprintable() and 0 < len(name) <= 100,
         f"{where}: name is {name!r:.100}, expected 1 to 100 letters that can be printed")
    must(not set(cameras) - set(VIEWS) and all(isinstance(key, str) for key in cameras.values()),
         f"{where}: cameras are {', '.join(VIEWS)}, not {', '.join(cameras)[:200]}, and name features")
    must(all(type(run) is int and 0 < abs(run) <= WIDEST for run in delta) and sum(map(abs, delta)) <= WIDEST,
         f"{where}: delta counts dimensions, such as [6, -1], {WIDEST} at most; found {delta!r:.100}")
    relative = tuple(run > 0 for run in delta for _ in range(abs(run)))
    each = [kinds] * max(len(relative), 1) if isinstance(kinds, str) else kinds
    must(all(isinstance(kind, str) and kind in KINDS for kind in each),
         f"{where}: kind is {kinds!r:.100}; it is one of {', '.join(KINDS)}, or a list of these")
    must(not any(delta and kind != "position" for delta, kind in zip(relative, each)),
         f"{where}: delta takes a velocity or a torque relative to the state; count it as absolute")
    must(row.get("action") != [], f'{where}: action is empty; leave it out, or say "kind": "human" in a mixture.json')
    state, action = (tuple(_entry(entry, f"{where}: {of}") for entry in row.get(of, ())) for of in ("state", "action"))
    return Robot(name, relative, state if "state" in row else None, action, cameras=cameras,
                 kinds=kinds if isinstance(kinds, str) else tuple(kinds), instruction=row.get("instruction", ""))


def _entry(entry, where):
    """An entry of a robot file's state or action -> feature, or (feature, (first, end) or name, ...)."""
    feature, *parts = entry if isinstance(entry, list) and entry else [entry]
    must(isinstance(feature, str) and all(isinstance(part, str) or isinstance(part, list) and len(part) == 2
         and all(type(n) is int for n in part) and 0 <= part[0] < part[1] <= WIDEST for part in parts),
         f"{where}: {entry!r:.100} is no feature and no [feature, [first, end] or name, ...]")
    return (feature, *(part if isinstance(part, str) else tuple(part) for part in parts)) if parts else feature


ROBOTS = {}   # a row of the table is as a user's file, with several names, and two fields more
for row in read_json(TABLE, list):
    plain = {key: row[key] for key in ("cameras", "state", "action", "delta") if key in row}
    more = {"widths": tuple(row.get("widths", ())), "grippers_by_range": row.get("grippers_by_range", False)}
    ROBOTS |= {name: replace(described({"name": name} | plain, TABLE), **more) for name in row["names"]}


def given_name(named, where):
    """The name that a dataset gives its robot; "" for none or "unknown": all of these would count as one. ValueError:
    no name. `where`: file and key."""
    named = "" if named is None else named
    must(isinstance(named, str) and named.isprintable() and len(named) <= 100,
         f"{where} is {named!r:.60}, expected a name; correct it")
    return "" if named.lower() == "unknown" else named


def unnamed(fps, state, action, others):
    """What a robot that nobody named is called: by all that it measures, so that a moved dataset is still of it.
    state, action: names of their dimensions; others: JSON-able, its cameras for one."""
    return f"unnamed-{len(state)}q{len(action)}a-{digest([float(fps), list(state), list(action), others])[:8]}"


def action_kinds(robot, keys, names):
    """The control mode of each action dimension, of which features' keys and names are given -> tuple of KINDS, whether
    it is guessed. The dimension's own name decides, else the feature's, but not about a gripper. ValueError: the robot
    has another number of dimensions."""
    must(len(robot.relative) in (0, len(names)), f"robot '{robot.name}' has a delta mask of {len(robot.relative)} "
         f"dimensions, the actions have {len(names)}; give a --robot file with the right one")
    kinds, guessed = (robot.kinds,) * len(names) if isinstance(robot.kinds, str) else robot.kinds, False
    if not kinds:
        texts = [[name, "" if re.search("grip|pos", name.lower()) else key] for key, name in zip(keys, names)]
        kinds = tuple(next((kind for text in pair for kind, words in KINDS.items()
                            if words and re.search(f"{WORD}({words})(?![a-z])", spelt(text))), "position")
                      for pair in texts)
        guessed = set(kinds) - {"position"}
    must(len(kinds) == len(names), f"robot '{robot.name}' has {len(kinds)} kinds, the actions have {len(names)} "
         "dimensions; give a --robot file with the right ones")
    return kinds, bool(guessed)


def check_width(what, d, most):
    """ValueError where `what` has more dimensions than the model takes."""
    must(d <= most, f'{what} has {d} dimensions, the model takes at most {most}; choose some in a --robot file, such '
         'as "state": [["observation.state", [0, 7], [22, 29]]], or of a plain folder write only these to episode.npz')


def release_statistics(path, robot):
    """The release's stats.json -> {"state_mean", "state_std", "action_mean", "action_std": tuple}. It divides by
    std + 1e-6: that is added here. robot: a name of the table, or a Robot. ValueError: what does not fit."""
    row = robot if isinstance(robot, Robot) else ROBOTS.get(robot, Robot(robot))
    stored, moments = read_json(path), {}
    found = stored.get(row.name)
    must(isinstance(found, dict), f"{path} has no statistics of robot '{row.name}', only of "
         f"{', '.join(stored)[:200] or 'none'}: give --robot one of these, or a .json file with its name")
    for kind in ("state", "action"):
        keys = RELEASE_FEATURES[kind] if getattr(row, kind) == getattr(Robot, kind) else getattr(row, kind)
        for moment, add in (("mean", 0.0), ("std", RELEASE_EPSILON)):
            values = [np.zeros(0)]
            for key in keys:
                key, *parts = [key] if isinstance(key, str) else key
                must(isinstance(found.get(key), dict) and moment in found[key],
                     f"{path}: robot '{row.name}' has no {moment} of {key}, only "
                     f"{', '.join(found)[:200] or 'nothing'}; name the features in a --robot file")
                numbers(found[key][moment], f"{path}: {moment} of {key}, robot '{row.name}'")   # what it refuses
                whole = np.ravel(np.asarray(found[key][moment], np.float64))
                must(all(isinstance(part, tuple) and part[1] <= len(whole) for part in parts), f"--robot: of {key}, "
                     f"{path} has {len(whole)} numbers and no names: give ranges of these, not {parts!r:.100}")
                values += [whole[slice(*part)] for part in parts] or [whole]
            moments[f"{kind}_{moment}"] = tuple((np.concatenate(values) + add).tolist())
        mean, std = moments[f"{kind}_mean"], moments[f"{kind}_std"]
        width = sum(row.widths) or len(mean)
        must(len(mean) == len(std) == width and min(std, default=1) > 0 and (width or kind == "state"),
             f"{path}: the {kind} mean and std of robot '{row.name}' must be {width} numbers, no std below 0, found "
             f"{len(mean)} and {len(std)}")
    return moments


def spelt(key):
    """A name in lower case, its words apart: leftWrist -> left_wrist."""
    return re.sub("([a-z])([A-Z])", r"\1_\2", key).lower()


def guess_cameras(keys, aside=""):
    """Video feature keys -> {slot: key}, from the beginnings of the words in the keys.
    wrist, hand or gripper: that of its side, of a single arm the left one. high, head, top or front without a side: the
    head, else the only camera left over. ValueError: two fit one slot, or none is the head; aside: what it adds."""
    found, rest = {slot: [] for slot in VIEWS}, []
    for key in keys:
        words = spelt(key.removeprefix("observation."))
        right, side = (re.search(f"{WORD}({sides})", words) for sides in ("right|r(?![a-z])", "left|right"))
        if re.search(f"{WORD}(left|right)?(wrist|hand|gripper)s?(?![a-z])", words):
            found["right_wrist" if right else "left_wrist"].append(key)
        elif re.search(rf"{WORD}(high|head|top|front)", words) and not side:
            found["head"].append(key)
        else:
            rest.append(key)
    if not found["head"] and len(rest) == 1:
        found["head"] = rest
    must(found["head"] and all(len(candidates) < 2 for candidates in found.values()),
         f"cannot tell which of the cameras {', '.join(keys)} is the head, which the wrists: name them in a --robot "
         f'file: "cameras": {{"head": KEY, "left_wrist": KEY}}{aside}')
    return {slot: candidates[0] for slot, candidates in found.items() if candidates}
