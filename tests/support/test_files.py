"""What strangers send: bounds before allocation, one line each, and paths that stay in their folder."""

import struct
import zipfile

import numpy as np
import pytest

from support.files import inside, lfs_pointer, numbers, read_json, read_jsonl, read_npy, read_npz


def header(text):
    text += " " * ((-len(text) - 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def refused(read, *given):
    with pytest.raises(ValueError) as found:
        read(*given)
    line = str(found.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("content", [
    b"", b"PK\x03\x04", header("{'descr':'<f4',"), header("{'descr':'<f4','fortran_order':False,'shape':(-1,)}"),
    header("{'descr':'<f4','fortran_order':False,'shape':(10**12,)}"), header("[" * 5000),
    header("{'descr':'<f4','fortran_order':False,'shape':(1000000000000,)}"),
    header("{'descr':'|O','fortran_order':False,'shape':(1,)}") + b"0" * 9])
def test_an_npy_header_is_believed_only_as_far_as_the_file_goes(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    assert "x.npy cannot be read" in refused(read_npy, tmp_path / "x.npy")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("state.npy", content)
    assert "x.npz cannot be read" in refused(read_npz, tmp_path / "x.npz")


def test_a_good_array_is_read_as_it_was_written(tmp_path):
    x = np.arange(12, dtype=">f8").reshape(3, 4).T
    np.save(tmp_path / "x.npy", x)
    np.savez_compressed(tmp_path / "x.npz", x=x, text=np.array(["a", "b"]))
    assert (read_npy(tmp_path / "x.npy", mmap=True) == x).all() and (read_npz(tmp_path / "x.npz")["x"] == x).all()


@pytest.mark.parametrize("values, says", [
    ([["a"]], "real numbers"), (np.ones((2, 2)) * 1j, "complex"), ([[1, 2], [3]], "equal length"),
    ([[1.0, 2], [3, 1e300]], "row 1: 1e+300 is not finite"), ([[10**400]], "real numbers"), ([[None]], "real numbers"),
    (np.zeros((3, 0)), "shape (3, 0)"), ([1.0, 2], "expected 2 axes"), ([[np.nan]], "row 0: nan")])
def test_numbers_are_real_rectangular_and_finite_as_float32(values, says):
    line = refused(numbers, values, "d/episode.npz: action", 2)
    assert line.startswith("d/episode.npz: action") and says in line


def test_json_may_nest_err_or_begin_with_a_mark_and_is_one_line(tmp_path):
    path = tmp_path / "info.json"
    for content in (b"[" * 100_000, b"{", b"\xff\xfe", b"[1]", b"9" * 5000, b""):
        path.write_bytes(content)
        assert str(path) in refused(read_json, path)
    path.write_bytes(b"\xef\xbb\xbf{\"fps\": 30}")
    assert read_json(path) == {"fps": 30}


def test_a_name_that_stands_twice_in_one_file_is_refused_as_nobody_knows_which_one_is_meant(tmp_path):
    path = tmp_path / "arm.json"
    path.write_text('{"x": {"head": 1, "left_wrist": 2, "head": 1}, "y": {"head": 1}}')
    assert "arm.json is no JSON (an object has two keys 'head', keep one)" in refused(read_json, path)
    path.with_suffix(".jsonl").write_text('{"a": 1}\n{"b": 1, "b": 2}\n')
    assert "arm.jsonl, line 2 is no JSON (an object has two keys 'b'" in refused(read_jsonl, path.with_suffix(".jsonl"))
    np.save(tmp_path / "x.npy", np.zeros(1))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for name in ("state.npy", "state"):
            archive.write(tmp_path / "x.npy", name)
    assert "x.npz cannot be read (two of its arrays have one name)" in refused(read_npz, tmp_path / "x.npz")


def test_a_git_lfs_pointer_is_named_with_the_command_that_fetches_it(tmp_path):
    (tmp_path / "x.npy").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert lfs_pointer(tmp_path / "x.npy") and "git lfs pull" in refused(read_npy, tmp_path / "x.npy")


@pytest.mark.parametrize("named", ["../x", "a/../../x", "/etc/passwd", "..\\x", "a\0b", "", "/"])
def test_a_path_that_leads_outside_its_folder_is_refused(tmp_path, named):
    assert "not a path inside" in refused(inside, tmp_path, named, "meta/info.json")


def test_an_absolute_path_of_the_recorder_is_found_by_its_last_parts(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/0.png").touch()
    assert inside(tmp_path, "/home/rec/set/images/0.png", "row 0") == tmp_path / "images/0.png"
    assert inside(tmp_path, "data/x.parquet", "info.json") == tmp_path / "data/x.parquet"
