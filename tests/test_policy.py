"""One robot, frame by frame: history, queue, latents, replanning at once and in the background."""

import runpy
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import infer as infer_script
from config import CONFIGS, to_dict
from data import VIEWS
from support import checkpoint
from support.engine import Engine
from support.policy import Policy
from support.statistics import Statistics

FPS, D = 30.0, 6


@pytest.fixture
def make(build, tiny):
    """(chunk, engine, action_mode) -> a policy of the smallest network."""
    def policy(chunk=50, engine="eager", action_mode="absolute"):
        config = replace(CONFIGS["conveyor"], model=replace(tiny, chunk=chunk))
        stats = Statistics("arm", action_mode, FPS, (0.1,) * D, (0.5,) * D, (0.2,) * D, (2.0,) * D, 1, relative=(True,) * D)
        return Policy(build(config.model), config, stats, seed=3, engine=engine)
    return policy


def film(T, views=VIEWS, seed=0):
    """T frames of noise and states: list of images dicts, (T, d_q)."""
    random = np.random.default_rng(seed)
    frames = [{view: random.integers(0, 256, (64, 64, 3), dtype=np.uint8) for view in views} for _ in range(T)]
    return frames, random.standard_normal((T, D)).astype(np.float32)


def expected(policy, frames, states, every):
    """The same actions by whole chunks of the plain path: o_{t-15} clamped to the first frame."""
    actions = []
    for t in range(0, len(frames), every):
        seen = {view: [frames[max(t - 15, 0)][view], frames[t][view]] for view in frames[t]}
        actions.extend(policy.plan([seen], states[None, t], ["go"])[0][0][:every])
    return np.array(actions[:len(frames)])


@pytest.mark.parametrize("every", [1, 15, 16, 30, 50])
def test_steps_are_the_plain_paths_chunks_whatever_the_replanning(make, every):
    """History clamps at the start; every plan but the first finds the latents of t-15 ready; and again after reset."""
    T = 70 if every > 1 else 33
    frames, states = film(T)
    plain, policy = make(engine="plain"), make()
    for episode in range(2):
        policy.reset("go", fps=30, execute_steps=every)
        actions = np.array([policy.step(images, state) for images, state in zip(frames, states)])
        np.testing.assert_allclose(actions, expected(plain, frames, states, every), atol=1e-5)
        report = policy.timing()
        assert report["plans"] == -(-T // every) and report["latent_hits"] == report["plans"] - 1
        assert report["steps"] == T and report["starved"] == 0
        frames, states = film(T, seed=1)   # another scene: nothing of the first may be left


@pytest.mark.parametrize("every", [4, 10, 20])
def test_other_rhythms_find_their_latents_too(make, every):
    """Frames that are t-15 of the plan after the next one are foreseen as well."""
    frames, states = film(61)
    policy = make()
    policy.reset("go", execute_steps=every)
    for images, state in zip(frames, states):
        policy.step(images, state)
    assert policy.timing()["latent_hits"] == policy.timing()["plans"] - 1


def test_a_plain_policy_steps_without_the_engine(make):
    frames, states = film(20)
    policy = make(chunk=8, engine="plain")
    policy.reset("go")
    actions = [policy.step(images, state) for images, state in zip(frames, states)]
    np.testing.assert_allclose(actions, expected(make(chunk=8, engine="plain"), frames, states, 8), atol=1e-6)
    assert policy.timing()["latent_hits"] == 0


def test_delta_actions_are_relative_to_the_state_of_their_plan(make):
    frames, states = film(10)
    policy = make(chunk=8, action_mode="delta")
    policy.reset("go")
    actions = [policy.step(images, state) for images, state in zip(frames, states)]
    np.testing.assert_allclose(actions, expected(make(chunk=8, engine="plain", action_mode="delta"), frames, states, 8),
                               atol=1e-5)


def test_a_missing_camera_is_masked_and_one_that_drops_out_misses_the_cache(make):
    """A view counts where it is there at t and at t-15."""
    frames, states = film(33, views=("head", "right_wrist"))
    plain, policy = make(engine="plain"), make()
    policy.reset("go", execute_steps=16)
    actions = [policy.step(images, state) for images, state in zip(frames, states)]
    np.testing.assert_allclose(actions, expected(plain, frames, states, 16), atol=1e-5)
    policy.reset("go", execute_steps=16)
    for images, state in zip(frames[:16], states):
        policy.step(images, state)
    policy.step({"head": frames[16]["head"]}, states[16])   # the wrist camera is gone: its latents are of two views
    assert policy.timing()["plans"] == 2 and policy.timing()["latent_hits"] == 0


def static(run):
    """Stands for a CUDA graph: every call writes the same output tensors."""
    out = run()

    def replay():
        for mine, new in zip(out, run()):
            if mine is not None:
                mine.copy_(new)
        return out
    return replay


def test_latents_outlive_the_next_replay_of_a_graph(make):
    frames, states = film(33)
    plain, policy = make(engine="plain"), make(engine="plain")
    policy.engine = Engine(policy.model, "graph", capture=static, backend="eager")
    policy.reset("go", execute_steps=1)
    actions = [policy.step(images, state) for images, state in zip(frames, states)]
    np.testing.assert_allclose(actions, expected(plain, frames, states, 1), atol=1e-5)
    assert policy.timing()["latent_hits"] == 32


def test_a_camera_that_drops_out_is_compiled_for_in_the_background_too(make):
    """More shapes than torch allows by itself, in a thread of which the constructor knew nothing."""
    torch._dynamo.reset()
    frames, states = film(9)
    policy = make(chunk=8, engine="plain")
    policy.engine = Engine(policy.model, "compile", backend="eager")
    policy.reset("go", background=True)
    for t, (images, state) in enumerate(zip(frames, states)):
        policy.step(images if t < 4 else {view: images[view] for view in VIEWS[:2]}, state)
        if t in (4, 8):
            wait_for_plan(policy)
    policy.close()


def test_scenes_with_different_cameras_are_planned_by_the_engine(make):
    """Once per set of cameras, and each sample keeps its place, noise and imagined future."""
    frames, states = film(4)
    sets = VIEWS, VIEWS[:1], VIEWS, VIEWS[1:]
    seen = [{view: [images[view]] * 2 for view in views} for images, views in zip(frames, sets)]
    plain, policy = make(engine="plain"), make()
    called, inner = [], policy.engine
    policy.engine = lambda batch, *rest, **more: called.append(len(batch.state)) or inner(batch, *rest, **more)
    for imagine in (False, True):
        (a, z), (b, y) = (one.plan(seen, states, ["go", "stop", "go now", "go"], imagine) for one in (policy, plain))
        np.testing.assert_allclose(a, b, atol=1e-5)
    there = torch.tensor([[view in views for view in VIEWS] for views in sets])
    torch.testing.assert_close(z[there], y[there], rtol=0, atol=1e-5)
    assert sorted(called) == [1, 1, 1, 1, 2, 2]


def test_the_engine_reads_masks_on_the_cpu(make):
    """The batch stays there whatever the policy's device: another one is claimed here, to which it must not go."""
    frames, states = film(1)
    policy = make(chunk=8)
    policy.device, inner, seen = torch.device("meta"), policy.engine.shape, []
    policy.engine.shape = lambda batch, *rest: seen.extend(x.device for x in vars(batch).values() if x is not None) or \
        inner(batch, *rest)
    policy.plan([{"head": [frames[0]["head"]] * 2}], states, ["go"])
    policy.reset("go")
    policy.step(frames[0], states[0])
    assert set(seen) == {torch.device("cpu")}


def test_a_camera_that_reuses_its_buffer_does_not_rewrite_history(make):
    frames, states = film(17)
    one, other = make(), make()
    buffers = {view: np.empty((64, 64, 3), np.uint8) for view in VIEWS}
    one.reset("go", execute_steps=16)
    other.reset("go", execute_steps=16)
    for images, state in zip(frames, states):
        for view in VIEWS:
            buffers[view][:] = images[view]
        assert np.array_equal(one.step(buffers, state), other.step(images, state))


def test_what_cannot_be_used_is_refused(make):
    policy, (frames, states) = make(chunk=8), film(1)
    with pytest.raises(ValueError, match="reset"):
        policy.step(frames[0], states[0])
    with pytest.raises(ValueError, match="control at 50 Hz: the checkpoint was trained on 30 frames/s"):
        policy.reset("go", fps=50)
    with pytest.raises(ValueError, match="execute_steps 9: a chunk has 8"):
        policy.reset("go", execute_steps=9)
    policy.reset("go", fps=30)
    with pytest.raises(ValueError, match="no step since reset"):
        policy.timing()
    with pytest.raises(ValueError, match="cameras .'left'. given"):
        policy.step({"left": frames[0]["head"]}, states[0])
    with pytest.raises(ValueError, match="cameras none given"):
        policy.step({}, states[0])
    with pytest.raises(ValueError, match="head is float32"):
        policy.step({"head": frames[0]["head"].astype(np.float32)}, states[0])
    for state in (None, states[0][:3], states[:1], np.where(np.arange(D) == 2, np.nan, states[0])):
        with pytest.raises(ValueError, match="give 6 finite numbers"):
            policy.step(frames[0], state)


@pytest.mark.parametrize("background", [False, True])
def test_a_refused_observation_changes_nothing(make, background):
    """Before the first plan, where a plan is due and elsewhere: the same actions as without the refusals."""
    frames, states = film(13)
    one, other = make(chunk=8), make(chunk=8)
    one.reset("go", execute_steps=4, background=background)
    other.reset("go", execute_steps=4, background=background)
    for t, (images, state) in enumerate(zip(frames, states)):
        if t in (0, 3, 4, 8):
            with pytest.raises(ValueError, match="cameras none given"):
                one.step({}, state)
            with pytest.raises(ValueError, match="head is float32"):
                one.step({"head": np.zeros((4, 4, 3), np.float32)}, state)
            with pytest.raises(ValueError, match="finite numbers"):
                one.step(images, state * np.nan)
        actions = [policy.step(images, state) for policy in (one, other)]
        assert actions[0] is not None and np.array_equal(*actions)
        if background and t in (4, 8, 12):
            wait_for_plan(one)
            wait_for_plan(other)
    assert one.timing()["plans"] == 4
    one.close()
    other.close()


@pytest.mark.parametrize("background", [False, True])
def test_a_plan_that_fails_in_the_step_is_made_at_the_next(make, background):
    """Also the first one of an episode, which the background waits for."""
    frames, states = film(2)
    policy = make(chunk=8)
    policy.reset("go", background=background)
    inner = policy.run._plan
    policy.run._plan = fail
    with pytest.raises(ValueError, match="no such luck"):
        policy.step(frames[0], states[0])
    policy.run._plan = inner
    assert policy.step(frames[1], states[1]) is not None and policy.timing()["plans"] == 1
    policy.close()


def fail(*_):
    raise ValueError("no such luck")


# ---- in the background -------------------------------------------------------------------------------------

def held_back(policy):
    """Plans in the background wait until the returned event is set: injected latency without a clock."""
    gate, inner = threading.Event(), policy.run._plan

    def plan(*args):
        if args[0] > 0:   # the first plan is made in the foreground
            assert gate.wait(20)
        return inner(*args)
    policy.run._plan = plan
    return gate


def wait_for_plan(policy):
    policy.run.pending[1].result(timeout=20)


def test_no_step_waits_while_latency_is_below_the_queue(make):
    """The plan of frame 8 cannot end before step 12: steps 8 to 12 return all the same, with the old chunk's actions,
    and step 13 enters the new chunk at its own place."""
    frames, states = film(14)
    policy, plain = make(chunk=16), make(chunk=16, engine="plain")
    policy.reset("go", background=True)   # half the chunk
    gate = held_back(policy)
    actions = [policy.step(images, state) for images, state in zip(frames[:13], states)]
    gate.set()
    wait_for_plan(policy)
    actions.append(policy.step(frames[13], states[13]))
    first = plain.plan([{v: [frames[0][v]] * 2 for v in VIEWS}], states[None, 0], ["go"])[0][0]
    second = plain.plan([{v: [frames[0][v], frames[8][v]] for v in VIEWS}], states[None, 8], ["go"])[0][0]
    np.testing.assert_allclose(actions, np.concatenate([first[:13], second[5:6]]), atol=1e-5)
    assert policy.timing()["starved"] == 0
    policy.close()


def test_a_slower_plan_holds_the_last_action_and_the_starved_steps_are_counted(make):
    """Latency of twelve steps, a queue of eight: four steps are starved."""
    frames, states = film(21)
    policy = make(chunk=16)
    policy.reset("go", background=True)
    gate = held_back(policy)
    actions = [policy.step(images, state) for images, state in zip(frames[:20], states)]
    assert policy.timing()["starved"] == 4
    assert all(np.array_equal(action, actions[15]) for action in actions[16:])
    gate.set()
    wait_for_plan(policy)
    assert not np.array_equal(policy.step(frames[20], states[20]), actions[15])
    assert policy.timing()["starved"] == 4 and policy.timing()["plans"] == 2
    policy.close()


def test_latents_are_computed_ahead_in_the_background_too(make):
    frames, states = film(41)
    policy = make(chunk=40)
    policy.reset("go", execute_steps=20, background=True)
    for t, (images, state) in enumerate(zip(frames, states)):
        policy.step(images, state)
        if t in (20, 40):
            wait_for_plan(policy)
    assert policy.timing()["latent_hits"] == 2 and policy.timing()["plans"] == 3
    policy.close()


def test_closing_and_a_new_episode_leave_no_thread(make):
    """Also while a plan is under way; what it found is not used in the next episode."""
    before = set(threading.enumerate())
    frames, states = film(12)
    policy = make(chunk=8)
    policy.reset("go", background=True)
    gate = held_back(policy)
    for images, state in zip(frames[:6], states):
        policy.step(images, state)
    while not policy.run.pending[1].running():   # one that waits behind other work is cancelled
        pass
    threading.Timer(0.2, gate.set).start()   # the plan of frame 4 ends while reset waits for it
    policy.reset("stop", background=True)
    assert gate.is_set()
    policy.calls, plain = 0, make(chunk=8, engine="plain")
    action = policy.step(frames[0], states[0])
    stop = plain.plan([{view: [frames[0][view]] * 2 for view in VIEWS}], states[None, 0], ["stop"])[0][0]
    np.testing.assert_allclose(action, stop[0], atol=1e-5)
    policy.close()
    deadline = time.monotonic() + 20
    while set(threading.enumerate()) != before and time.monotonic() < deadline:   # the timer ends by itself
        pass
    assert set(threading.enumerate()) == before


def test_a_failing_plan_is_raised_by_the_step_that_needs_it(make):
    """Nothing fails silently in the thread."""
    frames, states = film(12)
    policy = make(chunk=8)
    policy.reset("go", background=True)
    policy.step(frames[0], states[0])
    policy.run._plan = fail
    with pytest.raises(ValueError, match="no such luck"):
        for images, state in zip(frames[1:], states[1:]):
            policy.step(images, state)
            if policy.run.pending:
                while not policy.run.pending[1].done():
                    pass
    policy.close()


def test_after_a_failed_plan_the_present_chunk_goes_on_at_its_own_place(make):
    frames, states = film(7)
    policy, plain = make(chunk=8), make(chunk=8, engine="plain")
    policy.reset("go", background=True)   # plans at 0 and 4
    actions = [policy.step(images, state) for images, state in zip(frames[:4], states)]
    policy.run._plan = fail
    policy.step(frames[4], states[4])
    while policy.run.pending and not policy.run.pending[1].done():
        pass
    with pytest.raises(ValueError, match="no such luck"):
        policy.step(frames[5], states[5])
    actions.append(policy.step(frames[6], states[6]))
    chunk = plain.plan([{view: [frames[0][view]] * 2 for view in VIEWS}], states[None, 0], ["go"])[0][0]
    np.testing.assert_allclose(actions, chunk[[0, 1, 2, 3, 6]], atol=1e-5)
    policy.close()


@pytest.mark.parametrize("what, frame", [("_plan", 4), ("_encode_ahead", 5)])
def test_what_failed_in_the_background_and_no_step_raised_is_raised_by_close(make, what, frame):
    """Frame 5 is the t-15 of frame 20, a plan's."""
    frames, states = film(frame + 1)
    policy = make(chunk=8)
    policy.reset("go", background=True)
    for images, state in zip(frames[:frame], states):
        policy.step(images, state)
    if policy.run.pending:
        wait_for_plan(policy)
    started, gate = threading.Event(), threading.Event()

    def fail_late(*args):
        started.set()
        assert gate.wait(20)
        fail()
    setattr(policy.run, what, fail_late)
    policy.step(frames[frame], states[frame])
    assert started.wait(20)
    threading.Timer(0.2, gate.set).start()
    with pytest.raises(ValueError, match="no such luck"):
        policy.reset("stop")
    policy.reset("stop")   # once
    assert policy.step(frames[0], states[0]) is not None


def test_the_reported_times_are_those_of_the_steps(make, monkeypatch):
    ticks = iter([0, .001, 1, 1.002, 2, 2.003, 3, 3.1])
    monkeypatch.setattr("support.policy.time.perf_counter", lambda: next(ticks))
    frames, states = film(4)
    policy = make(chunk=8)
    policy.reset("go")
    for images, state in zip(frames, states):
        policy.step(images, state)
    report = policy.timing()
    assert report["p50_ms"] == pytest.approx(2.5) and report["max_ms"] == pytest.approx(100)
    assert report["p50_ms"] < report["p99_ms"] <= report["max_ms"]


# ---- infer.py ----------------------------------------------------------------------------------------------

@pytest.fixture
def infer(tmp_path, make, monkeypatch, capsys):
    """(*flags) -> actions (k, d_a) and what was printed, always of the same pictures and the same checkpoint."""
    policy, frames = make(engine="plain", chunk=8), film(2)[0]
    state = {"step": 1, "config": to_dict(policy.config), "statistics": asdict(policy.stats), "versions": {}, "log_length": 0}
    run = checkpoint.save(tmp_path / "run", 1, policy.model.state_dict(), {}, state)
    for view in ("head", "left_wrist"):
        for images, time in zip(frames, ("past", "now")):
            Image.fromarray(images[view]).save(tmp_path / f"{view}_{time}.png")
    np.save(tmp_path / "state.npy", np.zeros(D, np.float32))

    def run_infer(*flags):
        monkeypatch.setattr(sys, "argv", ["infer.py", "--image-dir", str(tmp_path), "--task", "go", "--checkpoint", str(run),
                                          "--out", str(tmp_path / "out"), "--device", "cpu", *flags])
        runpy.run_path(str(Path(__file__).parents[1] / "infer.py"), run_name="__main__")
        return np.load(tmp_path / "out" / "actions.npy"), capsys.readouterr().out
    return run_infer


def test_infer_gives_the_same_actions_with_and_without_the_engine(infer, monkeypatch):
    """And --engine plain needs no support/engine.py: importing it fails here."""
    fast, _ = infer()
    assert "support.engine" in sys.modules   # the default
    monkeypatch.setitem(sys.modules, "support.engine", None)
    plain, _ = infer("--engine", "plain")
    np.testing.assert_allclose(fast, plain, atol=1e-5)
    few, printed = infer("--engine", "plain", "--euler_steps", "2")
    assert "2 instead of 10 Euler steps move the actions by" in printed and np.abs(few - plain).max() > 1e-3


@pytest.mark.parametrize("flags", [["--image-dir", "."], ["--closed-loop"]])
def test_infer_refuses_a_graph_on_the_cpu_before_it_loads_anything(flags):
    with pytest.raises(ValueError, match="--engine graph records a CUDA graph"):
        infer_script.run([*flags, "--engine", "graph", "--device", "cpu", "--checkpoint", "nowhere"])


def test_fewer_euler_steps_report_what_they_change(make):
    """The error is 0 for the config's own number and not for another."""
    frames, states = film(1)
    seen = [{view: [frames[0][view]] * 2 for view in VIEWS}]
    policy = make(chunk=8)
    policy.euler_steps = 10
    assert policy.euler_error(seen, states, ["go"]) == 0
    policy.euler_steps = 3
    assert policy.euler_error(seen, states, ["go"]) > 1e-3
