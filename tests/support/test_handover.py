"""From one chunk to the next: real-time chunking at inference and in training, in the model, engine, policy, server."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import handover as bench
from config import CONFIGS, VIEWS
from conftest import VARIANTS, film, static
from data import Mixture
from support.inference import server, sessions
from support.inference.engine import Engine
from support.inference.handover import Guide, Rest, guide_of, guided_euler, possible, rtc_weights
from support.inference.observation_keys import Reader

K, D_A = 6, 3


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_delay(policy, most):
    """The policy as if its checkpoint had been trained with --rtc_delay."""
    policy.config = replace(policy.config, train=replace(policy.config.train, rtc_delay=most))
    return policy


def raw(policy, T, seed=0):
    return policy.stats.actions(np.random.default_rng(seed).normal(size=(1, T, 32)), np.zeros((1, 6)))


# ---- the formulas -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("left, d", [(4, 0), (4, 2), (6, 3), (3, 3), (1, 0)])
def test_weights_are_1_while_the_old_chunk_is_followed_and_fall_to_0_where_it_ends(left, d):
    for i, w in enumerate(rtc_weights(K, left, d).tolist()):
        c = (left - i) / (left - d + 1)   # the article's, with its H - s = left
        assert w == pytest.approx(1 if i < d else 0 if i >= left else c * math.expm1(c) / (math.e - 1), abs=1e-6)


@pytest.mark.parametrize("steps", [1, 4, 10])
@pytest.mark.parametrize("handover", ["identity", "vjp"])
def test_every_euler_step_is_drawn_as_in_the_article(handover, steps):
    """arXiv 2506.07339 with a linear velocity, whose Jacobian is known: v = A a + tau b, written out in numpy."""
    shapes = (K * D_A, K * D_A), (K * D_A,), (K, D_A), (K, D_A)
    A, b, eps, Y = (normal(*shape, seed=n) for n, shape in enumerate(shapes))
    W = rtc_weights(K, 4, 2)[:, None].double().expand(K, D_A)
    found = guided_euler(lambda a, tau: (a.reshape(1, -1) @ A.T + tau * b).reshape(1, K, D_A), eps[None], steps,
                         Guide(handover, Y[None], W))
    A, (a, b, Y, W) = A.numpy(), (x.numpy().ravel() for x in (eps, b, Y, W))
    for n in range(steps):
        tau = n / steps
        v = A @ a + tau * b
        e = W * (Y - (a + (1 - tau) * v))
        pull = e @ (np.eye(len(a)) + (1 - tau) * A) if handover == "vjp" else e
        r2 = (1 - tau) ** 2 / (tau ** 2 + (1 - tau) ** 2)
        weight = min(5, steps, (1 - tau) / (tau * r2)) if tau else min(5, steps)
        a = a + (v + weight * pull) / steps
    np.testing.assert_allclose(found.numpy().ravel(), a, rtol=1e-9)


@pytest.mark.parametrize("handover", ["identity", "vjp", "trained"])
def test_a_weight_of_zero_is_a_cold_start_to_the_last_bit(handover, tiny, build, random_batch):
    model, batch, eps = build(tiny), random_batch(tiny, 2), normal(2, tiny.chunk, 32, dtype=torch.float32)
    guide = Guide(handover, torch.ones_like(eps), torch.zeros_like(eps[0]))
    cold = model.sample_actions(batch, eps)
    assert torch.equal(model.sample_actions(batch, eps, solve=guide), cold)
    assert torch.equal(model.sample_actions(batch, eps, solve=guide._replace(weight=guide.weight + 1)), cold) is False


def test_given_actions_come_out_as_they_went_in_and_the_others_read_them(tiny, build, random_batch):
    model, batch, eps = build(tiny), random_batch(tiny, 2), normal(2, tiny.chunk, 32, dtype=torch.float32)
    batch.dim_mask[:], weight = True, torch.zeros(tiny.chunk, 32)
    weight[:2], rests = 1, (normal(2, tiny.chunk, 32, seed=n, dtype=torch.float32) for n in (1, 2))
    one, other = ((rest, model.sample_actions(batch, eps, solve=Guide("trained", rest, weight))) for rest in rests)
    for rest, a in (one, other):
        assert torch.equal(a[:, :2], rest[:, :2])
    assert not torch.allclose(one[1][:, 2:], other[1][:, 2:])


@pytest.mark.parametrize("handover", ["identity", "trained"])
def test_the_engine_hands_over_as_the_model_does(handover, variant, build, random_batch):
    model, batch = build(variant), random_batch(variant, 2)
    batch.text_mask[:] = batch.text_mask[:1]
    eps, Y = (normal(2, variant.chunk, 32, seed=n, dtype=torch.float32) for n in (1, 2))
    weight = rtc_weights(variant.chunk, 3, 2)[:, None] * (torch.arange(32) < 6)
    Y = Y * batch.dim_mask[:, None]
    held = (torch.arange(variant.chunk) < 2).float()[:, None].expand(-1, 32)
    guide = Guide(handover, Y, held if handover == "trained" else weight)
    expected = model.sample_actions(batch, eps, solve=guide)
    torch.testing.assert_close(Engine(model)(batch, eps, guide=guide).actions, expected, rtol=0, atol=1e-5)


# ---- policy -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mode", ["absolute", "delta"])
def test_the_rest_is_the_same_absolute_actions_in_the_new_plans_frame(make, mode):
    """Delta actions are commanded relative to the new state; idle dimensions are drawn nowhere."""
    policy, state = make(chunk=8, action_mode=mode), np.full((1, 6), 0.7, np.float32)
    actions = raw(policy, 5)
    guide = guide_of(policy, Rest(actions, 2, "identity"), state)
    np.testing.assert_allclose(policy.stats.actions(guide.rest.numpy(), state)[:, :5], actions, atol=1e-5)
    assert not guide.rest[:, 5:].any() and not guide.weight[:, 6:].any() and (guide.weight[:2, :6] == 1).all()
    given = guide_of(with_delay(policy, 1), Rest(actions, 2, "trained"), state)
    assert (given.weight[:1] == 1).all() and not given.weight[1:].any()   # no more than it was trained for
    with pytest.raises(ValueError, match="delay 6: only 5 actions are left"):
        guide_of(policy, Rest(actions, 6, "identity"), state)
    assert guide_of(policy, Rest(actions[:, :0], 0, "identity"), state) is None


@pytest.mark.parametrize("handover, engine", [("identity", "eager"), ("vjp", "plain"), ("trained", "eager")])
def test_the_control_loop_plans_from_what_is_left(make, handover, engine):
    policy, plain = (with_delay(make(chunk=8, engine=name), 3) for name in (engine, "plain"))
    frames, states = film(8)
    policy.reset("go", execute_steps=4, handover=handover)
    actions = [policy.step(images, state) for images, state in zip(frames, states)]
    seen = [[{view: [frames[0][view], frames[t][view]] for view in VIEWS}] for t in (0, 4)]
    first = plain.plan(seen[0], states[None, 0], ["go"])[0]
    second = plain.plan(seen[1], states[None, 4], ["go"], rest=Rest(first[:, 4:], 0, handover))[0]
    np.testing.assert_allclose(actions, np.concatenate([first[0, :4], second[0, :4]]), atol=1e-4)


@pytest.mark.parametrize("handover, words", [("vjp", "--engine plain"), ("trained", "--rtc_delay"), ("warm", "choose")])
def test_what_a_policy_cannot_do_is_one_line_and_the_episode_goes_on(make, handover, words):
    policy, (frames, states) = make(chunk=8), film(1)
    policy.reset("go")
    loop = policy.loop
    with pytest.raises(ValueError, match=words) as end:
        policy.reset("go", handover=handover)
    assert "\n" not in str(end.value) and policy.loop is loop and possible(policy) == ("cold", "identity")
    policy.step(frames[0], states[0])


def test_a_served_chunk_goes_on_from_the_last_one_and_without_the_keys_is_cold(make):
    (policy, own), images = (make(chunk=8) for _ in range(2)), film(1)[0][0]
    session = sessions.Session(policy, Reader(policy.stats))

    def ask(**more):
        return pytest.importorskip("serving_client").answered(session, sent | more)

    sent = {"images": images, "state": np.zeros(6), "prompt": "go"}
    given = [{view: [images[view]] * 2 for view in VIEWS}], np.zeros((1, 6), np.float32), ["go"]
    first, answer = own.plan(*given, imagine=False)[0], ask(handover="identity")
    assert answer["handover"] == "cold" and np.array_equal(answer["actions"], first[0])   # there is no last chunk
    expected = own.plan(*given, imagine=False, rest=Rest(first[:, 3:], 2, "identity"))[0][0]
    answer = ask(handover="identity", executed=3, delay=2)
    assert answer["handover"] == "identity" and np.array_equal(answer["actions"], expected)
    for wrong in ({}, {"executed": 7, "delay": 2}, {"executed": -1}, {"executed": 1.5}, {"executed": True}):
        with pytest.raises(ValueError, match="handover identity: executed is"):
            ask(handover="identity", **wrong)
    with pytest.raises(ValueError, match="--engine plain"):
        ask(handover="vjp", executed=3)
    assert ask()["handover"] == "cold"
    assert ask(handover="identity", executed=8)["handover"] == "cold"   # nothing is left
    assert ask(handover="identity", reset=True)["handover"] == "cold"   # another episode's chunk guides nobody
    flags = {"history": "present", "mask_missing": False, "fps": None, "form": None, "weights": "", "max_sessions": 1}
    assert server.metadata(policy, SimpleNamespace(**flags, idle_timeout=1))["handovers"] == ["cold", "identity"]


def test_the_rest_of_a_held_chunk_is_of_every_other_frame(make):
    """A client of twice the rate says in its own frames where it is: row i is for its frame t + 2 i."""
    policy = make(chunk=8)
    session, sent = sessions.Session(policy, Reader(policy.stats), hold=2), {"handover": "identity"}
    last = np.repeat(raw(policy, 8)[0], 2, axis=0)
    for executed, delay, d in ((4, 0, 0), (5, 1, 1), (5, 11, 6)):
        rest = session._rest(sent | {"executed": executed, "delay": delay}, last)
        assert np.array_equal(rest.actions[0], last[executed::2]) and rest.delay == d
    assert session._rest(sent | {"executed": 16}, last) is None
    with pytest.raises(ValueError, match="last chunk's 16 actions"):
        session._rest(sent | {"executed": 16, "delay": 1}, last)


def test_a_server_records_every_hand_over_before_it_listens(make, monkeypatch):
    """A robot would wait for it in the middle of its first episode."""
    monkeypatch.setattr("support.inference.engine.Engine", partial(Engine, capture=static, backend="eager"))
    policy = make(chunk=8, engine="graph")
    flags = {"history": "present", "mask_missing": False, "fps": None, "form": None, "weights": "", "max_sessions": 1,
             "task": None, "batch_sessions": 1}
    pytest.importorskip("websockets")
    server.Server(policy, SimpleNamespace(**flags, idle_timeout=1, protocol="openpi"))
    made, images = policy.engine.captures, film(1)[0][0]
    seen = [{view: [images[view]] * 2 for view in VIEWS}]
    policy.plan(seen, np.zeros((1, 6)), ["go"], imagine=False, rest=Rest(raw(policy, 5), 2, "identity"))
    assert policy.engine.captures == made == 4   # cold and guided, with and without latents of t-m


# ---- training -----------------------------------------------------------------------------------------------

def test_without_a_delay_draws_and_losses_are_those_of_before_to_the_last_bit(build, random_batch, noise):
    tiny, config = VARIANTS["tiny"], CONFIGS["conveyor"]
    draw = [Mixture.noise(SimpleNamespace(config=replace(config, train=replace(config.train, rtc_delay=most)), seed=0,
                                          rank=0), 5) for most in (0, 6)]
    (eps, tau), (same, by_action) = draw
    assert torch.equal(eps, same) and tau.shape == (2,) and by_action.shape == (2, 16)
    assert torch.equal(by_action, torch.where(by_action == 1, by_action, tau[:, None]))
    model, batch, (eps, tau) = build(tiny), random_batch(tiny, 3), noise(tiny, 3, R=2)
    found, expected = (model(batch, eps, of) for of in (tau[..., None].expand(-1, -1, tiny.chunk), tau))
    assert torch.equal(found.act_sum, expected.act_sum) and found.act_count == expected.act_count


def test_the_delay_is_uniform_from_0_to_the_most():
    config = CONFIGS["conveyor"]
    self = SimpleNamespace(config=replace(config, train=replace(config.train, rtc_delay=3)), seed=0, rank=0)
    given = torch.stack([Mixture.noise(self, n)[1] == 1 for n in range(400)]).flatten(0, 1)
    assert torch.equal(given, given.cummin(1).values)   # the first d
    counts = torch.bincount(given.sum(1), minlength=16)
    assert (counts[:4] > 150).all() and not counts[4:].any()   # of 800


def test_of_given_actions_nothing_is_learned(tiny, build, random_batch, noise):
    """They enter as they are, they are not counted, and their targets move no loss."""
    model, batch, (eps, tau) = build(tiny), random_batch(tiny, 3), noise(tiny, 3, R=2)
    tau = tau[..., None].repeat(1, 1, tiny.chunk)
    tau[..., :1] = 1
    losses, other = model(batch, eps, tau), eps.clone()
    other[:, :, 0] += 1
    assert torch.equal(model(batch, other, tau).act_sum, losses.act_sum)
    assert model.counts(batch, tau)[0] == losses.act_count == 2 * 6 * (3 + 2 + 1)


# ---- the benchmark ------------------------------------------------------------------------------------------

def test_the_bench_measures_the_step_where_a_late_chunk_is_entered(make):
    """Plan n is 3 n more than the number of the frame: each hand-over is a step of 3, 1.5 standard deviations, two
    frames after 4 and 8."""
    policy, asked = make(chunk=16), []

    def plan(t, rest=None, **__):
        asked.append(rest)
        return np.tile(3 * len(asked) + t + np.arange(16.0)[:, None], (2, 1, 6)), None
    policy.plan = plan
    scene = SimpleNamespace(frames=13, observe=lambda t: (t,), act=lambda actions: None, counted=lambda: [True, False])
    steps, actions = bench.drive(policy, "identity", 2, 4, scene)
    assert steps.tolist() == [1.5, 1.5] and (actions[:, 0, 0] - range(13)).tolist() == [3] * 6 + [6] * 4 + [9] * 3
    assert [rest and rest.actions.shape[1] for rest in asked] == [None, 12, 12, 12]
