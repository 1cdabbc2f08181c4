"""train.py: Eq. (4) is learned, a killed run goes on exactly, and the README's bare commands work."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from worlds import conveyor
import data
import train
from config import CONFIGS, get_config
from model import InternVLA_A1
from support.data.kept_statistics import statistics

ROOT = Path(__file__).parents[2]
RUN = ("--steps 24 --batch_size 2 --action_draws 1 --layers 1 --text_tokens 8 --threads 1 --episodes 2 "
       "--save_every 3 --log_every 1 --eval_every 100 --eval_windows 12").split()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """The five datasets of the embedded world, 60 episodes."""
    root = tmp_path_factory.mktemp("data") / "conveyor"
    conveyor.write_dataset(root, episodes=60)
    return root


def command(dataset, out, *flags):
    return [sys.executable, "train.py", "--data", str(dataset), "--out", str(out), *RUN, *flags]


def run(argv):
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    """An uninterrupted run: its folder and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, run(command(dataset, out))


def test_the_log_holds_only_pure_functions_of_the_run(finished):
    """Steps, losses, lr, gradient norm, counts; time goes to timing.jsonl."""
    rows = [json.loads(line) for line in (finished[0] / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [*range(1, 25), 24]
    for row in rows[:-1]:
        assert set(row) == {"step", "loss", "loss_act", "loss_gen", "lr", "grad_norm", "n_act", "n_gen"}
        assert row["loss"] == pytest.approx(row["loss_act"] + 0.3 * row["loss_gen"])           # Eq. (4)
        assert row["lr"] == train.lr_at(row["step"] - 1, CONFIGS["conveyor"].train)
    assert set(rows[-1]) == {"step", "held_out"}
    timing = [json.loads(line) for line in (finished[0] / "timing.jsonl").read_text().splitlines()]
    assert len(timing) == 24 and all(row["seconds"] > 0 for row in timing)


def test_the_report_gives_success_and_episodes_of_the_static_and_the_dynamic_suite(finished):
    """report.json of the embedded world (Sec. 5.1, 5.3 in miniature)."""
    report = json.loads((finished[0] / "report.json").read_text())
    for suite in ("static", "dynamic"):
        assert report[suite]["episodes"] == 2 and 0 <= report[suite]["success"] <= 1
    assert report["config"] == "conveyor" and report["steps"] == 24 and "loss_act" in report["held_out"]
    assert list(report["controls"]) == ["frozen past", "reversed past"]   # the causal test
    assert re.search(r"policy +static .*%.*2 episodes", finished[1])


def test_a_finished_run_can_be_resumed(dataset, finished, tmp_path):
    """A run killed after its last checkpoint, during the closed loop, gets its report by --resume."""
    out = shutil.copytree(finished[0], tmp_path / "again")
    (out / "report.json").unlink()
    with open(out / "log.jsonl", "a") as log:          # a kill may also leave a torn line behind
        log.write('{"step": 9')
    run(command(dataset, out, "--resume"))
    one, other = (json.loads((folder / "report.json").read_text()) for folder in (out, finished[0]))
    assert one | {"seconds": 0} == other | {"seconds": 0}
    assert (out / "log.jsonl").read_bytes() == (finished[0] / "log.jsonl").read_bytes()


def test_a_run_shows_how_it_learns(finished):
    """curves.png and, at every evaluation, one window: t - m, t, imagined, true."""
    with Image.open(finished[0] / "curves.png") as curves, Image.open(finished[0] / "foresight_00000024.png") as foresight:
        assert curves.width > 600 and foresight.width > 4 * 64


# ---- the schedule ------------------------------------------------------------------------------------------

def test_the_learning_rate_warms_up_and_follows_a_cosine_counted_from_step_0():
    """Table 2, post-training: 5e-5 to 5e-6, 2,000 steps of warm-up, 60,000 of decay."""
    paper = CONFIGS["a1_2b"].train
    warm = [train.lr_at(step, paper) for step in range(2000)]
    assert 0 < warm[0] < 1e-7 and np.allclose(np.diff(warm), warm[0]) and warm[-1] < 5e-5
    for step in (2000, 20_000, 45_000):
        cosine = (1 + np.cos(np.pi * step / 60_000)) / 2
        assert train.lr_at(step, paper) == pytest.approx(5e-6 + 4.5e-5 * cosine)
    assert train.lr_at(30_000, paper) == pytest.approx(2.75e-5)
    assert train.lr_at(60_000, paper) == train.lr_at(90_000, paper) == pytest.approx(5e-6)
    assert max(train.lr_at(step, paper) for step in range(0, 60_000, 50)) <= 5e-5


# ---- learning ----------------------------------------------------------------------------------------------

class TwoEpisodes:
    """Moving targets that differ in place and velocity; instruction, arm and start are the same in both."""

    name, has_action, robot, fps, views = "two", True, "conveyor", 30.0, {v: v for v in conveyor.VIEWS}
    lengths, action_names, relative = np.array([31, 31]), conveyor.STATE_NAMES, ()
    state_keys = action_keys = ()

    def __init__(self):
        first = conveyor.settings("dynamic", 1, seed=3, distractor=0)[0]
        pair = [replace(first, x=-0.25, y=0.2, v=-0.035), replace(first, x=0.25, y=-0.2, v=0.035)]
        world, self.tasks, rows, self.film = conveyor.Scenes(pair), [s.instruction for s in pair], [], []
        for t in range(31):
            action = conveyor.scripted_action(world) if t >= 15 else world.state()
            rows.append((world.state(), action))
            self.film.append(world.render())
            world.step(action)
        self.state, self.action = (np.stack(column, 1) for column in zip(*rows))

    def numbers(self, e):
        return self.state[e], self.action[e]

    def views_of(self, e):
        return list(self.views)

    def frame(self, view, e, t):
        return self.film[t][e, conveyor.VIEWS.index(view)]

    def frames(self, view, e, times):
        return [self.frame(view, e, t) for t in times]

    def task(self, e, t):
        return self.tasks[e]


@pytest.mark.long
def test_two_episodes_are_overfitted_and_the_images_decide():
    """Eq. (4), 200 steps: L_act at most 0.3 of its value with exchanged images, L_gen below copying z_t."""
    torch.manual_seed(0)
    config, source = get_config("conveyor", {"chunk": 8, "text_tokens": 16}), TwoEpisodes()
    rows = np.array([[e, t] for e in (0, 1) for t in (13, 14, 15)])   # the state is the same in all
    stats = statistics({0: source}, {0: rows}, 8, "absolute", 1e-3)
    batch = data.collate([data.example(config.model, 15, stats, source, e, t) for e, t in rows])
    exchanged = replace(batch, image=batch.image.roll(3, 0), frames=batch.frames.roll(3, 0))
    model = InternVLA_A1(config.model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], betas=(0.9, 0.95))
    noise = torch.Generator().manual_seed(1)

    def losses(batch, latents=False):
        eps, tau = torch.randn(6, 4, 8, 32, generator=noise), torch.rand(6, 4, generator=noise)
        return model(batch, eps, tau, latents)

    for step in range(200):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 20, (200 - step) / 60)
        now = losses(batch)
        loss = now.total(0.3, int(now.act_count), int(now.gen_count))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        right, wrong = (sum(float(losses(b).act_sum) for _ in range(8)) for b in (batch, exchanged))
        final = losses(batch, latents=True)
    copying = (final.z[:, :, 1] - final.z[:, :, 2]).square().mean()
    imagining = final.gen_sum / final.gen_count
    assert right <= 0.3 * wrong, (right, wrong)        # measured: 0.06
    assert imagining < 0.3 * copying, (imagining, copying)     # measured: 0.01


# ---- bare commands -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("preset, release", [("a1_2b", 1836.00), ("a1_3b", 3222.76)])
def test_train_with_an_a1_preset_alone_prints_its_tables_and_names_what_is_missing(preset, release, tmp_path):
    """Parameter and memory tables, then one line with what is missing; exit code 2; Table 1."""
    argv = [sys.executable, str(ROOT / "train.py"), "--config", preset]
    done = subprocess.run(argv, cwd=tmp_path, text=True, capture_output=True, timeout=120)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("train.py: ") and "--data" in done.stderr and preset in done.stderr
    rows = {name: float(n) for name, n in re.findall(r"^  (\w[\w ]*?) +([\d.]+)", done.stdout, re.M)}
    parts = sum(rows[part] for part in ("und", "gen", "act", "projections", "vae"))
    assert rows["total"] == pytest.approx(parts, abs=0.03)
    assert rows["total"] + rows["not built"] == pytest.approx(release, abs=0.02)
    assert re.search(r"weights, gradients and states take [\d.]+ GiB", done.stdout)
    assert not os.listdir(tmp_path)
