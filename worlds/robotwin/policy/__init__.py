"""RoboTwin's branch stable_2.0 takes this folder as policy/internvla_a1: a client of infer.py --serve.

It runs in RoboTwin's own Python: numpy, websockets and msgpack, no torch. docs/robotwin.md has the steps. Not here: the
model, and the branch main, which speaks to the server itself."""

import runpy
from pathlib import Path

import numpy as np

CAMERAS = {"head": "head_camera", "left_wrist": "left_camera", "right_wrist": "right_camera"}


class Model:
    """The served policy. Its client gets one frame an action, so o_{t-m} is m actions ago. execute_steps, threshold: as
    in deploy_policy.yml; grippers: their dimensions."""

    def __init__(self, client, execute_steps, threshold, grippers):
        self.client, self.execute, self.threshold, self.grippers = client, execute_steps, threshold, list(grippers)
        self.begins = True

    def act(self, instruction, observation):
        """What TASK_ENV.get_obs() gave, uint8 (H, W, 3), radians, grippers 0 closed .. 1 open -> action (d_a,)."""
        if self.begins:
            self.client.reset(str(instruction), self.execute, "cold", wait=True)
            self.begins = False
        cameras, known = observation["observation"], self.client.metadata["cameras"]
        pictures = {view: cameras[name]["rgb"] for view, name in CAMERAS.items()
                    if view in known and "rgb" in cameras.get(name, ())}
        action = np.array(self.client.step(pictures, observation["joint_action"]["vector"]))
        if self.threshold:
            action[self.grippers] = action[self.grippers] >= self.threshold
        return action


def get_model(usr_args):
    """deploy_policy.yml with --overrides -> Model. ImportError: no client.py. ValueError: a policy of another robot, or
    a shorter chunk."""
    here = Path(__file__).resolve().parent
    places = here / "client.py", here.parents[2] / "support/inference/client.py"   # a copy, or this folder is a link
    found = next((path for path in places if path.is_file()), None)
    if not found:
        raise ImportError(f"client.py is missing: copy support/inference/client.py of the project to {here}, or link "
                          "the folder worlds/robotwin/policy instead of copying it")
    client = runpy.run_path(str(found))["Client"](*(usr_args[name] for name in ("host", "port", "api_key", "patience")))
    told, left, steps = client.metadata, usr_args["left_arm_dim"], usr_args["execute_steps"]
    d = left + usr_args["right_arm_dim"] + 2
    if not told["state_dim"] == told["action_dim"] == d:
        raise ValueError(f"the policy of robot '{told['robot']}' has {told['state_dim']} state and "
                         f"{told['action_dim']} action dimensions, this embodiment {d}: serve another checkpoint")
    if not 1 <= steps <= told["chunk"]:
        raise ValueError(f"execute_steps {steps}: the policy plans {told['chunk']} actions at a time")
    return Model(client, steps, usr_args["gripper_threshold"], (left, d - 1))


def reset_model(model):
    """RoboTwin calls it before each episode."""
    model.begins = True


def eval(TASK_ENV, model, observation):
    """One action. RoboTwin looks again after it, and calls this until the episode is over."""
    TASK_ENV.take_action(model.act(TASK_ENV.get_instruction(), observation), action_type="qpos")
