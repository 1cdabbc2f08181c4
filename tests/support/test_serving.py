"""infer.py --serve: a chunk is the policy's own; what is wrong is one line; many clients, some of them hostile."""

import io
import socket
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

from config import VIEWS
from support.inference import protocol, server, sessions
from support.inference.observation_keys import Reader

pytest.importorskip("websockets", reason="websockets is not installed: pip install -r requirements-robot.txt")
from websockets.exceptions import ConnectionClosed, InvalidStatus   # noqa: E402
import serving_load   # noqa: E402
import serving_server   # noqa: E402
from serving_client import infer, pictures, raw, sent   # noqa: E402
from serving_server import fitted, plans, turns   # noqa: E402
from support.inference.client import Client   # noqa: E402

served, run = serving_server.served, serving_server.run


def chw(picture):
    return picture.transpose(2, 0, 1)


def health(port):
    return urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=60).read()


# ---- one session ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("form, d_q, d_a, views", [("aloha", 14, 14, VIEWS), ("libero", 8, 7, VIEWS[:2]),
                                                   ("droid", 8, 8, VIEWS[:2])])
def test_a_chunk_is_the_policys_to_the_last_bit_in_every_clients_form(make, served, form, d_q, d_a, views):
    """Metadata first; a session's noise is that of a policy of its own, whatever other sessions do."""
    port, own = served(fitted(make(chunk=8), d_q, d_a, views)), fitted(make(chunk=8), d_q, d_a, views)
    (wire, metadata), (other, _) = raw(port), raw(port)
    assert [metadata[key] for key in ("m", "chunk", "fps", "action_dim", "cameras")] == [15, 8, 30.0, d_a, list(views)]
    for seed in range(3):
        answer = infer(wire, sent(form, seed))
        infer(other, sent(form, 9))
        assert np.array_equal(answer["actions"], plans(own, pictures(len(views), seed), d_q))
        assert (answer["history"], answer["history_age"], answer["views"]) == ("present", 0, list(views))
        assert all(len(of) == 8 for of in answer.values() if isinstance(of, np.ndarray))
        assert type(answer["policy_timing"]["infer_ms"]) is float
        assert ("prev_total_ms" in answer["server_timing"]) == (seed > 0)
    wire.close()
    other.close()


def test_a_missing_camera_is_masked_if_the_server_may_and_the_start_says_what_that_is_worth(make, served, capfd):
    """The chunk is that of a policy which is given the head view alone."""
    policy, own = (fitted(make(chunk=8), 14, 14) for _ in range(2))
    wire, metadata = raw(served(policy, mask_missing=True))
    assert metadata["mask_missing"] and "only from data that lack it" in capfd.readouterr().out
    whole = sent("aloha", 1)
    answer = infer(wire, whole | {"images": {"cam_high": whole["images"]["cam_high"]}})
    assert answer["views"] == ["head"]
    assert np.array_equal(answer["actions"], plans(own, pictures(1, 1), 14))
    wire.close()


def test_a_client_of_twice_the_rate_gets_every_action_for_two_frames(make, served, capfd):
    """And is told, and tells, all else in its own frames; in seconds nothing changes."""
    wire, metadata = raw(served(make(chunk=16), fps=60.0, history="exact"))
    own, (was, now) = make(chunk=16), (pictures(seed=seed) for seed in range(2))
    assert [metadata[key] for key in ("m", "chunk", "fps", "history_tolerance")] == [30, 32, 60.0, 2]
    assert "chunks of 32 actions, 60 a second" in capfd.readouterr().out
    infer(wire, sent(seed=0, frame=0, plan=False))
    answer = infer(wire, sent(seed=1, frame=30))
    assert (answer["history"], answer["history_age"]) == ("exact", 30)
    assert np.array_equal(answer["actions"], np.repeat(plans(own, now, 6, past=was), 2, axis=0))
    answer = infer(wire, sent(seed=1, frame=31, past={"images": sent(seed=0)["images"]}))
    assert (answer["history"], answer["history_age"], answer["episode"]) == ("pair", 30, 1)
    assert infer(wire, sent(frame=31 + 34))["episode"] == 2   # a pause longer than the chunk
    wire.close()
    with pytest.raises(ValueError, match="--fps 45: the checkpoint has 30 frames a second"):
        served(make(chunk=16), fps=45.0)


@pytest.mark.parametrize("change, words", [
    ({"state": np.ones(5)}, "state has 5 numbers; robot 'arm' has 6"), ({"state": None}, "state is missing"),
    ({"state": np.full(6, np.nan)}, "state.* is not finite as float32: correct what is sent$"), ({"state": ["a"] * 6}, "state .*<U1"),
    ({"state": np.ones((1, 6))}, "state has shape"), ({"prompt": None}, "prompt is missing"),
    ({"prompt": "p\0u\0t\0"}, "^prompt holds NUL characters"),
    ({"prompt": "a" * 10_001}, "^prompt is text of 10,001 letters; expected"), ({"past_age": "x", "past": sent()}, "correct what is sent$"),
    ({"prompt": 3}, "prompt is a int"), ({"images": {}}, "no camera found under"), ({"plan": 1}, "plan is 1"),
    ({"images": {"head": pictures()[0]}}, r"camera left_wrist is missing \(images/left_wrist\).*--mask_missing"),
    ({"images": dict(zip((*VIEWS, "side"), pictures(4)))}, "images/side is of no known camera"),
    ({"images": dict(zip(VIEWS, map(chw, pictures())))}, r"images/head is uint8 \(3, 48, 48\); .*\(H, W, 3\)"),
    ({"images": dict(zip(VIEWS, [of / 100 for of in pictures()]))}, "images/head has values from 0 to 2.55"),
    ({"images": dict(zip(VIEWS, [of.astype(int) for of in pictures()]))}, "images/head is int64"),
    ({"images": dict(zip(VIEWS, [np.full((4, 4, 3), np.nan)] * 3))}, "images/head has values from nan"),
    ({"images": dict(zip(VIEWS, [b"png"] * 3))}, "images/head is a bytes"), ({"reset": "x"}, "reset is 'x'"),
    ({"frame": "a"}, "frame is 'a'"), ({"past": 3}, "past is a int"), ({"time": float("nan")}, "time is nan"),
    ({"past": {"images": {"head": pictures()[0]}}}, "past/images/left_wrist"), ({"frame": 1, "time": 1}, "both given"),
    ({"state": np.full(6, 3e38)}, "the plan is not finite")])
def test_a_bad_observation_is_one_line_that_names_the_key_and_the_session_lives_on(make, change, words):
    policy = fitted(make(chunk=8), 6, 6)
    session = sessions.Session(policy, Reader(policy.stats))
    bad = {key: of for key, of in (sent() | change).items() if of is not None}
    line, = turns([(session, bad)])
    with pytest.raises(ValueError, match=words):
        raise ValueError(line)
    assert isinstance(line, str) and len(line.splitlines()) == 1
    assert protocol.read(*turns([(session, sent())]))["actions"].shape == (8, 6)


@pytest.mark.parametrize("task", ["put it down", None])
def test_after_a_reset_without_an_instruction_the_servers_task_counts_and_never_the_last_one(make, task):
    policy = fitted(make(chunk=8), 6, 6)
    session = sessions.Session(policy, Reader(policy.stats), task=task)
    silent = {key: of for key, of in sent().items() if key != "prompt"}
    for asked in (sent(), silent):   # within an episode the last one counts
        assert "actions" in protocol.read(*turns([(session, asked)]))
    (answer,) = turns([(session, silent | {"reset": True})])
    if task is None:
        assert "prompt is missing" in answer
    else:
        assert "actions" in protocol.read(answer) and session.prompt == task


@pytest.mark.parametrize("change", [{}, {"reset": True}, {"frame": 200}])
def test_an_observation_whose_plan_is_not_finite_changes_nothing(make, change):
    """Neither noise, instruction, episode nor the pictures of before: the next answer is that of a session without it."""
    bad = {"frame": 16, "state": np.full(6, 3e38), "prompt": "another"} | change
    answers = []
    for between in ([], [bad]):
        policy = fitted(make(chunk=20), 6, 6)
        session = sessions.Session(policy, Reader(policy.stats), "exact")
        asked = [sent(frame=0), sent(frame=1, plan=False), *(sent() | of for of in between)]
        turns([(session, of) for of in asked])
        last = {key: of for key, of in sent(frame=16).items() if key != "prompt"}
        answers.append(protocol.read(*turns([(session, last)])))
    one, other = answers
    assert np.array_equal(one["actions"], other["actions"])
    assert [one[key] == other[key] for key in ("history", "history_age", "episode")] == [True] * 3 == [
        one["history"] == "exact", one["history_age"] == 15, one["episode"] == 1]


def test_foreseen_pictures_come_as_png_on_request_and_change_no_action(make):
    session = sessions.Session(fitted(make(chunk=8), 6, 6, VIEWS[:2]), Reader(fitted(make(), 6, 6, VIEWS[:2]).stats))
    own, shown = make(chunk=8), pictures(2)
    answer = protocol.read(*turns([(session, sent("views", z_hat=True))]))
    seen = {view: [of, of] for view, of in zip(VIEWS, shown)}
    actions, z_hat = fitted(own, 6, 6, VIEWS[:2]).plan([seen], np.ones((1, 6)), ["go"])
    assert np.array_equal(answer["actions"], actions[0]) and list(answer["z_hat"]) == list(VIEWS[:2])
    for file, of in zip(answer["z_hat"].values(), own.to_pictures(z_hat[0])):
        assert np.array_equal(Image.open(io.BytesIO(file)), of.permute(1, 2, 0))
    assert "z_hat" not in protocol.read(*turns([(session, sent())]))
    assert "z_hat is 1, expected true or false" in turns([(session, sent(z_hat=1))])[0]


# ---- one server, many clients -----------------------------------------------------------------------------------

def test_health_key_origin_and_the_number_of_sessions(make, served, tmp_path):
    (tmp_path / "key").write_text("secret\n")
    port = served(make(chunk=8), api_key=f"@{tmp_path / 'key'}", max_sessions=1)
    key = {"Authorization": "Api-Key secret"}
    for more in ({}, {"additional_headers": {"Authorization": "Api-Key secre"}},
                 {"additional_headers": key, "origin": "http://a.web.page"}):
        with pytest.raises(InvalidStatus, match="HTTP 40[13]"):
            raw(port, **more)
    wire, _ = raw(port, additional_headers=key)
    with pytest.raises(ConnectionClosed, match="1013 .* 1 sessions are open"):
        raw(port, additional_headers=key)
    wire.close()
    Client("127.0.0.1", port, api_key="secret").close()   # tries until the place is free
    assert health(port) == b"OK\n"


def test_who_is_silent_is_let_go_with_a_reason_and_a_message_has_a_size(make, served, monkeypatch):
    monkeypatch.setattr(server, "LARGEST", 1 << 16)
    port = served(make(chunk=8), idle_timeout=0.4)
    for message, words in ((bytes(1 << 17), "1009"), (b"", "1001 .*no observation for 0.4 s")):
        wire, _ = raw(port)
        wire.send(message)
        with pytest.raises(ConnectionClosed, match=words):
            for _ in range(2):
                wire.recv(10)


def test_pings_and_health_are_answered_during_a_long_chunk_and_a_deaf_client_is_cut(make, served, monkeypatch):
    port, begun, go_on = served(make(chunk=8)), threading.Event(), threading.Event()

    def answered(*_):
        begun.set()
        go_on.wait(20)
        yield bytes(1 << 26)   # more than the sockets hold
    monkeypatch.setattr(server, "answered", answered)
    monkeypatch.setattr(server, "SENDING", 0.3)
    wire, _ = raw(port)
    wire.send(b"x")
    assert begun.wait(60) and wire.ping().wait(60) and health(port) == b"OK\n"
    wire.recv_flow_control.acquire(timeout=60)   # from here on it reads nothing
    go_on.set()
    end = time.monotonic() + 60
    while served.server.sessions and time.monotonic() < end:
        time.sleep(0.05)
    assert not served.server.sessions


@pytest.mark.parametrize("argv, words", [
    ("--host 0.0.0.0", "lets other machines use the policy"), ("--keys nothing", "--keys nothing: give one of"),
    ("--host no.such.host --no_auth", "no.such.host"), ("--serve --closed-loop", "give one of"),
    ("--api_key @/nowhere", "/nowhere is missing"), ("--history sometimes", "invalid choice"),
    ("--api_key a --no_auth", "choose one"), ("--api_key schl\u00fcssel", "one word")])
def test_what_cannot_be_served_is_one_line_before_anything_is_loaded(refuses, argv, words):
    assert words in refuses("infer.py", "--serve", "--checkpoint", "nowhere", *argv.split())


@pytest.mark.parametrize("text", ["", " \n", "two words", "two\nlines", "be\all"])
def test_a_file_that_holds_no_key_is_refused_and_what_it_holds_is_not_printed(refuses, tmp_path, text):
    (tmp_path / "key").write_text(text)
    line = refuses("infer.py", "--serve", "--api_key", f"@{tmp_path / 'key'}")
    assert line == f"infer.py: --api_key @{tmp_path / 'key'}: a key is one word of ASCII letters, digits and signs\n"


def test_a_taken_port_and_a_missing_package_are_one_line(refuses, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "Address already in use; give" in refuses("infer.py", "--serve", "--port", taken.getsockname()[1])
    monkeypatch.setitem(sys.modules, "msgpack", None)
    assert "pip install -r requirements-robot.txt" in refuses("infer.py", "--serve")


# ---- hostile clients, and openpi's own --------------------------------------------------------------------------

@pytest.mark.long
def test_seven_sessions_see_nothing_of_a_hostile_client_nor_one_of_mutated_messages(run):
    """The short version of `python tests/serving_load.py`: errors, other chunks, tracebacks, and MiB."""
    found = serving_load.main(["--checkpoint", str(run), "--requests", "30", "--mutated", "900"])
    assert found.pop("grown") < 20 and not any(found.values()), found


@pytest.mark.long
def test_openpis_own_client_gets_50_chunks_and_its_broker_rows(make, served):
    reason = "openpi-client is not installed: pip install --no-deps openpi-client dm-tree wrapt attrs absl-py"
    theirs = pytest.importorskip("openpi_client.websocket_client_policy", reason=reason)
    broker = pytest.importorskip("openpi_client.action_chunk_broker", reason=reason)
    client = theirs.WebsocketClientPolicy("127.0.0.1", served(fitted(make(chunk=8), 14, 14)))
    own = fitted(make(chunk=8), 14, 14)
    assert client.get_server_metadata()["chunk"] == 8
    for seed in range(50):
        assert np.array_equal(client.infer(sent("aloha", seed))["actions"], plans(own, pictures(seed=seed), 14))
    rows = broker.ActionChunkBroker(client, 5)
    assert [rows.infer(sent("aloha"))["actions"].shape for _ in range(12)] == [(14,)] * 12
    with pytest.raises(RuntimeError, match="Error in inference server:\nstate is missing"):
        client.infer({key: of for key, of in sent("aloha").items() if key != "state"})
    assert client.infer(sent("aloha"))["actions"].shape == (8, 14)
