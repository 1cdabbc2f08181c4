"""The robots of Table 3's sources, and a user's own: features of the dataset, camera slots, and the delta mask.

A robot is known by the `robot_type` of its dataset, or by --robot: a name of the table or a JSON file such as

    {"name": "my_arm", "cameras": {"head": "observation.images.top", "left_wrist": "observation.images.wrist"},
     "state": ["observation.state"], "action": ["action"], "delta": [6, -1]}

where `delta` counts, in order, 6 dimensions that are relative to the state at t and 1 (a gripper) that is absolute.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from config import VIEWS
from support.files import numbers, read_json
from support.flags import nearest

RELEASE_FEATURES, RELEASE_EPSILON = {"state": ("observation.state",), "action": ("action",)}, 1e-6   # of other robots
WORD = "(?<![a-z])"   # where a word begins: a laptop is no top, and what is bright is not right


@dataclass(frozen=True)
class Robot:
    """What is not given is the reader's default."""

    name: str
    relative: tuple = ()    # per dimension, whether delta mode subtracts the state at t
    state: tuple = ()       # features of the dataset, concatenated in order
    action: tuple = ()
    widths: tuple = ()      # their dimensions, where known
    cameras: dict = field(default_factory=dict)   # slot -> feature
    grippers_by_range: bool = False   # absolute dimensions are scaled to +-0.5 of their range, not standardised


def dims(*runs):
    """dims(6, -1) -> six relative dimensions and an absolute one."""
    return tuple(run > 0 for run in runs for _ in range(abs(run)))


def _row(names, runs, parts, cameras, state="states.{}", action="actions.{}", **more):
    """Table rows that differ in nothing but their name. parts: (part of the feature's name, dimensions)."""
    fields = {"relative": dims(*runs), "state": tuple(state.format(part) for part, _ in parts),
              "action": tuple(action.format(part) for part, _ in parts), "widths": tuple(n for _, n in parts),
              "cameras": dict(zip(VIEWS, cameras)), **more}
    return {name: Robot(name, **fields) for name in names}


_INTERN = ("images.rgb.head", "images.rgb.hand_left", "images.rgb.hand_right")
ROBOTS = {
    **_row(("conveyor",), (2, -1, 2, -1), (), (), grippers_by_range=True),
    # InternData-A1
    **_row(("ARX Lift-2", "arx_lift2", "AgileX Split Aloha", "split_aloha", "piper", "ARX AC One"), (6, -1, 6, -1),
           (("left_joint.position", 6), ("left_gripper.position", 1), ("right_joint.position", 6),
            ("right_gripper.position", 1)), _INTERN),
    **_row(("Genie-1", "genie1"), (14, -2),
           (("left_joint.position", 7), ("right_joint.position", 7), ("left_gripper.position", 1),
            ("right_gripper.position", 1)), _INTERN),
    **_row(("Franka", "franka"), (7, -1), (("joint.position", 7), ("gripper.position", 1)),
           ("images.rgb.head", "images.rgb.hand")),
    # AgiBot-World Beta
    **_row(("a2d",), (14, -2), (("joint.position", 14), ("effector.position", 2)),
           ("observation.images.head", "observation.images.hand_left", "observation.images.hand_right"),
           state="observation.states.{}"),
    # RoboTwin
    **_row(("aloha",), (6, -1, 6, -1), (("", 14),),
           ("observation.images.cam_high", "observation.images.cam_left_wrist", "observation.images.cam_right_wrist"),
           state="observation.state", action="action"),
    # RoboMind
    **_row(("agilex_3rgb",), (6, -1, 6, -1), (("joint_position_left", 7), ("joint_position_right", 7)),
           ("observation.images.camera_front", "observation.images.camera_left_wrist",
            "observation.images.camera_right_wrist"), state="observation.states.{}"),
    # EgoDex, with the hands tracked; as plain human video it has no actions
    **_row(("dex",), (14,), (("", 14),), ("observation.images.top_head",), state="observation.state", action="action"),
}


def find_robot(name_or_file):
    """A name of the table, or a user's JSON file -> Robot. ValueError: one line."""
    if name_or_file in ROBOTS:
        return ROBOTS[name_or_file]
    path = Path(name_or_file)
    if path.suffix != ".json":
        near = nearest(name_or_file, ROBOTS)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(ROBOTS)}"
        raise ValueError(f"--robot {name_or_file}: unknown; {hint}; or give a .json file, see support/data/robots.py")
    known = {"name": str, "cameras": dict, "state": list, "action": list, "delta": list}
    try:
        row = json.loads(path.read_text())
        wrong = [key for key, value in row.items() if key not in known or not isinstance(value, known[key])]
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"--robot {path} cannot be read as JSON ({error})") from error
    if wrong or "name" not in row:
        raise ValueError(f"--robot {path}: {', '.join(wrong) or 'name'} is missing, unknown or of another type; it "
                         f"takes name (text), cameras (slot -> feature), state, action (features), delta (numbers)")
    if set(row.get("cameras", {})) - set(VIEWS):
        raise ValueError(f"--robot {path}: cameras are {', '.join(VIEWS)}, not {', '.join(row['cameras'])}")
    if not all(isinstance(run, int) and run for run in row.get("delta", [])):
        raise ValueError(f"--robot {path}: delta counts dimensions, such as [6, -1]; found {row['delta']}")
    return Robot(row["name"], dims(*row.get("delta", ())), tuple(row.get("state", ())), tuple(row.get("action", ())),
                 cameras=row.get("cameras", {}))


def release_statistics(path, robot):
    """stats.json that the release saved beside its weights -> {"state_mean", "state_std", "action_mean", "action_std":
    tuple}. The release divides by std + 1e-6: it is added here. robot: a name of the table, or a Robot. ValueError:
    robot, feature or width does not fit, or a number is not finite.
    """
    row = robot if isinstance(robot, Robot) else ROBOTS.get(robot, Robot(robot))
    stored, moments = read_json(path), {}
    if not isinstance(stored.get(row.name), dict):
        raise ValueError(f"{path} has no statistics of robot '{row.name}', only of {', '.join(stored)[:200] or 'none'}"
                         ": give --robot one of these, or a .json file with its name")
    found = stored[row.name]
    for kind in ("state", "action"):
        keys = getattr(row, kind)
        keys = RELEASE_FEATURES[kind] if keys == getattr(Robot, kind) else keys
        for moment, add in (("mean", 0.0), ("std", RELEASE_EPSILON)):
            values = []
            for key in keys:
                key, *parts = [key] if isinstance(key, str) else key
                if not isinstance(found.get(key), dict) or moment not in found[key]:
                    raise ValueError(f"{path}: robot '{row.name}' has no {moment} of {key}, only "
                                     f"{', '.join(found)[:200] or 'nothing'}; name the features in a --robot file")
                numbers(found[key][moment], f"{path}: {moment} of {key}, robot '{row.name}'")   # what it refuses
                whole = np.ravel(np.asarray(found[key][moment], np.float64))
                if not all(isinstance(part, tuple) and part[1] <= len(whole) for part in parts):
                    raise ValueError(f"--robot: of {key}, {path} has {len(whole)} numbers and no names: give ranges of "
                                     f"these, not {parts!r:.100}")
                values += [whole[slice(*part)] for part in parts] or [whole]
            moments[f"{kind}_{moment}"] = tuple((np.concatenate([np.zeros(0), *values]) + add).tolist())
        mean, std = moments[f"{kind}_mean"], moments[f"{kind}_std"]
        width = sum(row.widths) or len(mean)
        if not len(mean) == len(std) == width or min(std, default=1) <= 0 or width == 0 and kind == "action":
            raise ValueError(f"{path}: the {kind} mean and std of robot '{row.name}' must be {width} numbers, no std "
                             f"below 0, found {len(mean)} and {len(std)}")
    return moments


def guess_cameras(keys):
    """Video feature keys -> {slot: key}, from the beginnings of the words in the keys.

    wrist, hand or gripper: that of its side, of a single arm the left one. high, head, top or front without a side: the
    head, else the only camera left over. Others are not read. ValueError: two fit one slot, or none is the head.
    """
    found, rest = {slot: [] for slot in VIEWS}, []
    for key in keys:
        words = re.sub("([a-z])([A-Z])", r"\1_\2", key.removeprefix("observation.")).lower()
        right, side = re.search(rf"{WORD}right", words), re.search(rf"{WORD}(left|right)", words)
        if re.search(rf"{WORD}(left|right)?(wrist|hand|gripper)", words):
            found["right_wrist" if right else "left_wrist"].append(key)
        elif re.search(rf"{WORD}(high|head|top|front)", words) and not side:
            found["head"].append(key)
        else:
            rest.append(key)
    if not found["head"] and len(rest) == 1:
        found["head"] = rest
    if not found["head"] or any(len(candidates) > 1 for candidates in found.values()):
        raise ValueError(f"cannot tell which of the cameras {', '.join(keys)} is the head, which the wrists: "
                         f'name them in a --robot file: "cameras": {{"head": KEY, "left_wrist": KEY}}')
    return {slot: candidates[0] for slot, candidates in found.items() if candidates}
