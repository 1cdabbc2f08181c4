"""Planning beside the control loop: latency, failures, threads."""

import threading
import time

import numpy as np
import pytest
import torch

from config import VIEWS
from conftest import film
from support.inference.engine import Engine


def fail(*_):
    raise ValueError("no such luck")


def held_back(policy):
    """Plans in the background wait until the returned event is set: injected latency without a clock."""
    gate, inner = threading.Event(), policy.loop._plan

    def plan(*args):
        if args[0] > 0:   # the first plan is made in the foreground
            assert gate.wait(120)
        return inner(*args)
    policy.loop._plan = plan
    return gate


def planned(plain, frames, states, t, task="go"):
    """The plain path's chunk (k, d_a) from frame t."""
    seen = {view: [frames[max(t - 15, 0)][view], frames[t][view]] for view in VIEWS}
    return plain.plan([seen], states[None, t], [task])[0][0]


def wait_for_plan(policy):
    policy.loop.pending[1].result(timeout=120)


def drive(policy, frames, states, latency):
    """Actions of steps whose plans arrive that many frames after their own; the last plan stays held back."""
    gate, actions = held_back(policy), []
    for t, (images, state) in enumerate(zip(frames, states)):
        if policy.loop.pending and t - policy.loop.pending[0] == latency:
            gate.set()
            wait_for_plan(policy)
            gate.clear()
        actions.append(policy.step(images, state))
    return actions, gate


def test_no_step_waits_while_latency_is_below_the_queue(make):
    """The plan of frame 8 cannot end before step 12: steps 8 to 12 return all the same, with the old chunk's actions,
    and step 13 enters the new chunk at its own place."""
    frames, states = film(14)
    policy, plain = make(chunk=16), make(chunk=16, engine="plain")
    policy.reset("go", background=True, handover="cold")   # half the chunk
    gate = held_back(policy)
    actions = [policy.step(images, state) for images, state in zip(frames[:13], states)]
    gate.set()
    wait_for_plan(policy)
    actions.append(policy.step(frames[13], states[13]))
    first, second = (planned(plain, frames, states, t) for t in (0, 8))
    np.testing.assert_allclose(actions, np.concatenate([first[:13], second[5:6]]), atol=1e-5)
    assert policy.timing()["starved"] == 0
    policy.close()


def test_plans_slower_than_a_chunk_still_move_the_robot(make):
    """Latency of twelve steps, chunks of eight: the last action is held and starved steps are counted; what arrives is
    over, and its last action, the newest intention, is held."""
    frames, states = film(41)
    policy, plain = make(chunk=8), make(chunk=8, engine="plain")
    policy.reset("go", background=True, handover="cold")
    actions, gate = drive(policy, frames, states, latency=12)
    first, *later = (planned(plain, frames, states, t) for t in (0, 4, 16, 28))   # which arrive at 16, 28 and 40
    held = [chunk[-1] for chunk, steps in zip([first, *later], (8, 12, 12, 1)) for _ in range(steps)]
    np.testing.assert_allclose(actions, [*first, *held], atol=1e-5)
    assert policy.timing()["starved"] == 33
    gate.set()
    policy.close()


def test_late_plans_find_latents_that_were_computed_ahead(make):
    """Latency of twelve steps, plans wanted every five: they begin at 0, 5, 17, 29, 41 and 53. That twelve lie between
    them is known at 17, so frames 26 and 38 are encoded, beside the plans under way."""
    frames, states = film(60)
    policy = make(chunk=8)
    policy.reset("go", execute_steps=5, background=True)
    _, gate = drive(policy, frames, states, latency=12)
    gate.set()
    wait_for_plan(policy)
    assert (policy.timing()["plans"], policy.timing()["latent_hits"]) == (6, 3)   # at 5 (frame 0 is known), 41, 53
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
    while not policy.loop.pending[1].running():   # one that waits behind other work is cancelled
        pass
    threading.Timer(0.2, gate.set).start()   # the plan of frame 4 ends while reset waits for it
    policy.reset("stop", background=True)
    assert gate.is_set()
    policy.calls, plain = 0, make(chunk=8, engine="plain")
    action = policy.step(frames[0], states[0])
    np.testing.assert_allclose(action, planned(plain, frames, states, 0, "stop")[0], atol=1e-5)
    policy.close()
    deadline = time.monotonic() + 20
    while set(threading.enumerate()) != before and time.monotonic() < deadline:   # the timer ends by itself
        pass
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("background", [False, True])
def test_a_refused_observation_changes_nothing(make, background):
    """Before the first plan, where a plan is due and elsewhere: the same actions as without the refusals."""
    frames, states = film(13)
    one, other = make(chunk=8), make(chunk=8)
    one.reset("go", execute_steps=4, background=background)
    other.reset("go", execute_steps=4, background=background)
    for t, (images, state) in enumerate(zip(frames, states)):
        wrong = (({}, state, "no camera given"), (images, state * np.nan, "finite numbers"),
                 ({"head": np.zeros((4, 4, 3), np.float32)}, state, "head is float32"),
                 ({"head": np.zeros((1, 99, 3), np.uint8)}, state, "step: head is 1 x 99"))
        for pictures, numbers, message in wrong if t in (0, 3, 4, 8) else ():
            with pytest.raises(ValueError, match=message):
                one.step(pictures, numbers)
        actions = [policy.step(images, state) for policy in (one, other)]
        assert actions[0] is not None and np.array_equal(*actions)
        if background and t in (4, 8, 12):
            wait_for_plan(one)
            wait_for_plan(other)
    assert one.timing()["plans"] == 4
    one.close()
    other.close()


def test_an_action_belongs_to_the_caller_who_may_change_it(make):
    """Neither the row that is held when a chunk is over is touched, nor what the next chunk goes on from."""
    (frames, states), found = film(20), []
    for changes in (0, 9):
        policy, rests = make(chunk=8), []
        policy.reset("go", execute_steps=4, background=True)
        gate = held_back(policy)
        inner = policy.loop._plan   # which waits
        policy.loop._plan = lambda *given: (inner(*given), rests.append(given[4] and given[4].actions.copy()))[0]
        actions = []
        for t, (images, state) in enumerate(zip(frames, states)):
            if t == 12:   # the chunk of frame 0 is over since frame 8
                gate.set()
                wait_for_plan(policy)
                gate.clear()
            action = policy.step(images, state)
            actions.append(action.copy())
            action += changes
        gate.set()
        wait_for_plan(policy)
        policy.close()
        found.append((np.array(actions), rests))
    (plain, rests), (changed, others) = found
    assert np.array_equal(plain, changed) and (plain[9:12] == plain[8]).all() and len(rests) == len(others) == 3
    assert rests[1].shape == (1, 4, 6) and all(map(np.array_equal, rests, others))


@pytest.mark.parametrize("background", [False, True])
def test_a_plan_that_fails_in_the_step_is_made_at_the_next(make, background):
    """Also the first one of an episode, which the background waits for."""
    frames, states = film(2)
    policy = make(chunk=8)
    policy.reset("go", background=background)
    inner = policy.loop._plan
    policy.loop._plan = fail
    with pytest.raises(ValueError, match="no such luck"):
        policy.step(frames[0], states[0])
    policy.loop._plan = inner
    assert policy.step(frames[1], states[1]) is not None and policy.timing()["plans"] == 1
    policy.close()


def test_after_a_failed_plan_the_present_chunk_goes_on_at_its_place_and_the_next_step_plans(make):
    """Nothing fails silently in the thread: the step that follows raises."""
    frames, states = film(7)
    policy, plain = make(chunk=8), make(chunk=8, engine="plain")
    policy.reset("go", background=True)   # plans at 0 and 4
    actions = [policy.step(images, state) for images, state in zip(frames[:4], states)]
    inner, policy.loop._plan = policy.loop._plan, fail
    policy.step(frames[4], states[4])
    while policy.loop.pending and not policy.loop.pending[1].done():
        pass
    with pytest.raises(ValueError, match="no such luck"):
        policy.step(frames[5], states[5])
    policy.loop._plan = inner
    gate = held_back(policy)
    actions.append(policy.step(frames[6], states[6]))
    assert policy.loop.pending[0] == 6
    np.testing.assert_allclose(actions, planned(plain, frames, states, 0)[[0, 1, 2, 3, 6]], atol=1e-5)
    gate.set()
    policy.close()


@pytest.mark.parametrize("what, frame", [("_plan", 4), ("_encode_ahead", 5)])
def test_what_failed_in_the_background_and_no_step_raised_is_raised_by_close(make, what, frame):
    """Frame 5 is the t-15 of frame 20, a plan's."""
    frames, states = film(frame + 1)
    policy = make(chunk=8)
    policy.reset("go", background=True)
    for images, state in zip(frames[:frame], states):
        policy.step(images, state)
    if policy.loop.pending:
        wait_for_plan(policy)
    started, gate = threading.Event(), threading.Event()

    def fail_late(*args):
        started.set()
        assert gate.wait(120)
        fail()
    setattr(policy.loop, what, fail_late)
    policy.step(frames[frame], states[frame])
    assert started.wait(20)
    threading.Timer(0.2, gate.set).start()
    with pytest.raises(ValueError, match="no such luck"):
        policy.reset("stop")
    policy.reset("stop")   # once
    assert policy.step(frames[0], states[0]) is not None
    policy.close()


def test_a_plan_that_never_comes_is_not_waited_for_without_end(make, monkeypatch):
    """Neither by close nor by the next episode, which gets a thread of its own."""
    monkeypatch.setattr("support.inference.control.ENDING", 0.1)
    frames, states = film(5)
    policy = make(chunk=8)
    policy.reset("go", background=True)
    gate, lost = held_back(policy), policy.pool
    for images, state in zip(frames, states):
        policy.step(images, state)
    while not policy.loop.pending[1].running():
        pass
    with pytest.raises(ValueError, match="the last plan has not come for 0.1 s"):
        policy.close()
    policy.reset("go", background=True)
    assert policy.step(frames[0], states[0]) is not None
    policy.close()
    gate.set()
    lost.shutdown()


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
