"""What clients send, strictly read: openpi's messages, arrays of the size that came, and forms of observations."""

import numpy as np
import pytest

from config import VIEWS
from support.inference import protocol
from support.inference.observation_keys import Reader, find_keys

msgpack = pytest.importorskip("msgpack", reason="msgpack is not installed: pip install -r requirements-robot.txt")
pytest.importorskip("websockets", reason="websockets is not installed: pip install -r requirements-robot.txt")
from serving_client import pack, packb, pictures   # noqa: E402
from serving_server import NUMPYS, fitted   # noqa: E402

# What openpi's client sends for {"observation/state": np.arange(2), "observation/image": a picture of 1 x 2, "prompt":
# "go", "n": np.float32(0.5)}, and its server for {"actions": zeros (1, 2), "server_timing": {"infer_ms": 1.5}}.
ASKED = (b"\x84\xb1observation/state\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x10" + bytes(8) + b"\x01" + bytes(7) +
         b"\xc4\x05dtype\xa3<i8\xc4\x05shape\x91\x02\xb1observation/image\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4"
         b"\x06\x07\x07\x07\x07\x07\x07\xc4\x05dtype\xa3|u1\xc4\x05shape\x93\x01\x02\x03\xa6prompt\xa2go\xa1n\x83\xc4\r"
         b"__npgeneric__\xc3\xc4\x04data\xcb?\xe0\x00\x00\x00\x00\x00\x00\xc4\x05dtype\xa3<f4")
ANSWERED = (b"\x82\xa7actions\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x08" + bytes(8) + b"\xc4\x05dtype\xa3<f4\xc4"
            b"\x05shape\x92\x01\x02\xadserver_timing\x81\xa8infer_ms\xcb?\xf8\x00\x00\x00\x00\x00\x00")


def chw(picture):
    return picture.transpose(2, 0, 1)


def test_the_recorded_bytes_of_openpis_messages_are_read_and_written():
    found = protocol.read(ASKED)
    assert found["prompt"] == "go" and found["n"] == 0.5 and found["observation/state"].tolist() == [0, 1]
    assert found["observation/image"].shape == (1, 2, 3) and (found["observation/image"] == 7).all()
    assert protocol.write({"actions": np.zeros((1, 2), np.float32), "server_timing": {"infer_ms": 1.5}}) == ANSWERED


@pytest.mark.parametrize("found, words", [
    ({b"data": b"12345678"}, "x has shape .* bytes of data"), ({b"shape": [2**62, 2**62]}, "x has shape"),
    ({b"shape": [-1]}, "x has shape"), ({b"shape": [True]}, "x has shape"), ({b"shape": [1] * 9}, "x has shape"),
    ({b"dtype": "|O"}, "x is an array of dtype"), ({b"dtype": "<c8"}, "dtype"), ({b"dtype": "|V4"}, "dtype"),
    ({b"dtype": "f4,f4"}, "dtype"), ({b"dtype": b"<f4"}, "x is no array"), ({b"extra": 1}, "x is no array"),
    ({b"data": "text"}, "x is no array"), ("text", "the message is text"), (b"\xc1", "cannot be read"),
    (packb([1]), "holds a list"), (packb(np.zeros(1)), "holds a ndarray"), (packb({"x": {3: 1}}), "cannot be read"),
    (packb({"x": [[]] * 300}), "more than 256 maps"), (packb({"x": list(range(2000))}), "cannot be read"),
    (packb({"x": msgpack.ExtType(5, b"a")}), "x is a ExtType"), (packb({"x": msgpack.Timestamp(1)}), "Timestamp"),
    (b"\x91" * 5000, "cannot be read"), (b"\xdd\xff\xff\xff\xff", "cannot be read"), (b"", "cannot be read"),
    (packb({"x": {b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"}}), "x has the key b'__npg"),
    (packb({"x": NUMPYS | {b"kind": b"O"}}), "x is no array"), (packb({"x": NUMPYS | {b"nd": 1}}), "x is no array"),
    (packb({"x": NUMPYS | {b"type": [["a", "<f4"]]}}), "x is no array"),
    (packb({"x": NUMPYS | {b"shape": [9]}}), "x has shape"),
    (packb({"x": NUMPYS | {b"type": "|O"}}), "dtype"), (packb({"x": {b"nd": False, b"type": "<f8"}}), "x is no array"),
    (packb({"x": {b"nd": False, b"type": "<f8", b"data": b"1234"}}), "x has shape")], ids=range(32))
def test_the_reader_takes_real_numbers_of_the_size_that_came_and_nothing_else(found, words):
    message = packb({"x": pack(np.zeros(4, np.float32)) | found}) if isinstance(found, dict) else found
    with pytest.raises(ValueError, match=words):
        protocol.read(message)


def test_a_keys_file_describes_another_client(make, tmp_path):
    """Layout, floats, parts of a state in order, an instruction under another name, a camera that is not looked at."""
    file, top = tmp_path / "k.json", pictures(1)[0]
    file.write_text('{"cameras": {"head": "eye/top"}, "state": [["q", [2, 4], [0, 1]], "g"], "prompt": "task", '
                    '"layout": "CHW", "dtype": "float"}')
    given = {"eye": {"top": chw(top / 255), "side": top}, "q": np.arange(5.0), "g": np.array([9]), "task": "go"}
    reader = Reader(fitted(make(), 4, 4, VIEWS[:1]).stats, find_keys(str(file)))
    assert np.array_equal(reader.pictures(given)["head"], top) and reader.state(given).tolist() == [2, 3, 0, 9]
    half = reader.pictures({"eye": {"top": chw(top / 255).astype(np.float16)}})["head"]   # the nearest level
    assert reader.prompt(given) == "go" and np.array_equal(half, top)
    with pytest.raises(ValueError, match="eye/top is uint8"):
        reader.pictures({"eye": {"top": chw(top)}})
    with pytest.raises(ValueError, match="^q has 3 numbers, --keys takes .*2, 4.* of it: correct"):   # not cut silently
        reader.state(given | {"q": np.arange(3.0), "g": np.arange(2)})
    for text, words in (('{"cameras": {"nose": "a"}}', "cameras is .*expected {slot: entry} of head"),
                        ('{"cameras": {"head": "a"}, "name": "x"}', "name is 'x', expected only cameras"),
                        ('{"cameras": {"head": "a"}, "state": [["q", [2]]]}', "state is .*expected a list of entries"),
                        ('{"cameras": {"head": "a", "left_wrist": "a"}}', "cameras is .*each of another entry"),
                        ('{"cameras": {"head": "a"}, "layout": "WHC"}', "layout is 'WHC', expected HWC or CHW")):
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            find_keys(str(file))
    lonely = Reader(fitted(make(), 14, 14).stats, find_keys("aloha"), mask_missing=True)
    assert list(lonely.pictures({"images": {"cam_high": chw(top)}})) == ["head"]   # as ALOHA's simulator sends it
