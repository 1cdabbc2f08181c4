"""Frame t is the picture of row t, or it is refused in one line: films, time stamps, columns and pictures of strangers.

Pictures carry their own number (test_lerobot.py), so that a neighbour cannot pass for the right one.
"""

import json
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed: pip install -r requirements-robot.txt")

import av
from test_lerobot import (BEFORE_30, FPS, HEAD, LENGTHS, LENGTHS_30, coded, decoded, edit_info, numbers_of, pa, parquet,
                          png, pq, video, write_dataset, write_table, write_v30)

import data
from support.data import inspection
from support.data import parquet as parquet_module
from support.data.__main__ import main
from support.data.lerobot import LeRobotSource
from support.data.places import places
from support.data.video import stamps

LATE = {"use_editlist": "0"}   # B-frames then shift the first picture to 2/30 s, as many muxers write it
PIECES = {"movflags": "frag_keyframe+empty_moov"} | LATE


def film(path, numbers, shown=None, codec="libx264", rate=FPS, b_frames=0, gop=12, container=None, streams=1, **options):
    """Pictures of these numbers, the i-th shown at shown[i] / rate."""
    with av.open(str(path), "w", options=container or {}) as out:
        tracks = [out.add_stream(codec, rate=rate, options=options) for _ in range(streams)]
        for track in tracks:
            track.width, track.height, track.pix_fmt, track.gop_size = 64, 64, "yuv420p", gop
            track.codec_context.max_b_frames = b_frames
        for i, number in enumerate(numbers):
            for track in tracks:
                frame = av.VideoFrame.from_ndarray(coded(number, False), format="rgb24")
                frame.pts = shown[i] if shown is not None else i
                out.mux(track.encode(frame))
        for track in tracks:
            out.mux(track.encode())


def read(source, e):
    """The numbers of the head's pictures of an episode, drawn in an order of no help. ValueError as the reader's."""
    n = source.lengths[e]
    order = np.random.default_rng(0).permutation(n).tolist()
    found = dict(zip(order, (decoded(source.frame("head", e, t))[0] for t in order)))
    assert [decoded(picture)[0] for picture in source.frames("head", e, range(n))] == [found[t] for t in range(n)]
    return [found[t] for t in range(n)]


def gap(n):
    return [i + 5 * (i > 20) for i in range(n)]


X264, X265 = {"x264-params": "open-gop=1:bframes=3:scenecut=0:keyint=8:min-keyint=8"}, {
    "x265-params": "open-gop=1:bframes=3:keyint=8:min-keyint=8:log-level=0"}
ALL, LONGER = range(40), range(41)
COUNTED = {   # as many pictures as rows: whatever their times
    "starts late": dict(numbers=ALL, b_frames=2, container=LATE), "edit list": dict(numbers=ALL, b_frames=2),
    "cut by an edit list": dict(numbers=[50, 51, 52, *ALL], shown=range(-3, 40), b_frames=2),
    "starts late, in pieces": dict(numbers=ALL, shown=range(7, 47), container=PIECES),
    "starts before 0": dict(numbers=ALL, shown=range(-3, 37), container=LATE),
    "29.97": dict(numbers=ALL, rate=Fraction(30000, 1001)), "tagged 25": dict(numbers=ALL, rate=25),
    "tagged 60": dict(numbers=ALL, rate=60), "a gap in time": dict(numbers=ALL, shown=gap(40), b_frames=2),
    "open GOP": dict(numbers=ALL, b_frames=3, gop=8, **X264),
    "open GOP, HEVC": dict(numbers=ALL, codec="libx265", b_frames=3, gop=8, **X265),
    "AV1": dict(numbers=ALL, codec="libsvtav1", gop=2), "29.97 in ticks of 1/600": dict(
        numbers=ALL, rate=Fraction(30000, 1001), b_frames=2, container={"video_track_timescale": "600"})}
TIMED = {   # more pictures: the times agree
    "one longer": dict(numbers=LONGER), "twice the rate": dict(numbers=[i // 2 for i in range(80)], rate=60, b_frames=2)}
UNDECIDED = {
    "one shorter": (dict(numbers=range(39)), "has 39 pictures from 0.000 to 1.267 s for 40 rows"),
    "a picture lost": (dict(numbers=[*range(20), *range(21, 40)], shown=[*range(20), *range(21, 40)]), "39 pictures"),
    "late and longer": (dict(numbers=LONGER, b_frames=2, container=PIECES, shown=range(7, 48)), "has 41 pictures from 0.067"),
    "a gap and longer": (dict(numbers=LONGER, shown=gap(41)), "has 41 pictures from 0.000 to 1.500 s for 40 rows"),
    "two streams": (dict(numbers=ALL, streams=2), "2 streams of pictures"), "empty": (None, "cannot be decoded")}


@pytest.mark.parametrize("kind", COUNTED | TIMED)
def test_row_t_has_picture_t_whatever_the_film_says_of_time(tmp_path, kind):
    made = (COUNTED | TIMED)[kind]
    if made.get("codec", "libx264") not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {made['codec']}")
    root = write_dataset(tmp_path / "toy")
    film(video(root, 0), **made)
    source = LeRobotSource(root)
    assert read(source, 0) == list(ALL) and inspection.faults(source)[0] == []
    ticks, _ = stamps(video(root, 0), "film")
    with av.open(str(video(root, 0))) as container:   # the index says what reading through says
        assert ticks.tolist() == sorted(packet.pts for packet in container.demux(video=0)
                                          if packet.size and not packet.is_discard)


@pytest.mark.parametrize("kind", UNDECIDED)
def test_a_film_that_does_not_decide_is_refused_when_it_is_looked_at_and_when_it_is_read(tmp_path, kind):
    made, message = UNDECIDED[kind]
    root = write_dataset(tmp_path / "toy")
    film(video(root, 0), **made) if made else video(root, 0).write_bytes(b"")
    for t in (0, 20, 39):
        with pytest.raises(ValueError, match=f"episode 0.*episode_000000.mp4 .*{message}"):
            LeRobotSource(root).frame("head", 0, t)
    (line,) = inspection.faults(LeRobotSource(root))[0]
    assert message in line and "\n" not in line and read(LeRobotSource(root), 1) == list(range(LENGTHS[1]))


def at(root, *seconds):
    """Declare where the four episodes of v3.0 begin in their films, in frames."""
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    for row, second in zip(rows, seconds):
        row[f"videos/{HEAD}/from_timestamp"] = second / FPS
    pq.write_table(pa.Table.from_pylist(rows), path)
    return root


# Right: 0 and 12 in one film, 0 and 20 in the other, of 21 and of 27 pictures.
@pytest.mark.parametrize("begins", [(0, 12, 0, 20), (0, 13, 0, 19), (1, 12, 0, 21), (0, 0, 0, 0), (0, 12.6, 3, 23),
                                    (0, 6, 0, 10)])
def test_the_pictures_of_a_film_that_are_as_many_as_its_rows_are_counted_whatever_it_declares(tmp_path, begins):
    source = LeRobotSource(at(write_v30(tmp_path / "toy"), *begins))
    assert [read(source, e) for e in range(4)] == [list(range(a, a + n)) for a, n in zip(BEFORE_30, LENGTHS_30)]
    assert inspection.faults(source)[0] == []


@pytest.mark.parametrize("begins", [(0, 12, 7, 0), (0, 12, 8, 0)])
def test_another_order_in_the_film_is_as_it_is_declared(tmp_path, begins):
    source = LeRobotSource(at(write_v30(tmp_path / "toy"), *begins))
    assert read(source, 3) == list(range(7)) and read(source, 2) == list(range(7, 27))


@pytest.mark.parametrize("begins, wrong", [((0, 12, 0, 20), None), ((0, 12, 0, 21), None), ((0, 12, 1, 20), 2),
                                           ((0, 12, 0, 22), 3), ((0, 12, 0, 0), 2)])
def test_in_a_film_that_is_longer_two_episodes_share_no_picture(tmp_path, begins, wrong):
    root = at(write_v30(tmp_path / "toy"), *begins)
    film(root / f"videos/{HEAD}/chunk-000/file-001.mp4", range(28))
    source = LeRobotSource(root)
    if wrong is None:
        assert read(source, 2) == list(range(20)) and read(source, 3)[0] == begins[3]
        assert any("more pictures than rows" in line and "file-001.mp4" in line for line in inspection.inspect(source, [0]))
        return
    (line,) = inspection.faults(source)[0]   # the film is in doubt, all of it: one line, of the first that is
    assert f"episode {wrong}: '{HEAD}'" in line and "28 pictures from 0.000 to 0.900 s for 27 rows" in line
    for e in (2, 3):
        with pytest.raises(ValueError, match="28 pictures"):
            source.frame("head", e, 0)


def test_declared_times_are_taken_within_half_a_frame_and_in_even_steps():
    shown = np.arange(61) / 30
    assert places(shown, 30, np.array([0.4, 30.4]) / 30, np.array([30, 30])) == [(0, 1), (30, 1)]
    assert places(shown, 15, np.array([2 / 30]), np.array([29])) == [(2, 2)]
    assert places(shown, 30, np.array([np.nan, 1]), np.array([30, 31])) == [(0, 1), (30, 1)]
    for begins, lengths, firsts in (((0, 5, 0), (5, 40, 16), (0, 5, 45)),   # a merge starts again at 0
                                    ((50, 20, 0), (5, 46, 10), (0, 5, 51)),   # in no order of its own
                                    ((56, 0, 46), (5, 46, 10), (56, 0, 46)), ((56.8, 0, 46.4), (5, 46, 10), (56, 0, 46)),
                                    ((0, 5, 0, 10), (5, 20, 10, 26), (0, 5, 25, 35)),
                                    ((0, 5.4, 51.9), (5, 46, 10), (0, 5, 51))):
        found = places(shown, 30, np.array(begins) / 30, np.array(lengths))
        assert found == [(first, 1) for first in firsts], begins
    for fps, begin, n in ((30, np.nan, 40), (25, 0, 40), (29, 0, 40), (30, 2.1, 1), (60, 0, 40)):
        with pytest.raises(ValueError, match="61 pictures"):
            places(shown, fps, np.array([begin]), np.array([n]))


# ---- time stamps of rows ------------------------------------------------------------------------------------------

def stamped(root, times, dtype="float64"):
    """The toy dataset, whose rows have these time stamps: times(number of rows)."""
    features = json.loads((root / "meta/info.json").read_text())["features"]
    edit_info(root, features=features | {"timestamp": {"dtype": dtype, "shape": [1], "names": None}})
    for e, n in enumerate(LENGTHS):
        table = pq.read_table(parquet(root, e))
        pq.write_table(table.append_column("timestamp", pa.array(times(n))), parquet(root, e))
    return root


def wall(n):
    return 1.7e9 + np.arange(n) / FPS + np.random.default_rng(1).uniform(0, 0.002, n).cumsum()


@pytest.mark.parametrize("times", [lambda n: (np.arange(n) + 1) / FPS, wall, lambda n: np.arange(n) / 29.1])
def test_rows_whose_times_are_even_are_read_by_index_which_is_said_once(tmp_path, capsys, times):
    source = LeRobotSource(stamped(write_dataset(tmp_path / "toy"), times))
    assert [source.numbers(e)[0].tolist() for e in (1, 0)] == [numbers_of(e)[0].tolist() for e in (1, 0)]
    assert read(source, 0) == list(ALL)
    assert capsys.readouterr().out.count("rows are read by index") == 1


@pytest.mark.parametrize("times", [lambda n: wall(n) + (np.arange(n) > 9) / FPS, lambda n: wall(n).astype(np.float32),
                                   lambda n: np.arange(n) / 25, lambda n: [str(t) for t in range(n)]])
def test_rows_whose_times_are_not_even_are_read_by_index_on_demand_alone(tmp_path, capsys, times):
    root = stamped(write_dataset(tmp_path / "toy"), times)
    with pytest.raises(ValueError, match="'timestamp' is .*"):
        LeRobotSource(root).numbers(0)
    with pytest.raises(ValueError, match="repair this"):
        main(["--inspect", str(root)])
    main(["--inspect", str(root), "--timestamps", "index"])
    corpus = data.open_corpus(root, 3, timestamps="index")
    assert (corpus.sources[0].numbers(0)[0] == numbers_of(0)[0]).all() and len(corpus.windows[0]) == LENGTHS[0]
    capsys.readouterr()


# ---- columns ------------------------------------------------------------------------------------------------------

def column(change, type=None):
    values = numbers_of(0)[1].astype(float).tolist()
    return pa.array(change(values) or values, type)


@pytest.mark.parametrize("made, message", [
    (lambda: column(lambda v: v[3].append(v[4].pop())), "row 3 of row group 0 has a list of 3, others of 2"),
    (lambda: column(lambda v: v[:3] + [None, v[3] * 2] + v[5:]), "row 3 of row group 0 has a list of 0"),
    (lambda: column(lambda v: v[:3] + [None] + v[4:], pa.list_(pa.float64(), 2)), "row 3 of row group 0"),
    (lambda: column(lambda v: v[7].__setitem__(1, None)), "frame 7: 'action' is not finite in dimension 1"),
    (lambda: column(lambda v: v[7].__setitem__(0, 1e300)), "frame 7: 'action' is not finite in dimension 0"),
    (lambda: column(lambda v: [[2**30 + i, i] for i in range(len(v))], pa.list_(pa.int64())),
     "'action', dimension 0: it moves by 39 in all, of which float32 rounds away 3"),
    (lambda: column(lambda v: [[2**60 + i, i] for i in range(len(v))], pa.list_(pa.int64())), "float32 rounds away 39"),
    (lambda: column(lambda v: [[str(x) for x in row] for row in v]), "'action' is of type string"),
    (lambda: column(lambda v: [{"re": x, "im": y} for x, y in v]), "'action' is of type struct"),
    (lambda: column(lambda v: [[]] * len(v), pa.list_(pa.float32())), "has 0 values in a row"),
    (lambda: column(lambda v: [None] * len(v)), "'action' is of type null")])
def test_a_column_that_is_no_table_of_real_numbers_is_named(tmp_path, made, message):
    root = write_dataset(tmp_path / "toy")
    table = pq.read_table(parquet(root, 0)).drop_columns("action")
    pq.write_table(table.append_column("action", made()), parquet(root, 0))
    with pytest.raises(ValueError, match=f"^dataset .*, episode 0.*{message}"):
        LeRobotSource(root).numbers(0)
    assert LeRobotSource(root).numbers(1)[1].shape == (23, 2)


def test_large_numbers_that_move_far_and_small_ones_that_hardly_do_are_read(tmp_path):
    """Of an idle joint a simulator writes noise that float32 does not hold: it moves nothing."""
    root = write_dataset(tmp_path / "toy")
    table = pq.read_table(parquet(root, 0)).drop_columns("action")
    values = [[1e9 + 1e6 * i, 1.57 + 1e-9 * i] for i in range(LENGTHS[0])]
    pq.write_table(table.append_column("action", pa.array(values)), parquet(root, 0))
    assert (LeRobotSource(root).numbers(0)[1] == np.float32(values)).all()


def test_a_data_file_that_has_a_column_twice_is_named_with_it(tmp_path):
    root = write_dataset(tmp_path / "toy")
    table = pq.read_table(parquet(root, 0))
    pq.write_table(table.append_column("action", table["action"]), parquet(root, 0))
    with pytest.raises(ValueError, match="^dataset .*, episode 0: .*episode_000000.parquet has 2 columns 'action'; "):
        LeRobotSource(root).numbers(0)


def test_a_column_that_unpacks_to_gigabytes_is_refused_by_the_header(tmp_path, monkeypatch):
    """200,000,000 zeros are 606 bytes of parquet."""
    monkeypatch.setattr(parquet_module, "MOST", 10 ** 5)
    root = write_dataset(tmp_path / "toy")
    table = pq.read_table(parquet(root, 0)).drop_columns("action")
    zeros = pa.ListArray.from_arrays(pa.array([0] + [10 ** 6] * 40, pa.int32()), pa.array(np.zeros(10 ** 6, np.float32)))
    pq.write_table(table.append_column("action", zeros), parquet(root, 0))
    with pytest.raises(ValueError, match="episode 0: .*episode_000000.parquet has 1,000,039 values in a column"):
        LeRobotSource(root).numbers(0)


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
IMAGES = [f"images/{n:02d}.png" for n in range(21)]
STORED = {"bytes": lambda: pa.array([png(coded(n, False)) for n in range(21)]),
          "paths": lambda: pa.array(IMAGES), "paths of the recorder": lambda: pa.array(["/data/x/" + p for p in IMAGES]),
          "no bytes": lambda: pa.array([{"bytes": None, "path": "/recorder/" + p} for p in IMAGES], STRUCT),
          "outside": lambda: pa.array(["../" + p for p in IMAGES]), "passwords": lambda: pa.array(["/etc/passwd"] * 21),
          "nothing": lambda: pa.array([None] * 21, STRUCT), "gone": lambda: pa.array(["images/other.png"] * 21)}
REFUSED = {"outside": "not a path inside", "passwords": "not a path inside", "nothing": "neither a picture's bytes",
           "gone": "images/other.png is missing"}


@pytest.mark.parametrize("kind", STORED)
def test_pictures_in_parquet_are_bytes_or_paths_inside_the_dataset(tmp_path, kind):
    root = write_v30(tmp_path / "toy", kind="image")
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(HEAD), HEAD, STORED[kind]()), path)
    for folder in (root / "images", tmp_path / "images"):
        folder.mkdir()
        for n in range(21):
            (folder / f"{n:02d}.png").write_bytes(png(coded(n, False)))
    source = LeRobotSource(root)
    if kind in REFUSED:
        with pytest.raises(ValueError, match=f"episode 1, frame 4, '{HEAD}'.*{REFUSED[kind]}"):
            source.frame("head", 1, 4)
    else:
        assert read(source, 0) + read(source, 1) == list(range(21))


def test_git_lfs_pointers_are_said_to_be_that_once(tmp_path):
    root = write_dataset(tmp_path / "toy")
    write_table(parquet(root, 1), *numbers_of(1))
    for path in [parquet(root, 0), *root.glob("videos/*/*/*.mp4")]:
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n")
    with pytest.raises(ValueError, match=r"episode_000000.parquet is a Git LFS pointer.* git lfs pull .*\(and 4 more"):
        LeRobotSource(root)
    (line,) = inspection.faults(LeRobotSource(root, check_files=False))[0]
    assert "git lfs pull" in line
    with pytest.raises(ValueError, match="mp4 is a Git LFS pointer"):
        LeRobotSource(root, check_files=False).frame("head", 0, 0)


@pytest.mark.parametrize("change", [{"data_path": "../victim{episode_index}"}, {"video_path": "../victim{episode_index}"},
                                    {"data_path": "/etc/{episode_index}"}, {"data_path": "data/../../victim{episode_index}"},
                                    "../victim", "/srv/victim"])
def test_a_cache_of_a_strangers_dataset_is_written_into_its_own_folder_alone(tmp_path, change):
    """A name in meta/info.json leads out of the dataset, and so out of OUT: the file beside it is somebody's."""
    root, out, mine = write_dataset(tmp_path / "stranger/toy"), tmp_path / "mine/out", tmp_path / "mine/victim0"
    mine.parent.mkdir()
    mine.write_text("precious")
    parquet(root, 0).rename(root.parent / "victim0")
    if isinstance(change, str):   # a camera's name is a folder of the cache
        features = json.loads((root / "meta/info.json").read_text())["features"]
        change = {"features": {change if key == HEAD else key: value for key, value in features.items()}}
    edit_info(root, **change)
    with pytest.raises(ValueError, match="info.json"):
        main(["--cache", str(root), str(out), "--config", "conveyor", "--loaders", "1"])
    assert mine.read_text() == "precious" and [*mine.parent.iterdir()] == [mine]
