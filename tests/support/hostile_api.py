"""What test_hostile.py calls: the programs and readers under test, in this process."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import infer as infer_py
import lpt
import train as train_py
from bench.__main__ import run as bench_main
from config import get_config, to_dict
from data import Mixture, open_corpus
from model import InternVLA_A1
from support import checkpoint
from support.data.__main__ import main as data_main
from support.data.picture import decode
from support.data.kept_statistics import statistics_by_robot
from support.data.robots import ROBOTS
from support.data.statistics import Statistics
from support.weights.__main__ import parse as weights_main
from support.weights.release import release_settings

SMALL = {"layers": 1, "image_size": 32, "vae_size": 32, "chunk": 4, "text_tokens": 8}
SMALL_RUN = [f"--{key}={value}" for key, value in {
    **SMALL, "batch_size": 2, "steps": 1, "decay_steps": 1, "warmup_steps": 1, "full_windows": "false", "action_draws": 1, "m": 4,
    "eval_windows": 2, "threads": 1}.items()]


def code(picture):
    """The number that a picture of test_lerobot.coded carries."""
    return sum(int(picture[16, bit * 10 + 5].mean() > 127) << bit for bit in range(6)) if picture.shape == (64, 64, 3) else -1


def episodes(root, m, robot=None):
    """Read a dataset as a training run does -> per episode, by its own number, what it holds: state, action, the
    instruction, and per view the numbers that its first, middle and last picture carry. Then one batch is drawn."""
    config = get_config("conveyor", {**SMALL, "m": m, "full_windows": False})
    corpus = open_corpus(Path(root), m, robot=str(robot) if robot else None)
    for fault, _ in corpus.preflight(m):
        raise ValueError(fault)
    stats, _ = statistics_by_robot(corpus, m, config.model.chunk, config.data.action_mode, config.data.std_floor)
    for source in {id(s): s for s in (*corpus.sources.values(), corpus.held_out) if s is not None}.values():
        for e, number in enumerate(source.indices):
            state, action = source.numbers(e)
            n = len(state)
            views = getattr(source, "views_of", lambda e: source.views)(e)
            shown = {view: [code(source.frame(view, e, t)) for t in (0, n // 2, n - 1)] for view in views}
            yield int(number), {"state": state, "action": action if source.has_action else None, "pictures": shown,
                                "task": source.task(e, n // 2)}
    dealt = lpt.deal(corpus.frames, corpus.weights, 1, config.data.lpt_workers)
    mixture = Mixture(config, stats, corpus.sources, corpus.windows, dealt[0], 0)
    for n in range(2):
        for key, x in mixture.arrays(n).items():
            assert torch.isfinite(x.float()).all(), f"a batch holds {key} that is not finite"


def picture(path):
    return decode(path)


def write_images(root):
    """A good image folder of a robot with two cameras and six joints."""
    root.mkdir()
    for view in ("head", "left_wrist"):
        for time in ("past", "now"):
            Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(root / f"{view}_{time}.png")
    np.save(root / "state.npy", np.linspace(-1, 1, 6, dtype=np.float32))
    np.save(root / "true_actions.npy", np.zeros((4, 6), np.float32))
    (root / "task.txt").write_text("pick up\n")
    return root


def write_checkpoint(root):
    """A checkpoint of the smallest network, for that robot."""
    torch.manual_seed(0)
    config = get_config("conveyor", SMALL)
    model = InternVLA_A1(config.model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    stats = Statistics("arm", "absolute", 30.0, (0.1,) * 6, (1.0,) * 6, (0.2,) * 6, (1.0,) * 6, 1)
    state = {"step": 1, "config": to_dict(config), "statistics": asdict(stats), "versions": {}, "log_length": 0}
    return checkpoint.save(root, 1, model.state_dict(), {}, state)


def remanifest(path):
    """A manifest that fits what is there now: the sender's own."""
    rows = {name: {"sha256": hashlib.sha256((path / name).read_bytes()).hexdigest(), "size": (path / name).stat().st_size}
            for name in checkpoint.FILES}
    (path / checkpoint.MANIFEST).write_bytes(checkpoint._manifest(rows))


def infer(argv):
    """infer.py --image-dir ... -> the actions it wrote."""
    folder = Path(argv[1])
    infer_py.main(list(map(str, argv)))
    return np.load(folder / "result" / "actions.npy")


def act(base, path):
    """The actions of the well-formed checkpoint in the well-formed folder, kept as an .npy file -> its path."""
    from shutil import copytree
    np.save(path, infer(["--image-dir", copytree(base("images"), path), "--checkpoint", base("checkpoint"), "--threads", 1]))
    return path.with_name(path.name + ".npy")


def write_release(root):
    """stats.json, config.json and train_config.json as the authors publish them, without weights."""
    root.mkdir()
    robot = ROBOTS["genie1"]
    moments = {key: {"mean": [0.1] * width, "std": [1.0] * width}
               for keys in (robot.state, robot.action) for key, width in zip(keys, robot.widths)}
    (root / "stats.json").write_text(json.dumps({"genie1": moments}))
    (root / "config.json").write_text(json.dumps({"type": "qwena1", "chunk_size": 50}))
    (root / "train_config.json").write_text(json.dumps({"resume": True, "steps": 25000000, "batch_size": 28, "dataset": {"action_mode": "delta"}}))
    return root


def release(root):
    _, _, stats = release_settings(str(root), "a1_3b_release", "genie1", "delta", acts=False)
    return stats.state_mean, stats.state_std, stats.action_mean, stats.action_std


def _flags_of(parser):
    """The flags of a parser and of its commands."""
    found = [flag for action in parser._actions for flag in action.option_strings if flag not in ("-h", "--help")]
    return found + [flag for action in parser._actions for command in getattr(action, "choices", None) or ()
                    if hasattr(action.choices, "values") for flag in _flags_of(action.choices[command])]


def options(program):
    """The flags of a program."""
    import argparse
    made = []

    class Stop(Exception):
        pass

    def stop(self, *_, **__):
        made.append(self)
        raise Stop
    before = argparse.ArgumentParser.parse_known_args
    argparse.ArgumentParser.parse_known_args = stop
    try:
        for run in {"train": [lambda: train_py.run([])], "infer": [lambda: infer_py.main([])], "data": [lambda: data_main([])],
                    "weights": [lambda: weights_main([])], "bench": [lambda: bench_main(["claims"]), lambda: bench_main(["latency"]),
                                                                    lambda: bench_main(["reading"])]}[program]:
            try:
                run()
            except Stop:
                pass
    finally:
        argparse.ArgumentParser.parse_known_args = before
    return sorted({flag for parser in made for flag in _flags_of(parser)})


def train(argv, out):
    """One run of train.py -> the config values in its checkpoint, by name; None without one."""
    train_py.run(list(map(str, argv)))
    found = sorted(Path(out).glob("step_*"))
    if not found:
        return None
    sections = json.loads((found[-1] / "state.json").read_text())["config"]
    return {key: value for part in sections.values() if isinstance(part, dict) for key, value in part.items()}


def call(program, argv, root):
    """A command that ends before anything long: of bench and weights, in a folder without what they need."""
    {"infer": infer_py.main, "data": data_main, "weights": weights_main, "bench": lambda a: bench_main(["claims", "tau", "--seeds=1", "--steps=1",
     "--only=none", *a])}[program](argv)
