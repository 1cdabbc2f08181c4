"""The interface of worlds: what each offers, what a report says, and the rivals."""

import inspect
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import worlds
from config import CONFIGS
from support.inference.report import film
from worlds import closed_loop, conveyor, training
from worlds.world import Rollout, World, actor


@pytest.mark.parametrize("name", worlds.NAMES)
def test_a_world_offers_what_the_interface_asks_for(name):
    """Names, and functions that take the same arguments, perhaps more."""
    world = worlds.find(name)
    assert world.NAME == name and world.OUTCOMES and set(world.PRESETS) <= set(CONFIGS)
    assert all(hasattr(world, field) for field in World.__annotations__)
    for method in (method for method, of in vars(World).items() if inspect.isfunction(of) and method[0] != "_"):
        asked = list(inspect.signature(getattr(World, method)).parameters)[1:]
        assert set(asked) <= set(inspect.signature(getattr(world, method)).parameters), method


def test_what_goes_wrong_has_a_name():
    """By policies that do it: reach for the distractor, use the other arm, close beside everything."""
    settings = conveyor.settings("static", 20, seed=3, distractor=1.0)
    scenes = conveyor.Scenes(settings)

    def reach(place, arm):
        """Sixteen waypoints on `place` (N, 2) for an arm (N,), which closes in the last three."""
        chunk = np.repeat(scenes.state()[:, None], 16, 1).reshape(20, 16, 2, 3)
        chunk[np.arange(20), :, arm, :2] = place[:, None]
        chunk[np.arange(20), -3:, arm, 2] = 0
        return lambda *_: chunk.reshape(20, 16, 6)

    (target, distractor), named = scenes.objects.swapaxes(0, 1), scenes.named
    ended = {"took it": reach(target, named), "wrong object": reach(distractor, named),
             "wrong arm": reach(target, 1 - named), "near miss": reach(target + 0.2, named)}
    for outcome, policy in ended.items():
        assert set(conveyor.rollout(policy, settings).outcomes) == {outcome}


def test_a_summary_has_the_wilson_interval_in_all_and_by_task_and_counts_every_outcome():
    world = SimpleNamespace(TASKS=("a", "b", "c"), OUTCOMES=("won", "lost", "fell"))
    result = Rollout(np.arange(100) < 80, ["won"] * 80 + ["lost"] * 20, ["a", "b"] * 50, [], None, None)
    result.lead = np.where(np.arange(100) < 3, (0.0, 1.0) * 50, np.nan)
    summary = closed_loop.summarise(result, world)
    assert summary["success"] == 0.8 and summary["interval"] == pytest.approx([0.7112, 0.8666], abs=1e-3)
    assert {task: part["episodes"] for task, part in summary["tasks"].items()} == {"a": 50, "b": 50}
    assert summary["outcomes"] == {"won": 80, "lost": 20, "fell": 0}
    assert summary["lead"] == {"median": 0.0, "quartiles": [0.0, 0.5], "episodes": 3} and "imagined" not in summary
    assert summary["each"]["outcome"] == result.outcomes and summary["each"]["lead"][:4] == [0, 1, 0, None]
    json.dumps(summary, allow_nan=False)


def test_a_policy_acts_on_every_scene_in_its_place_whatever_the_number():
    """In batches of about fifty, with the world's cameras by name."""
    def plan(pictures, states, instructions, imagine):
        assert not imagine and all(list(seen) == ["head", "wrist"] for seen in pictures) and len(states) <= 99
        return np.array([[seen["wrist"][1][0, 0, 0], float(text)] for seen, text in zip(pictures, instructions)]), None

    now = np.tile(np.arange(120).reshape(-1, 1, 1, 1, 1), (1, 2, 4, 4, 3)).astype(np.uint8)
    act = actor(SimpleNamespace(plan=plan), ("head", "wrist"))
    actions = act(now, now, np.zeros((120, 6)), [str(i) for i in range(120)])
    assert (actions == np.arange(120)[:, None]).all() and actor(act, ()) is act


def test_what_is_imagined_of_the_first_view_is_kept_beside_the_actions():
    def plan(pictures, states, instructions, imagine):
        assert imagine
        return states[:, None], torch.from_numpy(states[:, None, :3, None, None]).expand(-1, 2, 3, 4, 4)

    kept, states = [], np.arange(720).reshape(120, 6).astype(np.uint8)
    policy = SimpleNamespace(plan=plan, to_pictures=lambda z: z)
    actor(policy, ("head", "wrist"), kept)(*[np.zeros((120, 2, 4, 4, 3))] * 2, states, [""] * 120)
    assert (np.concatenate(kept) == states[:, None, None, :3]).all()


def test_the_controls_change_the_text_or_the_pictures_and_nothing_else():
    seen, settings = {}, conveyor.settings("dynamic", 3, 1)
    past, now = np.arange(3), np.arange(3) + 10
    states, texts = np.zeros((3, 6)), ["left pick red disc", "right pick green cross", "left pick blue square"]
    for name, control in conveyor.controls(lambda *what: what, settings).items():
        seen[name] = control(past, now, states, texts)
    assert list(seen) == ["wrong arm", "wrong colour", "shuffled images", "frozen past", "reversed past", "hold still"]
    assert (seen.pop("hold still") == 0).all()
    assert seen["wrong arm"][3] == ["right pick red disc", "left pick green cross", "right pick blue square"]
    assert seen["wrong colour"][3] == ["left pick green disc", "right pick blue cross", "left pick red square"]
    assert all(what[2] is states for what in seen.values())
    assert all(np.array_equal(seen[name][0], past) for name in ("wrong arm", "wrong colour"))
    moved = seen.pop("shuffled images")
    assert moved[3] is texts and (moved[0] != past).all() and (moved[1] - moved[0] == 10).all()
    assert all(what[1] is now for what in seen.values())
    assert seen["frozen past"][0] is now and seen["frozen past"][3] is seen["reversed past"][3] is texts


def test_a_film_has_one_size_whatever_size_the_model_imagines(tmp_path):
    """As a1_2b does at 256 pixels, where the world's cameras have 64."""
    frames = np.zeros((1, 9, 1, 16, 16, 3), np.uint8)
    rollout = Rollout(np.ones(1, bool), ["won"], ["a"], ["go"], np.zeros((1, 6)), frames)
    policy = SimpleNamespace(plan=lambda *_: (None, torch.zeros(1, 1, 16, 8, 8)),
                             to_pictures=lambda z: torch.full((1, 3, 64, 64), 255, dtype=torch.uint8))
    film(policy, {"still": rollout}, 2, ("head",), tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as made:
        sizes = {frame.size for frame in ImageSequence.Iterator(made)}
        assert len(sizes) == 1 and max(sizes.pop()) < 300


def test_rivals_get_the_noise_of_the_policy_and_a_word_chooses_them():
    """A policy that answers with how often it has been asked."""
    asked = []

    class Counting:
        calls = 0

        def plan(self, pictures, states, instructions, imagine):
            asked.append(self.calls)
            self.calls += 1
            return np.repeat(states[:, None], 16, 1), None
    report, rollouts = closed_loop.closed_loop(Counting(), conveyor, 2, 1, controls="past")
    assert list(report) == [*conveyor.SUITES, "controls"]
    assert list(report["controls"]) == ["frozen past", "reversed past"]
    assert asked == [0, 0, 0, 1, 1, 1] and list(rollouts) == list(conveyor.SUITES)


def test_validation_watches_the_objects_of_moving_scenes_where_they_are_in_sight():
    place = np.array([[0, 0], [0.5, -0.5]])
    recorded = [{"suite": "dynamic", "target": place, "distractor": np.full((2, 2), np.nan)},
                {"suite": "dynamic", "target": place + 0.9, "distractor": place},
                {"suite": "static", "target": place, "distractor": place}, {}]
    source = SimpleNamespace(labels=lambda e: recorded[e])
    assert [training.suite(source, e) for e in range(4)] == ["dynamic", "dynamic", "static", ""]
    assert conveyor.marks(source, 0, 1) == [("target", 0.75, 0.75)] and conveyor.marks(source, 0, 2) == []
    assert conveyor.marks(source, 1, 1) == [("distractor", 0.75, 0.75)]
    assert conveyor.marks(source, 2, 1) == conveyor.marks(source, 3, 1) == []


@pytest.mark.parametrize("suites", ["static,", "static,static", "moving"])
def test_suites_that_are_none_or_named_twice_are_refused(suites):
    with pytest.raises(ValueError, match=f"^--suites {suites}: those of conveyor are static, dynamic$"):
        closed_loop.evaluate(None, conveyor, 1, 0, False, None, "out", suites.split(","))
