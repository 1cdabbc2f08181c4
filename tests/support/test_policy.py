"""One robot, frame by frame: history, queue, latents, replanning. test_background.py plans beside it."""

import threading
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from config import VIEWS
from conftest import film, static
from support.data.letterbox import letterbox
from support.inference.control import checked_state
from support.inference.engine import Engine


def expected(policy, frames, states, every):
    """The same actions by whole chunks of the plain path: o_{t-15} clamped to the first frame."""
    actions = []
    for t in range(0, len(frames), every):
        seen = {view: [frames[max(t - 15, 0)][view], frames[t][view]] for view in frames[t]}
        actions.extend(policy.plan([seen], states[None, t], ["go"])[0][0][:every])
    return np.array(actions[:len(frames)])


@pytest.mark.parametrize("every, und_frames", [*((every, 1) for every in (1, 4, 10, 15, 16, 30, 50)), (10, 2), (15, 2)])
def test_steps_are_the_plain_paths_chunks_whatever_the_replanning(make, every, und_frames):
    """History clamps at the start; every plan but the first finds the latents of t-15 ready; and again after reset."""
    T = 70 if every > 1 else 33
    frames, states = film(T)
    plain, policy = make(engine="plain", und_frames=und_frames), make(und_frames=und_frames)
    for episode in range(2):
        policy.reset("go", fps=30, execute_steps=every, handover="cold")
        actions = np.array([policy.step(images, state) for images, state in zip(frames, states)])
        np.testing.assert_allclose(actions, expected(plain, frames, states, every), atol=1e-5)
        report = policy.timing()
        assert report["plans"] == -(-T // every) and report["latent_hits"] == report["plans"] - 1
        assert report["steps"] == T and report["starved"] == 0
        frames, states = film(T, seed=1)   # another scene: nothing of the first may be left


@pytest.mark.parametrize("options", [{"engine": "plain"}, {"action_mode": "delta"}], ids=["plain", "delta"])
def test_a_plain_policy_steps_without_the_engine_and_delta_actions_start_at_their_plans_state(make, options):
    frames, states = film(20)
    policy = make(chunk=8, **options)
    policy.reset("go")
    actions = [policy.step(images, state) for images, state in zip(frames, states)]
    plain = make(chunk=8, **options | {"engine": "plain"})
    np.testing.assert_allclose(actions, expected(plain, frames, states, 8), atol=1e-5)
    assert policy.timing()["latent_hits"] == (0 if policy.engine is None else 2)


def test_a_missing_camera_is_masked_and_one_that_drops_out_misses_the_cache(make):
    """A view counts where it is there at t and at t-15."""
    frames, states = film(33, views=("head", "right_wrist"))
    plain, policy = make(engine="plain"), make()
    policy.reset("go", execute_steps=16, handover="cold")
    actions = [policy.step(images, state) for images, state in zip(frames, states)]
    np.testing.assert_allclose(actions, expected(plain, frames, states, 16), atol=1e-5)
    policy.reset("go", execute_steps=16, handover="cold")
    for images, state in zip(frames[:16], states):
        policy.step(images, state)
    policy.step({"head": frames[16]["head"]}, states[16])   # the wrist camera is gone: its latents are of two views
    assert policy.timing()["plans"] == 2 and policy.timing()["latent_hits"] == 0


@pytest.mark.parametrize("mode, background", [("compile", True), ("graph", False)])
def test_nothing_is_compiled_or_recorded_in_the_control_loop_of_two_cameras(make, monkeypatch, mode, background):
    """Plans with and without given latents, cold and guided, and latents ahead of a plan: all of it before a step."""
    torch._dynamo.reset()
    counter, (frames, states) = CompileCounterWithBackend("eager"), film(33, VIEWS[:2])
    monkeypatch.setattr("support.inference.engine.Engine", partial(Engine, capture=static, backend=counter))
    policy = make(chunk=20, engine=mode, cameras=VIEWS[:2])
    policy.reset("go", execute_steps=10, background=background)
    made = counter.frame_count, policy.engine.captures
    for images, state in zip(frames, states):
        policy.step(images, state)
        if policy.loop.pending:
            policy.loop.pending[1].result(timeout=120)
    assert (policy.timing()["plans"], policy.timing()["latent_hits"]) == (4, 3)
    policy.close()
    assert (counter.frame_count, policy.engine.captures) == made and made[1] == 4 * (mode == "graph")


def test_a_picture_is_letterboxed_once_and_not_at_all_where_its_latents_are_known(make, monkeypatch):
    """Plans at 0, 10, 20 and 30, latents of 5, 15 and 25 ahead. Looking back at those frames costs nothing more, also
    where a camera drops out, so that frame 5 is encoded again."""
    done, (frames, states) = Counter(), film(33)
    del frames[20]["head"]
    names = {picture.tobytes(): (t, view) for t, images in enumerate(frames) for view, picture in images.items()}

    def counted(picture, size):
        done[names[picture.tobytes()]] += 1
        return letterbox(picture, size)
    monkeypatch.setattr("support.inference.control.letterbox", counted)
    policy = make()
    policy.reset("go", execute_steps=10)
    for images, state in zip(frames, states):
        policy.step(images, state)
    assert policy.timing()["latent_hits"] == 2
    assert done == {(t, view): 1 for t in (0, 5, 10, 15, 20, 25, 30) for view in frames[t]}


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
    for cameras, found in (((), "no camera"), (("head", "left"), "camera left")):
        with pytest.raises(ValueError, match=f"Policy: {found} given; the model knows head, left_wrist, right_wrist"):
            make(cameras=cameras)
    with pytest.raises(ValueError, match="reset"):
        policy.step(frames[0], states[0])
    with pytest.raises(ValueError, match="control at 50 Hz: the checkpoint was trained on 30 frames/s"):
        policy.reset("go", fps=50)
    with pytest.raises(ValueError, match="execute_steps 9: a chunk has 8"):
        policy.reset("go", execute_steps=9)
    policy.reset("go", fps=30)
    with pytest.raises(ValueError, match="no step since reset"):
        policy.timing()
    with pytest.raises(ValueError, match="camera left given"):
        policy.step({"left": frames[0]["head"]}, states[0])
    with pytest.raises(ValueError, match="pictures are a NoneType"):
        policy.step(None, states[0])
    for state in (None, states[0][:3], states[:1], {"arm": 1}, states[0] * 1j, [str(x) for x in states[0]], [1e300] * 6,
                  [[1], [1, 2]], torch.zeros(6, requires_grad=True)):
        with pytest.raises(ValueError, match="give 6 finite numbers"):
            policy.step(frames[0], state)
    for picture in ([[1], [1, 2]], None, torch.zeros(4, 4, 3, requires_grad=True)):
        with pytest.raises(ValueError, match="head is .*; give uint8"):
            policy.step({"head": picture}, states[0])
    for given, line in (({"task": None}, "the task is a NoneType; give text"), ({"fps": "30"}, "fps is '30'; give"),
                        ({"execute_steps": "2"}, "execute_steps '2': a chunk has 8"),
                        ({"execute_steps": 1.5}, "execute_steps 1.5: a chunk has 8"),
                        ({"background": "no"}, "background is 'no'; give True or False"),
                        ({"task": "g\0o\0"}, "reset: the task holds NUL characters")):
        with pytest.raises(ValueError, match=line):
            policy.reset(**{"task": "go"} | given)


def test_plan_refuses_what_step_refuses_and_scenes_that_do_not_fit_together(make):
    policy, (frames, states) = make(chunk=8), film(1)
    head, state = frames[0]["head"], states[0]
    scene = {"head": [head, head]}
    for scenes, given, tasks, line in (
            ([scene], [state], "go", "tasks are 'go'; give a list"), ([scene], [state], [None], "tasks are .None."),
            ([scene] * 2, [state] * 2, ["go"], "2 scenes, 2 states and 1 tasks are given"),
            ([scene] * 2, [state], ["go"] * 2, "2 scenes, 1 states and 2 tasks are given"), ([], [], [], "0 scenes"),
            ([frames], [state], ["go"], "a scene is view -> two pictures"),
            ([{"head": [head] * 3}], [state], ["go"], "a scene is view -> two pictures"),
            ([{"head": None}], [state], ["go"], "a scene is view -> two pictures"),
            ([scene], [state], ["g\0o\0"], "plan: a task holds NUL characters"),
            ([{}], [state], ["go"], "no camera given"), ([{"haed": [head] * 2}], [state], ["go"], "camera haed given"),
            ([{"head": [head, head / 255]}], [state], ["go"], "head is float64 .*; give uint8"),
            ([{"head": [head[..., 0], head]}], [state], ["go"], "head is uint8 .*; give uint8"),
            ([{"head": [head, head[:1].repeat(20, 1)]}], [state], ["go"], "head is 1 x"),
            ([scene], [state[:2]], ["go"], "plan: the state is .* give 6 finite numbers")):
        with pytest.raises(ValueError, match=line):
            policy.plan(scenes, given, tasks)
    assert policy.calls == 0   # no noise was spent


def test_a_camera_that_was_not_trained_with_is_refused(make):
    policy, (frames, states) = make(chunk=8), film(1)
    policy.stats = replace(policy.stats, inputs=("head = top", "left_wrist = wrist"))
    policy.reset("go")
    policy.step({"head": frames[0]["head"]}, states[0])
    for ask in (lambda seen: policy.step(seen, states[0]),
                lambda seen: policy.plan([{view: [of, of] for view, of in seen.items()}], states[:1], ["go"])):
        with pytest.raises(ValueError, match="camera right_wrist given; the checkpoint was trained with head, left_wrist"):
            ask(frames[0])


def test_a_state_of_another_width_is_one_line_however_long():
    for d in (14, 7, 300):
        with pytest.raises(ValueError, match=rf"of shape \({d},\); give 6 finite numbers") as error:
            checked_state(np.arange(d) * 1.23456789, 6, "step")
        assert len(str(error.value).splitlines()) == 1


def broken(policy, *calls):
    """Those calls of policy.chunk, counted from now, give a NaN: among the latents that are kept, if any, else among
    the actions."""
    inner, number = policy.chunk, iter(range(1000))

    def chunk(*args, **options):
        a, z, z_hat = inner(*args, **options)
        if next(number) not in calls:
            return a, z, z_hat
        return (a * float("nan"), z, z_hat) if z is None else (a, z * float("nan"), z_hat)
    policy.chunk = chunk


@pytest.mark.parametrize("engine", ["plain", "eager"])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("calls", [(1,), (1, 2)])
def test_a_plan_that_is_not_finite_holds_the_last_action_until_one_is(make, engine, background, calls):
    """Plans at 0, 4 (bad), 5 (bad), then a good one; a plan in the background arrives one step later. timing says how
    many steps were held; the latents of a bad plan are forgotten."""
    frames, states = film(10)
    policy = make(chunk=8, engine=engine)
    policy.reset("go", execute_steps=4, background=background)
    broken(policy, *calls)
    inner, stepping, actions = policy.chunk, threading.RLock(), []

    def chunk(*args, **options):
        with stepping:   # in the background: not before the step that asked for it has returned
            return inner(*args, **options)
    policy.chunk = chunk
    for images, state in zip(frames, states):
        with stepping:
            actions.append(policy.step(images, state))
        if policy.loop.pending:
            policy.loop.pending[1].exception(timeout=120)
    first = 4 + background
    held = len(calls) * (1 + background)
    assert all(np.array_equal(action, actions[first - 1]) for action in actions[first:first + held])
    assert not np.array_equal(actions[first + held], actions[first - 1])
    assert np.isfinite(actions).all() and policy.timing()["held"] == held and policy.timing()["starved"] == 0
    policy.close()


@pytest.mark.parametrize("engine", ["plain", "eager"])
def test_without_an_action_to_hold_and_from_plan_nothing_that_is_not_finite_comes(make, engine):
    """One line that says whose fault it is: the machine's, or the weights'. The next step plans."""
    policy, (frames, states) = make(chunk=8, engine=engine), film(2)
    seen = [{view: [frames[0][view]] * 2 for view in VIEWS}]
    whole, policy.chunk = policy.chunk, lambda *given, **options: (torch.full((1, 8, 32), torch.inf), None, None)
    with pytest.raises(ValueError, match="not finite, though all weights are: the state is out of range"):
        policy.plan(seen, states[:1], ["go"])
    policy.chunk = whole
    policy.reset("go")
    broken(policy, 0)
    with pytest.raises(ValueError, match="not finite"):
        policy.step(frames[0], states[0])
    assert np.isfinite(policy.step(frames[1], states[1])).all()
    policy.model.gen.proj_out.bias.data[3] = float("nan")   # of what is imagined alone
    with pytest.raises(ValueError, match=r"because the weights are not \(gen.proj_out.bias\)"):
        policy.plan(seen, states[:1], ["go"])
    assert np.isfinite(policy.plan(seen, states[:1], ["go"], imagine=False)[0]).all()


def test_the_reported_times_are_those_of_the_steps(make, monkeypatch):
    ticks = iter([0, .001, 1, 1.002, 2, 2.003, 3, 3.1])
    monkeypatch.setattr("support.inference.control.time.perf_counter", lambda: next(ticks))
    frames, states = film(4)
    policy = make(chunk=8)
    policy.reset("go")
    for images, state in zip(frames, states):
        policy.step(images, state)
    report = policy.timing()
    assert report["p50_ms"] == pytest.approx(2.5) and report["max_ms"] == pytest.approx(100)
    assert report["p50_ms"] < report["p99_ms"] <= report["max_ms"]


def test_when_all_cameras_are_new_the_present_stands_for_the_past(make):
    """As at the start of an episode: the robot goes on, on what it sees."""
    frames, states = film(17)
    policy, plain = make(chunk=16), make(chunk=16, engine="plain")
    policy.reset("go")
    for images, state in zip(frames[:16], states):
        policy.step({"left_wrist": images["left_wrist"]}, state)
    action = policy.step({"head": frames[16]["head"]}, states[16])
    plain.calls = 1
    chunk = plain.plan([{"head": [frames[16]["head"]] * 2}], states[None, 16], ["go"])[0][0]
    np.testing.assert_allclose(action, chunk[0], atol=1e-5)
    policy.close()
