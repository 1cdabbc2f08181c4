"""A server in a thread, and what it serves, for the tests of serving."""

import asyncio
import contextlib
import socket
import threading
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest

from config import VIEWS, to_dict
from serving_client import begin, packb
from support import checkpoint
from support.inference import server

FLAGS = {"host": "127.0.0.1", "port": 0, "api_key": None, "no_auth": False, "keys": None, "mask_missing": False,
         "history": "present", "max_sessions": 8, "batch_sessions": 1, "idle_timeout": 60.0, "task": None,
         "weights": None, "fps": None, "protocol": "openpi", "execute_steps": None, "gripper_threshold": 0.5}
NUMPYS = {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [2], b"data": bytes(8)}   # as msgpack-numpy writes (2,)


def fitted(policy, d_q, d_a, views=VIEWS):
    """The policy of a robot with so many dimensions and these cameras."""
    policy.stats = replace(policy.stats, state_mean=(0.1,) * d_q, state_std=(0.5,) * d_q, action_mean=(0.2,) * d_a,
                           action_std=(2.0,) * d_a, relative=(False,) * d_a,
                           inputs=tuple(f"{view} = a" for view in views))
    return policy


@pytest.fixture
def served():
    """(policy, **flags) -> port of a server in a thread, which ends with the test."""
    running = []

    def start(policy, **flags):
        args = SimpleNamespace(**FLAGS | flags)
        server.check(args)
        made, loop = server.Server(policy, args), asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_until_complete, args=(made.run(),))
        thread.start()
        running.append((loop, made, thread))
        start.server, port = made, args.listener.getsockname()[1]
        while True:   # it listens a moment later
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return port
            time.sleep(0.01)
    yield start
    for loop, made, thread in running:
        loop.call_soon_threadsafe(made.note, 0)
        thread.join(20)
        assert not thread.is_alive()
        loop.close()
        made.args.listener.close()


def plans(policy, shown, d_q, past=None):
    """The chunk of a policy in this process, of pictures in the order of VIEWS and a state of ones."""
    seen = {view: [was, now] for view, was, now in zip(VIEWS, past or shown, shown)}
    return policy.plan([seen], np.ones((1, d_q), np.float32), ["go"])[0][0]


def turns(asked, most=1):
    """What a server sends [(session, observation or message)] that wait at a time, with --batch_sessions `most`."""
    waiting = [server.Request(session, of if isinstance(of, bytes) else packb(of), 0.0, {}) for session, of in asked]
    here = SimpleNamespace(waiting=waiting, policy=asked[0][0].policy, args=SimpleNamespace(batch_sessions=most))
    return [server.Server.turn(here, request) for request in waiting[:]]


@pytest.fixture
def run(tmp_path, make):
    """A checkpoint of the smallest network."""
    policy = make(chunk=8, engine="plain")
    state = {"step": 1, "config": to_dict(policy.config), "statistics": asdict(policy.stats), "versions": {},
             "log_length": 0}
    return checkpoint.save(tmp_path / "run", 1, policy.model.state_dict(), {}, state)


@pytest.fixture
def process(tmp_path, run):
    """(*flags) -> (process of infer.py --serve, its port). It ends with the test, and has shown no traceback."""
    begun = []

    def start(*flags):
        errors = open(tmp_path / f"errors{len(begun)}", "w+")
        made, port = begin(run, errors, *flags)
        begun.append((made, errors))
        return made, port
    yield start
    for made, errors in begun:
        made.kill()
        made.wait()
        errors.seek(0)
        assert "Traceback" not in errors.read()
