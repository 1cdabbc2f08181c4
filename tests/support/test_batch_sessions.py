"""infer.py --serve --batch_sessions N: chunks of several sessions as one batch, each of them its session's own."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from conftest import static

pytest.importorskip("websockets", reason="websockets is not installed: pip install -r requirements-robot.txt")
import serving_server   # noqa: E402
from serving_client import infer, raw, sent   # noqa: E402
from serving_server import fitted, turns   # noqa: E402
from support.inference import protocol, sessions   # noqa: E402
from support.inference.engine import Engine   # noqa: E402
from support.inference.observation_keys import Reader   # noqa: E402

served = serving_server.served


def counted(policy):
    """A policy, and the sizes of the batches that it plans from now on."""
    sizes = []

    def _plan(batch, *given, made=policy._plan):
        sizes.append(len(batch.state))
        return made(batch, *given)
    policy._plan = _plan
    return policy, sizes


@pytest.fixture
def several(make):
    """(n, **of the policy) -> n sessions of one policy, and the sizes of its batches."""
    def start(n, **more):
        policy, sizes = counted(fitted(make(chunk=20, **more), 6, 6))
        return [sessions.Session(policy, Reader(policy.stats), "exact") for _ in range(n)], sizes
    return start


def alone(make, observations, **more):
    """The actions of a session that nobody else shares a batch with."""
    policy = fitted(make(chunk=20, **more), 6, 6)
    session = sessions.Session(policy, Reader(policy.stats), "exact")
    return [protocol.read(*turns([(session, of)]))["actions"] for of in observations]


@pytest.mark.parametrize("engine, handover", [("eager", "cold"), ("eager", "identity"), ("plain", "vjp")])
def test_a_chunk_of_a_batch_is_the_sessions_own_to_float_rounding(make, several, engine, handover):
    """Its noise, its history and its last chunk, in two plans after one another. Prompts may have other lengths."""
    three, sizes = several(3, engine=engine)
    talks = [[sent(seed=10 * n + t, prompt="go " * (n + 1), frame=15 * t, handover=handover, executed=3, delay=1)
              for t in range(2)] for n in range(3)]
    found = [turns([(session, talk[t]) for session, talk in zip(three, talks)], most=3) for t in range(2)]
    assert sizes == [3, 3]
    for n, talk in enumerate(talks):
        answers = [protocol.read(found[t][n]) for t in range(2)]
        assert answers[1]["handover"] == handover and answers[1]["history_age"] == 15
        for answer, expected in zip(answers, alone(make, talk, engine=engine)):
            assert np.abs(answer["actions"] - expected).max() < 1e-5


def test_those_that_came_first_and_want_the_like_are_a_batch_and_all_are_answered_in_order(several):
    """At most N; other cameras, pictures wanted or another rest are another batch; without a flag there is none."""
    eight, sizes = several(8)
    asked = [(session, sent(seed=n, frame=0, z_hat=n in (1, 2))) for n, session in enumerate(eight)]
    assert ["z_hat" in protocol.read(of) for of in turns(asked, most=4)] == [n in (1, 2) for n in range(8)]
    assert sizes == [4, 2, 2]   # 0 3 4 5, then 1 2, then 6 7
    sizes.clear()
    turns([(session, sent(frame=1)) for session in eight])
    assert sizes == [1] * 8


def test_what_is_wrong_in_one_session_is_said_to_it_alone(make, several):
    """Bad bytes, a bad state, a frame without a plan, a plan that is not finite; the others get their chunks."""
    (*bad, first, last), sizes = several(6)
    wrong = [b"junk", sent(state=np.ones(5), frame=0), sent(frame=0, plan=False), sent(state=np.full(6, 3e38), frame=0)]
    good = sent(seed=1, frame=0)
    found = turns([(first, good), *zip(bad, wrong), (last, good)], most=8)
    assert sizes == [3, 1, 1, 1]   # the three that want a chunk, then each alone
    for answer, words in zip(found[1:5], ("cannot be read", "state has 5 numbers", None, "the plan is not finite")):
        assert words in answer if words else "actions" not in protocol.read(answer)
    expected, = alone(make, [good])
    assert all(np.array_equal(protocol.read(of)["actions"], expected) for of in (found[0], found[-1]))
    assert [session.policy.calls for session in bad] == [0, 0, 0, 0]   # what is refused uses no noise


def test_a_notice_is_of_the_session_whose_instruction_was_cut(several):
    two, sizes = several(2)
    found = turns([(two[0], sent(frame=0)), (two[1], sent(frame=0, prompt="long " * 100))], most=2)
    assert ["notice" in protocol.read(of) for of in found] == [False, True] and sizes == [2]


def test_a_server_batches_sessions_that_ask_at_once(make, served):
    """Four clients through sockets: every answer is that of a server without the flag, to float rounding."""
    def ask(port, n):
        wire, _ = raw(port)
        found = [infer(wire, sent(seed=10 * n + t)) for t in range(6)]
        wire.close()
        return found
    policy, sizes = counted(make(chunk=8))
    with ThreadPoolExecutor(4) as pool:
        one, four = (list(pool.map(partial(ask, port), range(4)))
                     for port in (served(make(chunk=8)), served(policy, batch_sessions=4)))
    for expected, found in zip(sum(one, []), sum(four, [])):
        assert np.abs(found["actions"] - expected["actions"]).max() < 1e-5
        assert min(found["server_timing"]["wait_ms"], found["policy_timing"]["infer_ms"]) > 0
    assert sum(sizes) == 25 and max(sizes) > 1   # and the first, from black pictures


def test_an_engine_that_is_recorded_for_one_session_is_refused_before_it_listens(make, served, monkeypatch):
    monkeypatch.setattr("support.inference.engine.Engine", partial(Engine, capture=static, backend="eager"))
    with pytest.raises(ValueError, match="--batch_sessions 2: engine graph is prepared for one session.*--engine eager"):
        served(make(chunk=8, engine="graph"), batch_sessions=2)
