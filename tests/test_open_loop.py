"""Open-loop reports: a policy beside recordings and beside three rivals that do not look."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from config import get_config
from data import Corpus, Statistics, statistics, windows
from support.open_loop import Rivals, errors, mean_errors, open_loop

from test_data import Fake

K = 16


def corpus_of(make, robot="conveyor"):
    """Four episodes whose actions are make(state, t), the last one held out."""
    source = Fake(lengths=(40, 33, 50, 37), robot=robot)
    source.rows = [(state, make(state).astype(np.float32)) for state, _ in source.rows]
    trained = windows(source, 15, episodes=range(3))
    corpus = Corpus([source], [1.0], ["robot"], [trained], source, windows(source, 15, episodes=[3]))
    return corpus, statistics([source], [trained], K, "absolute", 1e-3)


def policy_that(plan, stats):
    """The interface of support.policy.Policy, without a model."""
    return SimpleNamespace(plan=plan, stats=stats, config=get_config("conveyor"))


def test_chunks_are_laid_end_to_end_over_the_whole_episode():
    """A policy that knows the recording has no error, whatever the episode's length."""
    corpus, stats = corpus_of(lambda state: np.cumsum(state, 0))
    asked = []

    def plan(seen, state, tasks):
        _, action = corpus.held_out.numbers(3)
        t = len(asked) * K
        asked.append((state[0], [frame[0, 0, 0] for frame in seen[0]["head"]], tasks[0]))
        return np.concatenate([action[t:], np.full((K, 6), 99, np.float32)])[None, :K], None

    reports, found = open_loop(policy_that(plan, stats), corpus)
    traces, starts = found[3]
    assert starts == [0, 16, 32] and traces["policy"].shape == (37, 6) and reports[3]["policy"]["mse"] == 0
    state, _ = corpus.held_out.numbers(3)
    assert all((q == state[t]).all() for (q, _, _), t in zip(asked, starts))
    assert [past for _, (past, _), _ in asked] == [8 * 3 + max(t - 15, 0) for t in starts]   # t - m, clamped
    assert asked[0][2] == "pick 3"


def test_ridge_regression_finds_what_the_state_tells():
    """Next actions that are linear in the state are predicted by it, and by no other rival."""
    corpus, stats = corpus_of(lambda state: np.tile(state[:1] * 2 + 1, (len(state), 1)))
    for source_state, action in corpus.held_out.rows:   # the state stays, so that it tells the whole chunk
        source_state[:] = source_state[0]
    rivals = Rivals(corpus, stats, K)
    state, action = corpus.held_out.numbers(0)
    plans = rivals.plan(state[5])
    assert {name: plan.shape for name, plan in plans.items()} == dict.fromkeys(
        ("mean action", "ridge regression", "hold the state"), (K, 6))
    assert (plans["hold the state"] == state[5]).all()
    assert np.abs(plans["ridge regression"] - action[5]).max() < 0.2 < np.abs(plans["mean action"] - action[5]).max()


def test_errors_are_in_training_deviations_and_per_joint_in_raw_units():
    corpus, stats = corpus_of(lambda state: 10 * state)
    rivals = Rivals(corpus, stats, K)
    true = np.zeros((20, 6))
    found = {"true": true, "policy": true + 2 * rivals.unit}
    report = errors(found, rivals, stats.action_names)
    assert report["policy"]["mse"] == pytest.approx(4)
    joint = report["policy"]["joints"]["joint 2"]
    assert joint["mae"] == pytest.approx(2 * rivals.unit[2]) and joint["mse"] == pytest.approx(joint["mae"] ** 2)
    assert mean_errors({0: report, 1: errors({"true": true, "policy": true}, rivals, stats.action_names)}) == \
        {"policy": pytest.approx(2)}
    json.dumps(report)


def test_holding_needs_states_like_actions():
    corpus, stats = corpus_of(lambda state: state[:, :4], "arm")
    assert set(Rivals(corpus, stats, K).plan(corpus.held_out.numbers(0)[0][0])) == {"mean action", "ridge regression"}
    assert isinstance(stats, Statistics)
