"""What is read of a dataset: one interface, which folder.py and lerobot.py implement."""

import hashlib
import os
from pathlib import Path

from support.data import folder, lerobot
from support.data.file_hashes import digest, seen
from support.data.lerobot_metadata import LeRobotMetadata
from support.data.parquet import first_numbers
from support.files import must


class Source:
    """One opened dataset of E episodes; an episode has L frames. An episode is named by its position e, 0 to E - 1.
    What cannot be read is a ValueError: one line that says dataset, episode, frame and key.

    views_of(e)             the views that episode e has pictures of; others are missing there
    numbers(e)              state (L, d_q), action (L, d_a) or None; float32, raw units
    task(e, t)              the instruction at frame t, text
    frame(view, e, t)       the picture at frame t, (H, W, 3) uint8 RGB as recorded
    frames(view, e, times)  pictures as `frame` gives them, at `times` in any order; what they share is decoded once
    has_pictures(e, t)      whether frames t (n,) have pictures, (n,) bool
    labels(e)               what a simulator knows: suite (text), target, distractor (L, 2); {} on recordings
    identity()              JSON-able: what `numbers` depends on; changed files change it"""

    name: str           # for messages
    root: Path          # its folder
    robot: str          # datasets of one name share their statistics
    fps: float          # frames/s
    relative: tuple     # per action dimension, whether delta mode takes it relative to the state at t; () unknown
    lengths: list       # (E,) frames of each episode
    indices: list       # (E,) the number that the dataset itself gives an episode, for messages
    kinds: tuple        # per action dimension, of support.data.robots.KINDS; () without actions
    views: dict         # slot -> its camera, in the order of config.VIEWS or fewer; of all episodes
    state_keys: tuple   # features that make up the state, and what is taken of them; () where they have no names
    action_keys: tuple
    action_names: list  # of the action dimensions; [] unknown
    has_action: bool    # False: human video
    videos: dict        # slot -> (mp4 of each episode, seconds at which meta/ says it begins there); {} without films
    cache: object       # the FrameCache that its pictures come from, or None


def is_lerobot(path):
    """Which kind of dataset a folder holds. ValueError, one line: none."""
    if (Path(path) / "meta" / "info.json").exists():
        return True
    if (Path(path) / "episode.npz").exists():
        return False
    must(Path(path).suffix != ".npz", f"{path} is a file of a dataset: name the folder that it is in")
    must(Path(path).suffix != ".json" and not (Path(path) / "mixture.json").exists(),
         f"{path} is a mixture, where one dataset is expected: name the datasets that it lists")
    raise ValueError(f"{path} holds no dataset: expected mixture.json, meta/info.json (LeRobot) or episode.npz")


def open_source(path, robot=None):
    """A dataset folder -> Source. robot: a Robot, or None for what the dataset says of itself. ValueError: one line."""
    return lerobot.LeRobotSource(path, robot) if is_lerobot(path) else folder.FolderSource(path, robot)


def glance(path, robot=None):
    """What metadata alone says of a dataset -> (name, robot's name, frames, has_action). ValueError: as open_source."""
    if not is_lerobot(path):
        found = folder.FolderSource(path, robot)
        return found.name, found.robot, int(found.ends[-1]), found.has_action
    found = LeRobotMetadata(path, robot)
    if not found.info.get("total_frames"):
        found.read_episodes()
    frames = found.info.get("total_frames") or sum(found.lengths)
    return found.name, found.robot, int(frames), found.has_action


def recording(path, robot=None):
    """What was recorded, as all copies of a dataset have it, however they were written again -> hex: its episodes, and
    how its numbers begin or, without any, its first file of pictures. ValueError: as open_source."""
    if is_lerobot(path):
        found = LeRobotMetadata(path, robot)
        found.read_episodes()
        numbers = first_numbers(found.files[0], found.where, 1000)
    else:
        found = folder.FolderSource(path, robot)
        numbers = [x[:1000].tolist() for x in found.numbers(0) if x is not None and x.size]
    pictures = [] if numbers else seen(Path(path), "videos/**/*.mp4", "*.npy", "*/*")
    with open(next(iter(pictures), os.devnull), "rb") as file:
        begins = hashlib.sha256(file.read(1 << 20)).hexdigest()
    episodes = [int(n) for n in found.lengths], [str(task) for task in found.tasks]
    return digest([found.fps, episodes, repr(numbers), begins])
