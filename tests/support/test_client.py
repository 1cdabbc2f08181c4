"""support/inference/client.py: which action is due, what is sent along, and a server or a client that is lost."""

import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from config import VIEWS
from conftest import ROOT

pytest.importorskip("websockets", reason="websockets is not installed: pip install -r requirements-robot.txt")
from websockets.exceptions import ConnectionClosed   # noqa: E402
import serving_server   # noqa: E402
from serving_client import pictures, raw   # noqa: E402
from serving_server import plans   # noqa: E402
from support.inference.client import Client   # noqa: E402

served, run, process = serving_server.served, serving_server.run, serving_server.process


def drive(robot, frames, states, wait=True):
    """Steps of our client; wait: each answer is there at the next frame."""
    actions = []
    for images, state in zip(frames, states):
        actions.append(robot.step(images, state))
        while wait and robot.pending is not None and not robot.pending.done():
            time.sleep(0.001)
    return np.array(actions)


def test_the_clients_steps_are_those_of_the_policy_in_one_process(make, served):
    """Same chunks, same history; a chunk that comes a frame late is entered at that frame's own action."""
    frames = [dict(zip(VIEWS, pictures(seed=t, size=64))) for t in range(30)]
    robot, own, states, expected = Client("127.0.0.1", served(make(chunk=8))), make(chunk=8), np.ones((30, 6)), []
    robot.reset("go", execute_steps=4, handover="cold")
    actions = drive(robot, frames, states)
    for t in range(0, 30, 4):
        chunk = plans(own, list(frames[t].values()), 6, list(frames[max(t - 15, 0)].values()))
        expected[t:] = [*expected[t:t + (t > 0)], *chunk[int(t > 0):]]
    assert np.array_equal(actions, np.array(expected[:30])) and robot.starved == 0 and robot.delay == 1
    robot.reset("go")
    with pytest.raises(ValueError, match="state has 5 numbers"):
        robot.step(frames[0], np.ones(5))
    assert robot.step(frames[0], states[0]).shape == (6,)
    robot.close()


class Slow(Client):
    """A client without a server: an answer comes when the test lets it, and chunk n is 10 n + 0, 1, 2 and so on."""

    def connect(self):
        self.metadata = {"chunk": 8, "m": 15, "handovers": ["identity"], "action_kinds": ["position", "velocity"]}
        self.requests, self.free = [], threading.Semaphore(0)

    def ask(self, request):
        self.requests.append(request)
        self.free.acquire(timeout=120)
        return {"actions": np.tile(10 * len(self.requests) + np.arange(8, dtype=np.float32)[:, None], 2)}


def test_a_client_says_where_it_is_in_its_chunk_and_holds_where_it_ends():
    """A chunk asked for at 4 comes at 7, the next one never: from 12 on a position is held, and a velocity is 0."""
    robot, said = Slow(), []
    robot.reset("go")
    robot.free.release()
    for t in range(14):
        if t == 7:
            robot.free.release()
            robot.pending.result(120)
        action = robot.step({"head": np.zeros((2, 2, 3), np.uint8)}, np.ones(2))
        said.append(action.tolist())
        action[:] = 99   # which is the caller's: what is held, or sent as a rest, is another
    rows = [10, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27]
    assert said == [[x, x] for x in rows] + [[27, 0]] * 2 and (robot.delay, robot.starved) == (3, 2)
    robot.free.release()
    robot.pending.result(120)
    first, second, third = robot.requests
    assert first["reset"] and "executed" not in first
    assert (second["frame"], second["executed"], second["delay"]) == (4, 4, 1) and not second["reset"]
    assert (third["frame"], third["executed"], third["delay"]) == (8, 4, 3)


# ---- lost ones --------------------------------------------------------------------------------------------------

LOST = """if True:
    import sys, time
    from support.inference.client import Client
    Client(port=int(sys.argv[1]))
    print(flush=True)
    time.sleep(60)
"""


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_client_that_is_killed_or_stopped_leaves_its_place(make, served, number):
    """The killed one at once, the stopped one within its time-out and the seconds for a goodbye."""
    port = served(make(chunk=8), max_sessions=1, idle_timeout=1)
    with subprocess.Popen([sys.executable, "-c", LOST, str(port)], cwd=ROOT, stdout=subprocess.PIPE) as child:
        try:
            child.stdout.readline()
            assert len(served.server.sessions) == 1
            child.send_signal(number)
            end = time.monotonic() + 30   # the client alone would stay for 60 s
            while served.server.sessions and time.monotonic() < end:
                time.sleep(0.01)
            assert not served.server.sessions
            robot = Client(port=port)
            robot.reset("go")
            assert robot.step(dict(zip(VIEWS, pictures())), np.zeros(6)).shape == (6,)
            robot.close()
        finally:
            child.kill()


@pytest.mark.long
def test_a_killed_server_that_comes_back_finds_its_robot_and_sigterm_says_why_it_ends(process):
    """Killed in the robot's second episode: the last action is held meanwhile, then an episode begins."""
    made, port = process()
    robot, frame, state, answers = Client("127.0.0.1", port), dict(zip(VIEWS, pictures())), np.zeros(6), []
    robot.ask = lambda request, ask=robot.ask: answers.append(ask(request)) or answers[-1]
    for _ in range(2):
        robot.reset("go", execute_steps=2)
        drive(robot, [frame] * 6, [state] * 6)
    assert answers[-1]["episode"] == 2
    asked = len(answers)
    made.kill()
    held = drive(robot, [frame] * 30, [state] * 30, wait=False)
    assert (held[-1] == held[-2]).all() and robot.starved > 10   # the rest of the chunk, then its last action
    made, port = process("--port", port)
    action = held[-1]
    for _ in range(2400):
        if (action != held[-1]).any():
            break
        action = robot.step(frame, state)
        time.sleep(0.05)
    assert (action != held[-1]).any() and answers[asked]["episode"] == 1
    assert (answers[asked]["history"], answers[asked]["history_age"]) == ("pair", 15)   # its own frames go on
    assert np.array_equal(answers[asked]["actions"], answers[0]["actions"])   # the noise begins again, too
    wire, _ = raw(port)
    made.send_signal(signal.SIGTERM)
    with pytest.raises(ConnectionClosed, match="1001 .*the server is shutting down"):
        wire.recv(120)
    assert made.wait(120) == 0
    robot.patience = 0.1
    with pytest.raises(ConnectionError, match=f"no policy server at ws://127.0.0.1:{port}"):
        for _ in range(100):
            robot.step(frame, state)
            time.sleep(0.05)
    robot.close()
