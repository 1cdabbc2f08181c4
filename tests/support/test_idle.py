"""What does not move: idle action dimensions, control modes, states of other widths or none, and figures about them."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import train
from config import get_config
from conftest import film
from data import collate, example, windows
from model import InternVLA_A1
from support.data.corpus import Corpus
from support.data.source import open_source
from support.data.kept_statistics import statistics
from support.data.statistics import Statistics
from support.inference.open_loop import Baselines, errors, foresight
from support.inference.policy import Policy
from test_bad_input import RUN, SMALL, write_folder
from test_data import Fake

RNG = np.random.default_rng(0)
NOISE = RNG.normal(size=200)
NOISE = (NOISE - NOISE.mean()) / NOISE.std()


def recorded(action, state=None, relative=None, kinds=(), robot="arm", **more):
    """One episode of 200 frames as a source. action (200, d_a), state (200, d_q), by default a walk of as many."""
    action = np.asarray(action, np.float32)
    state = np.cumsum(RNG.normal(size=action.shape), 0) if state is None else state
    source = Fake(lengths=(len(action),), d=action.shape[1], robot=robot, **more)
    source.rows, source.kinds = [(np.asarray(state, np.float32), action)], kinds
    source.relative = (True,) * action.shape[1] if relative is None else relative
    return source


def stats_of(source, mode="absolute", floor=get_config("conveyor").data.std_floor):
    return statistics({0: source}, {0: windows(source, 15)}, 4, mode, floor)


def policy_of(source, mode="absolute", **flags):
    """A policy of random weights with that source's statistics."""
    config = get_config("conveyor", SMALL | {"action_mode": mode} | flags)
    torch.manual_seed(0)
    return Policy(InternVLA_A1(config.model), config, stats_of(source, mode))


@pytest.mark.parametrize("mean, std, idle", [
    (0.7, 1e-5, True), (-0.7, 1e-5, True), (1e-4, 3e-5, False), (-1e-4, 3e-5, False), (0.7, 0, True), (0, 0, True),
    (0, 1e-9, True), (4000, 1, False), (4000, 1e-3, True), (3e6, 0.1, True), (0, 1e-4, False), (700, 1e-2, True),
    (1e-6, 3e-7, False), (0, 0.3, False)])
def test_what_is_idle_is_decided_relative_to_its_own_magnitude(mean, std, idle):
    """A joint and a force, constants, counts, what float32 rounds; beside a dimension that moves."""
    source = recorded(np.stack([mean + std * NOISE, NOISE], 1))
    stats = stats_of(source)
    assert stats.moving.tolist() == [not idle, True] and stats.left_out == ((0,) if idle else ())
    x = example(get_config("conveyor", SMALL).model, 15, stats, source, 0, 20)
    assert x["dim_mask"].tolist() == [not idle, True] + [False] * 30
    assert x["action_mask"].any(0).tolist() == x["dim_mask"].tolist()
    said = [line for line in stats.describe(15, 4) if line.startswith("idle in training")]
    assert bool(said) == idle and all(f"action 0 (joint 0) = {stats.action_mean[0]:.6g}" in line for line in said)


@pytest.mark.parametrize("mode", ["absolute", "delta"])
@pytest.mark.parametrize("noise_on_padding", [False, True])
def test_a_policy_commands_the_constant_in_plan_and_step_whatever_model_and_state_say(mode, noise_on_padding):
    """Wide weights on purpose; delta mode too, where a constant command is a moving delta."""
    constant = np.float32([0.7, -1.5, 3e5])
    action = np.tile(NOISE[:, None], (1, 5))
    action[:, [0, 2, 3]] = constant
    policy = policy_of(recorded(action), mode, noise_on_padding=noise_on_padding)
    torch.nn.init.normal_(policy.model.act.action_out_proj.weight, std=3.0)
    assert policy.stats.relative == ((True,) * 5 if mode == "absolute" else (False, True, False, False, True))
    frames, states = film(8)[0], RNG.normal(size=(8, 5))
    for seed in (0, 1):
        policy.seed = seed
        a, _ = policy.plan([{"head": [frames[0]["head"]] * 2}], states[None, 0], ["go"])
        assert (a[0, :, [0, 2, 3]].T == constant).all() and np.ptp(a[0, :, 1]) > 1e-3
    policy.reset("go", execute_steps=2)
    taken = np.array([policy.step(images, state) for images, state in zip(frames, states)])
    assert (taken[:, [0, 2, 3]] == constant).all() and np.ptp(taken[:, 1]) > 1e-3
    assert (policy.stats.actions(np.full((1, 4, 32), np.nan), states[:1])[0, :, 0] == constant[0]).all()


def test_an_idle_dimension_reaches_neither_the_loss_nor_the_others():
    """Masked as padding: L_act and its gradients are those of a robot without that dimension; all idle is 0, not NaN."""
    action = np.stack([np.full(200, 4000.0) + 1e-3 * NOISE, NOISE], 1)
    source, config = recorded(action), get_config("conveyor", SMALL)
    stats = stats_of(source)
    model = InternVLA_A1(config.model)
    batch = collate([example(config.model, 15, stats, source, 0, 30)])
    eps, tau = torch.randn(1, 1, 4, 32), torch.full((1, 1), 0.3)
    one = model(batch, eps, tau)
    other = eps.clone()
    other[..., 0] = 99
    two = model(batch, other, tau)
    assert torch.equal(one.act_sum, two.act_sum) and int(one.act_count) == 4 and not batch.action[..., 0].any()
    still = recorded(np.tile(np.float32([1, 0]), (200, 1)))
    batch = collate([example(config.model, 15, stats_of(still), still, 0, 30)])
    losses = model(batch, eps, tau)
    assert int(losses.act_count) == 0 and losses.total(0, 0, 0).item() == 0


def test_delta_statistics_tell_a_constant_command_a_constant_delta_and_small_moves_apart():
    """A state that jitters about a constant command moves nothing; a delta of 1e-4 rad of a moving joint does."""
    state = np.stack([0.7 + 1e-5 * NOISE, np.cumsum(NOISE), np.cumsum(NOISE), 1e-4 * NOISE], 1).astype(np.float32)
    action = state.copy()
    action[:, 0], action[:, 2], action[:, 3] = np.float32(0.7), state[:, 2] + 1e-3 * RNG.normal(size=200), -1.5
    source = recorded(action, state)
    stats = statistics({0: source}, {0: windows(source, 15)}, 1, "delta", 1e-4)   # chunks of one step
    assert stats.unscaled == ("state 0", "state 3", "action 0", "action 1", "action 3")   # 3: stalled below its command
    assert stats.relative == (False, True, True, False)
    x = np.float32([[0.2, 5.0, 1.0, 1.0]])
    np.testing.assert_allclose(stats.actions(np.ones((1, 1, 32)), x)[0, 0, [0, 1, 3]], [0.7, 5.0, -1.5], atol=1e-5)
    said = " ".join(stats.describe(15, 1))
    assert "action 0 (joint 0) = 0.7" in said and "action 1 (joint 1) = the state + " in said


def test_older_checkpoints_and_published_weights_keep_the_inputs_they_were_trained_on():
    """What they pass through unscaled is commanded as its mean, but was noised in training: it is not masked."""
    stats = stats_of(recorded(np.stack([np.full(200, 0.7), NOISE], 1)))
    stored = json.loads(json.dumps(asdict(stats)))
    assert Statistics.from_dict(stored) == stats
    old = Statistics.from_dict({key: x for key, x in stored.items() if key not in ("kinds", "left_out")})
    source = recorded(np.stack([NOISE, NOISE], 1))
    for of, moving in ((old, [False, True]), (replace(old, unscaled=(), windows=0), [True, True])):
        x = example(get_config("conveyor", SMALL).model, 15, of, source, 0, 20)
        assert of.moving.tolist() == moving and x["dim_mask"][:2].all() and x["action_mask"][:, :2].all()
    assert (old.actions(np.ones((1, 4, 32)), np.zeros((1, 2)))[..., 0] == np.float32(0.7)).all()


# ---- control modes, widths ----------------------------------------------------------------------------------------

def test_a_velocity_is_held_as_0_and_never_relative_to_a_state():
    kinds, action = ("velocity", "torque", "position"), np.stack([NOISE, 2 + NOISE, NOISE + 5], 1)
    with pytest.raises(ValueError, match="delta: action 0 of robot 'arm' is a velocity, which is relative to no state"):
        stats_of(recorded(action, kinds=kinds), "delta")
    mask = (False, False, True)
    stats = stats_of(recorded(action, kinds=kinds, relative=mask), "delta")
    assert stats.kinds == kinds and stats.holding(np.float32([1, 2, 3])).tolist() == [0, 0, 3]
    assert stats_of(recorded(action, kinds=("position",) * 3)).kinds == ()
    policy = policy_of(recorded(action, kinds=kinds, relative=mask))
    frames, states = film(1)[0] * 6, np.zeros((6, 3), np.float32)
    policy.reset("go", execute_steps=4)
    for images, state in zip(frames[:4], states):
        last = policy.step(images, state)
    policy.loop.next_plan = 99   # the chunk of 4 is over and no other comes
    assert policy.step(frames[4], states[4]).tolist() == [0, 0, last[2]] and policy.timing()["starved"] == 1


def test_delta_takes_action_d_relative_to_state_d_whatever_the_widths():
    """LIBERO's form: eight states, seven actions, six of them relative."""
    state, action = RNG.normal(size=(200, 8)), RNG.normal(size=(200, 7))
    source = recorded(action, state, (True,) * 6 + (False,))
    stats = stats_of(source, "delta")
    q, a = np.arange(8.0), np.arange(28.0).reshape(4, 7)
    raw = stats.standardised(a, q) * stats.action_std + stats.action_mean
    np.testing.assert_allclose(raw, a - np.append(q[:6], 0), atol=1e-5)
    np.testing.assert_allclose(stats.actions(stats.standardised(a, q), q), a, atol=1e-5)
    assert stats.holding(q).tolist() == [0, 1, 2, 3, 4, 5, stats.action_mean[6]]   # the gripper has no state
    assert stats_of(recorded(action, state, ())).holding(q) is None
    wide = recorded(RNG.normal(size=(200, 8)), RNG.normal(size=(200, 7)), (True,) * 8)
    with pytest.raises(ValueError, match="action 7 would be relative to state 7, the data have 7 state dimensions"):
        stats_of(wide, "delta")


def test_a_robot_without_a_state_trains_and_acts_with_zeros_in_the_state_token():
    source = recorded(np.stack([NOISE, 0.1 * NOISE], 1), np.zeros((200, 0)), ())
    stats = stats_of(source)
    assert stats.state_mean == stats.state_std == () and "no state: the state token gets zeros" in [*stats.describe(15, 4)]
    x = example(get_config("conveyor", SMALL).model, 15, stats, source, 0, 20)
    assert not x["state"].any() and x["dim_mask"][:2].all() and x["action_mask"][:, :2].all()
    frames, policy = film(5)[0], policy_of(source)
    seen = [{"head": [frames[0]["head"]] * 2}]
    for states in (None, [None], np.zeros((1, 0))):
        policy.calls = 0
        a, _ = policy.plan(seen, states, ["go"])
        assert a.shape == (1, 4, 2) and np.abs(a).max() > 0 and policy.batch(seen, np.zeros((1, 0)), ["go"]).dim_mask[0, :2].all()
    policy.reset("go")
    assert policy.step(frames[0], None).shape == policy.step(frames[1], np.zeros(0)).shape == (2,)
    with pytest.raises(ValueError, match=r"shape \(3,\); give 0 finite numbers"):
        policy.step(frames[2], np.zeros(3))
    other = policy_of(recorded(np.stack([NOISE, NOISE], 1)))
    with pytest.raises(ValueError, match=r"the state is \[\] of shape \(0,\); give 2 finite numbers"):
        other.plan(seen, None, ["go"])


# ---- figures ------------------------------------------------------------------------------------------------------

def corpus_of(source, **more):
    """An episode to train on; the same one held out."""
    rows = windows(source, 15)
    return Corpus([], sources={0: source}, windows={0: rows}, held_out=source, held_out_windows=rows, **more)


def test_errors_are_over_what_moves_with_the_median_and_idle_ones_apart_in_raw_units():
    source = recorded(np.stack([np.full(200, 0.7), NOISE, NOISE, NOISE], 1))
    stats = stats_of(source)
    true = source.rows[0][1]
    off = true + np.float32([0.5, 1, 2, 3]) * np.append(0.5, np.ones(3)).astype(np.float32)
    report = errors({"true": true, "policy": off}, Baselines(corpus_of(source), stats, 4), list("abcd"))["policy"]
    assert report["mse"] == pytest.approx((1 + 4 + 9) / 3, rel=1e-4) and report["median"] == pytest.approx(4, rel=1e-4)
    assert set(report["joints"]) == set("bcd") and report["idle"]["a"]["mae"] == pytest.approx(0.25)
    still = recorded(np.zeros((200, 2)))
    report = errors({"true": true[:, :2], "policy": off[:, :2]}, Baselines(corpus_of(still), stats_of(still), 4), "ab")
    assert report["policy"]["mse"] == report["policy"]["median"] == 0 and set(report["policy"]["idle"]) == set("ab")


def test_rivals_predict_in_the_policys_own_action_mode():
    """A joint that goes on as it went, from postures that were not trained on: in delta mode the ridge knows it."""
    rate = np.repeat(RNG.normal(size=(20, 2)), 10, 0)
    state = np.cumsum(rate, 0)
    source = recorded(state + rate, state)
    baselines = Baselines(corpus_of(source), stats_of(source, "delta"), 4)
    far = 1e3 + state[:9]   # nine frames at one rate
    chunks = baselines.chunks(far.astype(np.float32), 8)
    assert set(chunks) == {"hold the state", "mean action", "ridge regression"}
    wanted = far[8] + rate[8] * np.arange(1, 5)[:, None]
    miss = {name: np.abs(chunk - wanted).max() for name, chunk in chunks.items()}
    assert miss["ridge regression"] < miss["hold the state"] and miss["mean action"] < 20
    assert (chunks["hold the state"] == far[8].astype(np.float32)).all()


def test_foresight_is_beside_a_copy_of_t_and_the_mean_picture_of_training():
    """A picture that is always the same: both rivals are right. One that grows lighter: a copy is off by m frames."""
    source = recorded(np.stack([NOISE, NOISE], 1), views=("head",))
    policy, rows = policy_of(source), [[0, 20], [0, 100], [0, 199]]   # the last has no future
    source.frame = lambda view, e, t: np.full((8, 8, 3), 50, np.uint8)
    row = foresight(policy, corpus_of(source), rows)["head"]
    assert row["copy of t"] == 0 and row["training-mean picture"] == 0 and row["policy"] > 0
    source.frame = lambda view, e, t: np.full((8, 8, 3), t, np.uint8)
    row = foresight(policy, corpus_of(source), rows)["head"]
    assert 0 < row["copy of t"] < row["training-mean picture"]   # frame 99 is far from 35 and 115


# ---- the same robot elsewhere -------------------------------------------------------------------------------------

@pytest.mark.parametrize("change, message", [
    ({}, None), ({"robot": "unnamed-6q6a-1"}, None),
    ({"robot": "so101"}, "is of robot 'so101', the checkpoint drives 'arm': give the same --robot"),
    ({"fps": 15.0}, "has frames/s 15.0; trained was on 30.0"),
    ({"action_names": list("abcdef")}, "has action dimensions .*; trained was on"),
    ({"views": {"head": "other"}}, "gives head = other; trained was on head = head")])
def test_a_moved_dataset_is_of_the_same_robot_if_it_measures_the_same(change, message):
    stats = stats_of(recorded(np.tile(NOISE[:, None], 6)))
    source = recorded(np.tile(NOISE[:, None], 6))
    vars(source).update(change)
    if message:
        with pytest.raises(ValueError, match=message):
            stats.check_inputs(source)
    else:
        stats.check_inputs(source)


def test_a_folder_with_an_idle_joint_trains_says_so_and_resumes_after_it_was_renamed(tmp_path, capsys):
    action = RNG.normal(size=(24, 6))
    action[:, 2] = 0.25
    root = write_folder(tmp_path / "arm", T=24, ends=np.array([12, 24]), action=action, robot=np.array("mine"))
    run = ["--config", "conveyor", *RUN, "--m", "3", "--out", str(tmp_path / "run")]
    train.run([*run, "--data", str(root)])
    assert "idle in training, so commanded as it was there and not in L_act: action 2 = 0.25" in capsys.readouterr().out
    log = [json.loads(line) for line in open(tmp_path / "run" / "log.jsonl")]
    assert all(row["n_act"] % 5 == 0 for row in log if "n_act" in row)   # of six dimensions, five count
    policy = Policy.load(tmp_path / "run")
    assert policy.stats.left_out == (2,) and open_source(root).robot == policy.stats.robot == "mine"
    renamed = root.rename(tmp_path / "arm_2")
    train.run([*run, "--data", str(renamed), "--resume"])
    assert "resuming" in capsys.readouterr().out
