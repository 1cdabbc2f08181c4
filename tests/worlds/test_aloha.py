"""gym-aloha as a world: the package's physics and reward, the expert, what is recorded, and how a policy drives it."""

import json
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path

import numpy as np
import pytest

from worlds import aloha
from worlds.aloha import expert, record, sim
from worlds.aloha.__main__ import main
from worlds.aloha.sim import TASKS, Sim

ROOT = Path(__file__).parents[2]
pytest.importorskip("gym_aloha", reason="needs gym-aloha: pip install -r requirements-aloha.txt")
if not any(find_library(name) for name in ("OSMesa", "EGL")):
    pytest.skip("needs a renderer for MuJoCo: apt-get install libosmesa6", allow_module_level=True)


def package_env(task, renders):
    """The package's own environment. Its three pictures a step take a second: without `renders` they are not drawn."""
    sim.packages()
    from gym_aloha.env import AlohaEnv
    env = AlohaEnv(task, obs_type="pixels_agent_pos")
    if not renders:
        env._env.physics.render = lambda *_, **__: np.zeros((1, 1, 3), np.uint8)
    return env


def equal_to_the_package(world, env, seed, actions):
    """Whether states and rewards of both are the same bits; ours renders in between."""
    mine, (theirs, _) = world.reset(seed), env.reset(seed=seed)
    same = [np.array_equal(mine, theirs["agent_pos"].astype(np.float32))]
    for t, action in enumerate(actions):
        rewards = world.step(action)
        if t % 40 == 0:
            world.pictures()
        for reward in rewards:
            theirs, wanted, *_ = env.step(np.asarray(action, np.float64))
            same.append(reward == wanted)
        same += [np.array_equal(world.inner.physics.data.qpos, env._env.physics.data.qpos),
                 np.array_equal(world.state(), theirs["agent_pos"].astype(np.float32))]
    return all(same)


@pytest.mark.parametrize("task", record.RECORDED)
def test_states_and_rewards_are_the_packages_bit_for_bit(task):
    """Of one sequence of the expert's, to its success."""
    world = Sim(task)
    _, actions, success = expert.demonstrate(world, expert.Kinematics(world), 1)
    assert success and world.when < sim.LIMIT
    assert equal_to_the_package(world, package_env(task, renders=False), 1, actions)


@pytest.mark.long
@pytest.mark.parametrize("task", record.RECORDED)
def test_the_expert_solves_95_percent_of_seeds_and_perturbed_sequences_are_the_packages_bit_for_bit(task, pytestconfig):
    """The sequences of every second seed. And two steps of the package as it is, with its pictures."""
    world, env, solved, seeds = Sim(task), package_env(task, renders=False), 0, pytestconfig.getoption("--seeds")
    kinematics = expert.Kinematics(world)
    for seed in range(seeds):
        _, actions, success = expert.demonstrate(world, kinematics, seed)
        solved += success
        shaken = actions + np.random.default_rng(seed).normal(size=actions.shape) * 0.03
        assert seed % 2 or equal_to_the_package(world, env, seed, shaken), seed
    print(task, solved)
    assert solved >= 0.95 * seeds
    assert equal_to_the_package(world, package_env(task, renders=True), 1, actions[:1])


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_solves_the_task_and_is_the_same_for_a_seed(task):
    """Ten seeds here, 200 in docs/aloha.md. What it commands stays within the joints' ranges."""
    world = Sim(task)
    kinematics = expert.Kinematics(world)
    results = [expert.demonstrate(world, kinematics, seed) for seed in range(10)]
    assert sum(success for _, _, success in results) >= 9
    assert np.array_equal(results[0][1], expert.demonstrate(world, kinematics, 0)[1])
    for arm, (rows, at, opening, _) in expert.ARMS.items():
        low, high = world.model.jnt_range[rows].T
        actions = np.concatenate([actions for _, actions, _ in results])
        assert (actions[:, at] >= low - 1e-6).all() and (actions[:, at] <= high + 1e-6).all(), arm
        assert actions[:, opening].min() >= 0 and actions[:, opening].max() <= 1


def test_a_perturbed_execution_is_labelled_with_what_the_expert_wanted():
    world = Sim("transfer_cube")
    kinematics = expert.Kinematics(world)
    (clean, wanted, _), (shaken, label, _) = (expert.demonstrate(world, kinematics, 3, part) for part in (0.0, 1.0))
    assert np.array_equal(wanted, label) and np.abs(clean - shaken)[:, expert.JOINTS].max() > 0.005


def test_the_belt_carries_the_cube_at_its_speed_until_a_finger_touches_it_and_the_expert_meets_it_there():
    """Where it is met is where the package put it."""
    world, still = Sim(sim.MOVING), Sim("transfer_cube")
    still.reset(4)
    state = world.reset(4)
    start, meeting = world.data.qpos[16:18].copy(), still.data.qpos[16:18].copy()
    np.testing.assert_allclose(start + sim.MEET * world.belt, meeting, atol=1e-9)
    assert np.linalg.norm(world.belt) == pytest.approx(sim.SPEED)
    for _ in range(sim.HZ):
        world.step(state)
    np.testing.assert_allclose(world.data.qpos[16:18] - start, world.belt, atol=2e-3)   # metres, after one second
    kinematics, places = expert.Kinematics(world), []
    _, _, success = expert.demonstrate(world, kinematics, 4, watch=lambda: places.append(world.data.qpos[16:18].copy()))
    assert success and np.linalg.norm(places[40] - places[0]) > 0.1


def test_a_place_out_of_reach_has_no_solution_and_says_so():
    world = Sim("transfer_cube")
    state, kinematics = world.reset(0), expert.Kinematics(world)
    with pytest.raises(ValueError, match="no solution: the right arm stays .* mm away"):
        kinematics.follow({"right": [(0, np.zeros(3), 0, 0, 1), (3, np.array([3.0, 0, 0]), 0, 0, 1)]}, state)


def test_a_recording_is_the_same_for_a_seed_goes_on_where_it_was_and_refuses_another_version(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "HELD_OUT", 1)
    one = record.prepare(tmp_path / "one", 1, ("transfer_cube",))
    data = np.load(one / "transfer_cube" / "episode.npz")
    assert data["state"].shape == data["action"].shape == (data["ends"][-1], 14) and data["fps"] == sim.HZ
    assert data["task"].tolist() == ["hand the cube over"] and data["suite"].tolist() == ["transfer_cube"]

    class Interrupted(Exception):
        pass

    def interrupt(*_):
        raise Interrupted

    with monkeypatch.context() as patch:   # after all is recorded, and before it is joined
        patch.setattr(record, "_join", interrupt)
        with pytest.raises(Interrupted):
            record.prepare(tmp_path / "two", 1, ("transfer_cube",))
    half, = (tmp_path / "two" / "parts").glob("transfer_cube_000000.npz")
    written = half.stat().st_mtime_ns
    with pytest.raises(ValueError, match="holds a part of 1 demonstrations .*--episodes 1 --tasks transfer_cube"):
        record.prepare(tmp_path / "two", 2, ("transfer_cube",))
    assert half.stat().st_mtime_ns == written
    two = record.prepare(tmp_path / "two", 1, ("transfer_cube",))
    for path in sorted(one.rglob("*.np[yz]")):
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes(), path.name
    (two / "world").write_text(json.dumps({"version": "older"}))
    with pytest.raises(ValueError, match=r"another version of worlds/aloha \(older, this is"):
        record.prepare(two)


def test_a_folder_of_something_else_is_not_recorded_into_and_a_recording_goes_on(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("worlds.aloha.__main__.prepare", lambda root, *_: asked.append(root))
    (tmp_path / "parts").mkdir()
    with pytest.raises(ValueError, match="is not empty and holds no recording: give another folder"):
        main(["record", "--out", str(tmp_path)])
    assert asked == []
    (tmp_path / "world").write_text("{}")
    main(["record", "--out", str(tmp_path)])
    assert asked == [str(tmp_path)]


def test_a_rollout_plans_every_eighth_frame_from_that_frame_and_the_one_fifteen_before_it():
    """Action for action, as in a loop that looks at every frame. The first frame stands for those before it."""
    world, asked = aloha.simulator("transfer_cube"), []

    def plan(past, now, state):
        """Eight actions that depend on all that is seen."""
        return state + 0.02 * np.sin(float(past.mean()) + float(now.mean()) + np.arange(8)[:, None] + np.arange(14))

    def actor(past, now, states, texts):
        asked.append((past[0], now[0], states[0]))
        return plan(past[0], now[0], states[0])[None]

    result = aloha.rollout(actor, [("transfer_cube", 5)], record=1)
    assert result.frames.shape == (1, 201, 3, 64, 64, 3) and len(asked) == 25
    state, frames = world.reset(5), []
    for t in range(200):
        frames.append(world.pictures())
        if t % aloha.CHUNK == 0:
            past, now, seen = asked[t // aloha.CHUNK]
            assert np.array_equal(past, frames[max(t - aloha.M, 0)]) and np.array_equal(now, frames[t])
            assert np.array_equal(seen, state)
            chunk = plan(past, now, state)
        world.step(chunk[t % aloha.CHUNK])
        state = world.state()
    assert not result.success.any() and result.outcomes == ["reward 0 at best"]
    assert not result.also["within 300 steps"].any()


@pytest.mark.parametrize("task", ("transfer_cube", sim.MOVING))
def test_a_reversed_past_has_the_cube_come_from_the_other_side_and_nothing_else_differs(task):
    """A still cube's past is what it was, bit for bit."""
    world, shown = aloha.simulator(task), []

    def stay(past, now, states, texts):
        shown.append((past[0], now[0]))
        return np.repeat(states[:, None], aloha.CHUNK, axis=1)

    aloha.rollout(stay, [(task, 3)])
    true, shown = shown, []
    aloha.rollout(aloha.controls(stay, [])["reversed past"], [(task, 3)])
    assert len(true) == len(shown) == 25 and all(np.array_equal(one[1], other[1]) for one, other in zip(true, shown))
    if task != sim.MOVING:
        assert all(np.array_equal(one[0], other[0]) for one, other in zip(true, shown))
        return

    def where(picture):
        """The red cube's place in a head picture, in pixels across and down."""
        red = picture[0, ..., 0].astype(int) - picture[0, ..., 1:].max(-1) > 60
        return np.argwhere(red).mean(0)[::-1]

    for (past, now), (opposite, _) in list(zip(true, shown))[2:6]:
        moved = where(now) - where(past)
        assert np.linalg.norm(moved) > 2
        np.testing.assert_allclose(where(opposite) - where(now), moved, atol=1)


def test_evaluation_is_on_seeds_that_no_recording_holds():
    fixed = aloha.settings("transfer_cube")
    assert fixed == [("transfer_cube", 100_000 + i) for i in range(100)]
    drawn = aloha.settings("insertion", 50, 7)
    assert drawn == aloha.settings("insertion", 50, 7) != aloha.settings("insertion", 50, 8)
    assert min(seed for _, seed in drawn) >= aloha.SAMPLED > 100_100 > record.FIRST_HELD_OUT + 1000


def test_a_missing_package_and_a_renderer_that_does_not_start_are_one_line(tmp_path):
    def run(code, **env):
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
        end = subprocess.run([sys.executable, "-c", code], env={"PATH": "/usr/bin:/bin"} | env, capture_output=True,
                             text=True)
        return end.stdout.strip()

    said = ("from worlds.aloha.sim import Sim, packages\ntry:\n    {}\nexcept (ValueError, ImportError) as error:\n"
            "    print(type(error).__name__, error)")
    assert run("sys.modules['gym_aloha'] = None\n" + said.format("packages()")).startswith(
        "ImportError this needs gym-aloha and mujoco, and gym_aloha is missing: pip install")
    broken = "import worlds.aloha.sim as s; s.find_library = lambda name: None\n" + said.format("packages()")
    assert "ValueError no renderer for MuJoCo" in run(broken)
    assert "does not start" in run(said.format("s = Sim('insertion'); s.reset(0); s.pictures()"), MUJOCO_GL="glfw")
