"""The robots of Table 3's sources: which dimensions of an action are relative, and what the release calls them.

A robot is known by the `robot_type` of its dataset. Dimensions are concatenated in the order of the keys.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Robot:
    """One row of the table. parts: (name, width), where a negative width counts absolute dimensions (grippers).

    state, action: how a part's name becomes a feature of the dataset, in the order of parts. cameras: features of
    head, left and right wrist, shorter where a robot has fewer.
    """

    parts: tuple
    state: str = "states.{}"
    action: str = "actions.{}"
    cameras: tuple = ()

    @property
    def relative(self):
        """Per dimension: does delta mode subtract the state at t?"""
        return tuple(width > 0 for _, width in self.parts for _ in range(abs(width)))

    def features(self, kind):
        """[(feature, width)] of "state" or "action"."""
        widths = {}
        for name, width in self.parts:
            feature = getattr(self, kind).format(name)
            widths[feature] = widths.get(feature, 0) + abs(width)
        return list(widths.items())


_INTERN = ("images.rgb.head", "images.rgb.hand_left", "images.rgb.hand_right")
_TWO_ARMS = Robot((("left_joint.position", 6), ("left_gripper.position", -1), ("right_joint.position", 6),
                   ("right_gripper.position", -1)), cameras=_INTERN)
_GENIE = Robot((("left_joint.position", 7), ("right_joint.position", 7), ("left_gripper.position", -1),
                ("right_gripper.position", -1)), cameras=_INTERN)
_FRANKA = Robot((("joint.position", 7), ("gripper.position", -1)), cameras=("images.rgb.head", "images.rgb.hand"))
_WHOLE = {"state": "observation.state", "action": "action"}   # one feature holds all parts

ROBOTS = {
    "conveyor": Robot((("left", 2), ("left opening", -1), ("right", 2), ("right opening", -1)), "state", "action"),
    # InternData-A1
    "ARX Lift-2": _TWO_ARMS, "arx_lift2": _TWO_ARMS, "AgileX Split Aloha": _TWO_ARMS, "split_aloha": _TWO_ARMS,
    "piper": _TWO_ARMS, "ARX AC One": _TWO_ARMS, "Genie-1": _GENIE, "genie1": _GENIE, "Franka": _FRANKA,
    "franka": _FRANKA,
    # AgiBot-World Beta
    "a2d": Robot((("joint.position", 14), ("effector.position", -2)), "observation.states.{}",
                 cameras=("observation.images.head", "observation.images.hand_left", "observation.images.hand_right")),
    # RoboTwin
    "aloha": Robot((("left", 6), ("left gripper", -1), ("right", 6), ("right gripper", -1)), **_WHOLE,
                   cameras=("observation.images.cam_high", "observation.images.cam_left_wrist",
                            "observation.images.cam_right_wrist")),
    # RoboMind: a gripper is the last dimension of each arm's feature
    "agilex_3rgb": Robot((("joint_position_left", 6), ("joint_position_left", -1), ("joint_position_right", 6),
                          ("joint_position_right", -1)), "observation.states.{}",
                         cameras=("observation.images.camera_front", "observation.images.camera_left_wrist",
                                  "observation.images.camera_right_wrist")),
    # EgoDex, with the hands tracked; as plain human video it has no actions
    "dex": Robot((("hands", 14),), **_WHOLE, cameras=("observation.images.top_head",)),
}


def release_statistics(path, robot, action_mode):
    """Statistics that the release saved beside its weights, stats.json -> dict of four tuples.

    Keys state_mean, state_std, action_mean, action_std. The release divides by std + 1e-6, and so do we: it is added
    here. ValueError: no such robot, a feature without statistics, or widths that do not fit.
    """
    if robot not in ROBOTS:
        raise ValueError(f"--robot {robot}: unknown; known are {', '.join(ROBOTS)}")
    if action_mode not in ("absolute", "delta"):
        raise ValueError(f"--action_mode {action_mode}: choose absolute or delta, as the checkpoint was trained")
    try:
        stored = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is missing or cannot be read ({error}): the release saves it beside its "
                         f"model.safetensors, and without it actions have no units") from error
    if robot not in stored:
        raise ValueError(f"{path} has no statistics of robot '{robot}', only of {', '.join(stored) or 'none'}: "
                         f"give --robot one of these")
    moments = {}
    for kind in ("state", "action"):
        keys = [feature for feature, _ in ROBOTS[robot].features(kind)]
        absent = [key for key in keys if key not in stored[robot]]
        if absent:
            raise ValueError(f"{path}: robot '{robot}' has no {', '.join(absent)}, only {', '.join(stored[robot])}")
        for moment, add in (("mean", 0.0), ("std", 1e-6)):
            values = np.concatenate([np.ravel(np.asarray(stored[robot][key][moment], np.float64)) for key in keys])
            if len(values) != len(ROBOTS[robot].relative) or not np.isfinite(values).all():
                raise ValueError(f"{path}: the {kind} {moment} of robot '{robot}' must be "
                                 f"{len(ROBOTS[robot].relative)} finite numbers, found {len(values)}")
            moments[f"{kind}_{moment}"] = tuple((values + add).tolist())
    return moments
