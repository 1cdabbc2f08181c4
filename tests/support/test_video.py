"""support/data/video.py: whatever is asked for, in whatever order, is the picture that plain decoding gives at that place.

Frames carry their own index (test_lerobot.py), so that a neighbour cannot pass for the right one.
"""

import multiprocessing
import os
import random
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed: pip install -r requirements-robot.txt")

import av
from test_lerobot import coded, decoded, write_video

from support.data import video
from support.data.video import read_frames

FPS, N = 30, 64
KINDS = [("libx264", 2, 0), ("libx264", 30, 0), ("libx264", 30, 2), ("libsvtav1", 2, 0), ("libsvtav1", 30, 0),
         ("mpeg4", 12, 2)]


def read(path, frames):
    shown = video.stamps(path, "film")[0]
    return read_frames(path, shown[frames].tolist(), lambda i: f"frame {frames[i]}")


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join(map(str, kind)))
def film(request, tmp_path_factory):
    """(path of a video of 64 frames, the frames as plain decoding from the first to the last gives them)."""
    codec, gop, b_frames = request.param
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    path = tmp_path_factory.mktemp("film") / f"{codec}.mp4"
    write_video(path, N, False, codec, gop, b_frames)
    with av.open(str(path)) as container:
        return path, [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_any_frames_in_any_order_equal_plain_decoding_bit_for_bit(film):
    path, plain = film
    assert [decoded(picture)[0] for picture in plain] == list(range(N))
    rng = random.Random(0)
    wanted = [rng.choices(range(N), k=rng.choice((1, 2, 3, 9))) for _ in range(60)]   # with repeats
    wanted += [[n] for n in rng.sample(range(N), N)] + [list(range(N)), list(range(N))[::-1]]
    for frames in wanted:
        for n, picture in zip(frames, read(path, frames), strict=True):
            assert (picture == plain[n]).all(), f"frame {n} of {frames}"


def test_nothing_is_decoded_that_no_wanted_frame_needs(film, monkeypatch):
    """Three times of a window, 15 apart: at GOP 2 one or two packets each, at GOP 30 none behind the last."""
    path, fed = film[0], []
    original = video._Video._decode
    monkeypatch.setattr(video._Video, "_decode", lambda self, packet, *rest: fed.extend(
        [round(packet.pts * self.tick * FPS)] if packet else []) or original(self, packet, *rest))
    read(path, [33, 48, 18])
    with av.open(str(path)) as container:
        keys = [round(p.pts * p.time_base * FPS) for p in container.demux(video=0) if p.pts is not None and p.is_keyframe]
    first = {n: max(key for key in keys if key <= n) for n in (18, 33, 48)}
    assert min(fed) >= first[18] - 2 and len(fed) == len(set(fed))                 # no packet twice
    assert len(fed) <= sum(n - key + 4 for n, key in first.items())                # B-frames come some packets late
    if len(keys) > N // 3:
        assert sorted(fed) == [18, 32, 33, 48]


def test_at_most_32_files_stay_open(tmp_path):
    for i in range(40):
        write_video(tmp_path / f"{i}.mp4", 3, False, "mpeg4", 2, 0)
    for i in [*range(40), *range(40)]:
        assert decoded(read(tmp_path / f"{i}.mp4", [2])[0])[0] == 2
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
             if os.path.exists(f"/proc/self/fd/{fd}")]
    assert len([link for link in links if link.startswith(str(tmp_path))]) == 32


def test_a_damaged_file_is_named_and_is_opened_anew_when_it_has_been_replaced(tmp_path):
    path = tmp_path / "film.mp4"
    write_video(path, 30, False, "mpeg4", 2, 0)
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match="^film: .*film.mp4 cannot be decoded .*; download it again$"):
        read(path, [20])
    Path(path).write_bytes(whole)
    assert decoded(read(path, [20])[0])[0] == 20


@pytest.mark.parametrize("degrees, turns", [(180, 2), (90, 1), (-90, 3)])
def test_a_film_that_says_how_it_is_to_be_shown_is_turned(tmp_path, degrees, turns):
    """As a picture's EXIF orientation is obeyed. The track's matrix says it, in fixed point of 16 bits."""
    path, other = tmp_path / "film.mp4", tmp_path / "turned.mp4"
    write_video(path, 8, False, "mpeg4", 2, 0)
    upright, stored = read(path, [5])[0], bytearray(path.read_bytes())
    at = stored.index(b"tkhd") + 44   # version 0
    cos, sin = {180: (-1, 0), 90: (0, -1), -90: (0, 1)}[degrees]
    stored[at:at + 36] = struct.pack(">9i", cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    other.write_bytes(stored)
    with av.open(str(other)) as container:
        assert next(container.decode(video=0)).rotation % 360 == degrees % 360
    assert (read(other, [5])[0] == np.rot90(upright, turns)).all()
    with pytest.raises(ValueError, match="turned by 45 degrees"):
        video.upright(upright, 45)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("across, down", [(1, 0), (0, 1), (1, 1)])
def test_a_film_that_says_that_it_is_mirrored_is_mirrored(tmp_path, degrees, across, down):
    with av.open(str(tmp_path / "film.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv444p"
        stream.set_display_rotation(degrees, hflip=bool(across), vflip=bool(down))
        stored = np.zeros((32, 64, 3), np.uint8)
        stored[:8, :16], stored[:8, 48:, 0], stored[24:, :16, 1] = 255, 255, 255
        out.mux([*stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")), *stream.encode()])
    right = np.rot90(stored, degrees // 90)[::-1 if down else 1, ::-1 if across else 1]
    assert np.abs(read(tmp_path / "film.mp4", [0])[0].astype(int) - right).mean() < 3


@pytest.mark.parametrize("kind, gop, b_frames", [("avi", 250, 2), ("avi", 12, 0), ("flv", 12, 2), ("h264", 12, 0)])
def test_a_film_in_which_pictures_cannot_be_found_by_time_is_refused_with_what_to_do(tmp_path, kind, gop, b_frames):
    """FFmpeg gives the pictures of an AVI with B-frames stamps in the order of decoding, and seeks in none of these."""
    write_video(tmp_path / f"film.{kind}", 30, False, "libx264", gop, b_frames)
    (tmp_path / f"film.{kind}").rename(tmp_path / "film.mp4")   # as a dataset calls it
    with pytest.raises(ValueError, match=f"^film: .*film.mp4 is of the kind {kind}, .* ffmpeg -i OLD NEW.mp4  does$"):
        video.stamps(tmp_path / "film.mp4", "film")


@pytest.mark.parametrize("from_picture", [0, 8])
def test_a_film_that_is_decoded_at_even_times_and_shown_at_uneven_ones_is_read_through(tmp_path, from_picture):
    uneven = np.arange(40) >= from_picture
    shown = np.arange(40) * 100 + 200 + uneven * np.random.default_rng(0).integers(-30, 31, 40)
    with av.open(str(tmp_path / "film.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=FPS)
        stream.width = stream.height = 64
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, 3000)
        stream.codec_context.time_base, packets = stream.time_base, []
        for t, pts in enumerate(shown.tolist()):
            frame = av.VideoFrame.from_ndarray(coded(t, False), format="rgb24")
            frame.pts, frame.time_base = pts, stream.time_base
            packets += stream.encode(frame)
        for n, packet in enumerate(packets + stream.encode()):
            packet.dts = 100 * n
            out.mux(packet)
    ticks, tick = video.stamps(tmp_path / "film.mp4", "film")
    assert np.allclose(np.diff(ticks) * tick * 3000, np.diff(shown))
    assert [decoded(picture)[0] for picture in read(tmp_path / "film.mp4", list(range(40)))] == list(range(40))


def test_reading_leaves_no_thread_behind_and_a_forked_process_can_close_what_it_inherits(film):
    """Threads do not survive a fork: closing a decoder or converter that counts on one would wait for ever."""
    path, _ = film
    before = len(os.listdir("/proc/self/task"))
    assert decoded(read(path, [40])[0])[0] == 40
    assert len(os.listdir("/proc/self/task")) == before
    worker = multiprocessing.get_context("fork").Process(target=_drop_and_read, args=(path,))
    worker.start()
    worker.join(30)
    hung = worker.is_alive()
    worker.kill()
    assert not hung and worker.exitcode == 0
    assert decoded(read(path, [41])[0])[0] == 41


def _drop_and_read(path):
    for key in list(video._OPEN.items):
        video._OPEN.drop(key)
    os._exit(0 if decoded(read(path, [12])[0])[0] == 12 else 1)
