"""Pictures of every kind, plain folders and image folders as strangers send them: the right value, or one line."""

import io
import os
import shutil
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from support.data.folder import FolderSource
from support.data.letterbox import fit, letterbox
from support.data.picture import ASPECT, decode
from support.data.source import glance
from support.inference import image_folder

from test_files import header, refused

SCENE = np.zeros((24, 40, 3), np.uint8)
SCENE[:12], SCENE[12:], SCENE[:, :8] = (200, 40, 40), (40, 40, 200), (20, 220, 20)   # no turn leaves it as it is
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
# EXIF orientation -> how a picture lies that it makes upright
LYING = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_270}


def file_of(picture, kind="PNG", **more):
    held = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(held, kind, **more)
    return held.getvalue()


def promising(width, height):
    """A PNG with another size in its header."""
    raw = file_of(SCENE)
    head = raw[12:16] + struct.pack(">II", width, height) + raw[24:29]
    return raw[:12] + head + struct.pack(">I", zlib.crc32(head)) + raw[33:]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_a_picture_is_turned_as_its_exif_says(kind, orientation):
    """0 and 9 are no orientations: the picture is upright."""
    upright, exif = Image.fromarray(SCENE), Image.Exif()
    exif[0x0112] = orientation
    lying = upright.transpose(LYING[orientation]) if orientation in LYING else upright
    assert np.array_equal(decode(file_of(lying, kind, exif=exif)), SCENE)


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"\0", b"Exif\0\0MM\0*\0\0", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"MM\0*\0\0\0\x08\0\xff"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_whose_exif_cannot_be_read_is_upright(kind, exif):
    assert np.abs(decode(file_of(SCENE, kind, exif=exif)).astype(int) - decode(file_of(SCENE, kind))).max() == 0


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(kind):
    ramp = np.linspace(0, 65535, 2400).reshape(40, 60).astype(np.uint16)
    found = decode(file_of(ramp, kind))
    assert found.shape == (40, 60, 3) and abs(found.mean() - 127.5) < 0.1 and (found == 255).mean() < 0.005


def test_float_pictures_go_from_0_to_1():
    grey = np.linspace(0, 1, 2400, dtype=np.float32).reshape(40, 60)
    found = decode(file_of(grey, "TIFF"))
    assert found.max() == 255 and abs(found.mean() - 127.5) < 0.1
    for wrong in (grey * 255, grey - 0.1, grey * np.nan, (grey * 9).astype(np.int32)):
        assert "x cannot be read (grey of" in refused(decode, file_of(wrong, "TIFF"), "x")


@pytest.mark.parametrize("mode, kind", [("RGBA", "PNG"), ("RGBA", "TIFF"), ("RGB", "BMP"), ("RGB", "GIF"), ("P", "PNG"),
                                        ("CMYK", "TIFF"), ("RGB", "WEBP"), ("LA", "PNG"), ("L", "JPEG"), ("1", "PNG")])
def test_palettes_grey_alpha_and_cmyk_become_rgb(mode, kind):
    """Alpha is dropped, also where it hides everything; of grey all three channels are equal."""
    picture = Image.fromarray(SCENE).convert(mode)
    if "A" in mode:
        picture.putalpha(0)
    found = decode(file_of(picture, kind, **({"lossless": True} if kind == "WEBP" else {}))).astype(int)
    wanted = np.asarray(Image.fromarray(SCENE).convert(mode).convert("RGB"), int)
    assert found.shape == SCENE.shape and np.abs(found - wanted).max() <= (4 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_counts(kind):
    red, blue = (Image.new("RGB", (30, 20), colour) for colour in ("red", "blue"))
    assert np.abs(decode(file_of(red, kind, save_all=True, append_images=[blue])).astype(int) - [255, 0, 0]).max() < 3


@pytest.mark.parametrize("data, words", [
    (promising(30000, 30000), "x cannot be read"), (promising(9000, 9000), "it is 9000 x 9000"),
    (promising(1000, 1), "it is 1 x 1000"), (promising(1, 1000), "it is 1000 x 1"), (promising(0, 5), "no PNG"),
    (b"", "no PNG, JPEG"), (b"<svg/>", "no PNG, JPEG"), (b"%!PS-Adobe-3.0 EPSF-3.0\n", "no PNG, JPEG"),
    (POINTER, "Git LFS pointer"), (file_of(SCENE)[:70], "truncated"), (file_of(SCENE, "JPEG")[:-40], "runcated"),
    (file_of(SCENE, "WEBP")[:-5], "cannot be read"), (file_of(SCENE, "TIFF")[:99], "cannot be read")],
    ids=lambda given: given if isinstance(given, str) else "")
def test_what_is_no_picture_or_too_large_is_one_line(tmp_path, data, words):
    """Of bytes under the name that they are given, of a file under its own."""
    assert words in refused(decode, data, "x")
    (tmp_path / "x").write_bytes(data)
    line = refused(decode, tmp_path / "x")
    assert words.removeprefix("x ") in line and f"picture {tmp_path / 'x'}" in line


def test_letterbox_refuses_what_would_vanish_and_keeps_what_it_takes():
    assert letterbox(np.full((ASPECT, 1, 3), 9, np.uint8), 64).max() == 9
    assert "1000 x 1 (height, width)" in refused(letterbox, np.zeros((1000, 1, 3), np.uint8), 64)


# ---- plain folders ---------------------------------------------------------------------------------------------

def plain_folder(root, T=24, files=False, **arrays):
    """Two episodes; picture t is all t. arrays: in the place of good ones, None for none."""
    random = np.random.default_rng(0)
    good = {"state": random.normal(size=(T, 6)), "action": random.normal(size=(T, 6)), "task": np.array(["a", "b"]),
            "fps": 29.97, "ends": np.array([T // 2, T]), "robot": "arm"} | arrays
    root.mkdir()
    np.savez(root / "episode.npz", **{key: x for key, x in good.items() if x is not None})
    pictures = np.broadcast_to(np.arange(T, dtype=np.uint8)[:, None, None, None], (T, 8, 8, 3))
    if files:
        (root / "head").mkdir()
        for t, picture in enumerate(pictures):
            (root / f"head/{t}.png").write_bytes(file_of(np.ascontiguousarray(picture)))
    else:
        np.save(root / "head.npy", pictures)
    return root


def shown(root):
    source = FolderSource(root)
    return [int(source.frame("head", 0, t)[0, 0, 0]) for t in range(12)]


@pytest.mark.parametrize("key, value, words", [
    ("ends", np.array([12., 24.]), "'ends' is float64"), ("ends", np.array(["12", "24"]), "<U2"),
    ("ends", np.array(24), "of shape ()"), ("ends", np.array([20, 12]), "'ends', row 1 is 12"),
    ("ends", np.array([12, 1 << 60]), "'ends', row 1 is"), ("ends", np.array([12, 25]), "24 rows of 'state' for 25"),
    ("fps", np.array([30., 30.]), "one number"), ("fps", "30", "'fps' holds no rows"), ("fps", -1., "fps is -1"),
    ("state", np.full((24, 6), "x"), "'state' holds no rows"), ("state", np.ones((24, 6)) * 1j, "(complex128 of shape"),
    ("action", np.where(np.arange(144).reshape(24, 6) == 80, 1e300, .1), "episode 1, 'action', row 1: 1e+300"),
    ("action", np.full((24, 6), "x"), "'action' holds no rows"), ("action", np.zeros((24, 0)), "'action' has shape (24, 0)"),
    ("stored", np.arange(30), "'stored', row 24 is 24"), ("stored", np.arange(24.), "'stored' is float64"),
    ("stored", np.zeros(2, int), "not ascending"), ("stored", np.arange(24)[::-1], "'stored' is not ascending: sort it"),
    ("state", (1 << 30) + np.arange(144).reshape(24, 6), "'state', dimension 0: it moves by 138 in all, of which float32"),
    ("action", 1.6e9 + np.arange(144).reshape(24, 6) / 30, "'action', dimension 0: it moves by 2.2 in all"),
    ("action_names", np.array(["a"]), "'action_names' is <U1 of shape (1,)"),
    ("robot", np.array(["a", "b"]), "'robot' is"),
    ("robot", "ti\nny", "'robot' is 'ti\\nny', expected a name"), ("fps", 1e9, "fps is 1000000000.0"), ("task", np.array([b"\xfc", b"b"]), "'task' is |S1"),
    ("task", np.arange(2), "'task' is int64"), ("task", np.array(["\ud83d", "b"]), "UTF-8"),
    ("task", np.array(["a"] * 3), "expected 2 or 24"), ("suite", np.arange(2), "'suite' is int64"),
    ("target", np.zeros((3, 2)), "3 rows of 'target'"), ("actions", np.zeros(3), "'actions' is not read"),
    ("FPS", 30, "'FPS' is not read")])
def test_an_array_of_another_kind_or_length_is_named_with_its_key_and_row(tmp_path, key, value, words):
    line = refused(FolderSource, plain_folder(tmp_path / "d", **{key: value}))
    assert words in line and str(tmp_path / "d/episode.npz") in line


@pytest.mark.parametrize("key, name", [("action", "joint_action"), ("state", "observation.state"), ("state", "qpos"),
                                       ("action", "commands"), ("state", "proprio")])
def test_a_state_or_an_action_of_another_name_is_not_taken_for_none(tmp_path, key, name):
    line = refused(FolderSource, plain_folder(tmp_path / "d", **{key: None, name: np.zeros((24, 6)), "depth": np.zeros(3)}))
    others = ", ".join(sorted(["depth", name]))
    assert f"d/episode.npz has no array '{key}'; not read: {others}; call it '{key}', or leave them out" in line


def test_state_may_be_absent_and_the_task_bytes_or_one_a_frame(tmp_path):
    """Without a state the array has 0 columns; without actions too, `ends` counts the frames; fps stays as it is."""
    less = {"a": {"state": None}, "b": {"state": np.zeros((24, 0))}, "c": {"state": None, "action": None}}
    for name in less:
        root = plain_folder(tmp_path / name, task=np.array([f"task {t}" for t in range(24)]), **less[name])
        source = FolderSource(root)
        assert source.numbers(1)[0].shape == (12, 0) and source.task(1, 3) == "task 15" and source.fps == 29.97
        assert glance(root) == (name, "arm", 24, name != "c")
    assert FolderSource(plain_folder(tmp_path / "d", task=np.array([b"a", "\u00fc".encode()]))).task(1, 0) == "\u00fc"


def test_velocities_are_known_by_their_names(tmp_path):
    names = np.array([f"joint_{d}.vel" for d in range(6)])
    assert FolderSource(plain_folder(tmp_path / "d", action_names=names)).kinds == ("velocity",) * 6
    assert FolderSource(plain_folder(tmp_path / "e")).kinds == ("position",) * 6


def test_frame_files_are_in_the_order_of_their_numbers(tmp_path):
    """2 before 10, whatever the capitals, padding or first number; what systems leave behind is not looked at."""
    root = plain_folder(tmp_path / "d", files=True)
    for name in (".DS_Store", "Thumbs.db", "._3.png"):
        (root / "head" / name).write_bytes(b"x")
    assert shown(root) == list(range(12))
    for t in range(24):
        (root / f"head/{t}.png").rename(root / f"head/Frame_{t + 1}_a.PNG")
    (root / "head").rename(root / "Head")
    assert shown(root) == list(range(12))


def test_key_frames_may_be_numbered_as_they_are_stored(tmp_path):
    root = plain_folder(tmp_path / "d", files=True, stored=np.arange(0, 24, 2))
    for t in range(1, 24, 2):
        (root / f"head/{t}.png").unlink()
    assert int(FolderSource(root).frame("head", 1, 4)[0, 0, 0]) == 16


@pytest.mark.parametrize("change, words", [
    (lambda root: (root / "head/7.png").unlink(), "between 6.png and 8.png the picture of frame 7 is missing"),
    (lambda root: (root / "head/0.png").unlink(), "23 pictures (1.png to 23.png), not 24"),
    (lambda root: shutil.copy(root / "head/3.png", root / "head/003.png"), "holds 003.png and 3.png"),
    (lambda root: shutil.copy(root / "head/3.png", root / "head/3.JPG"), "holds 3.JPG and 3.png"),
    (lambda root: (root / "head/3.png").rename(root / "head/left_3.png"), "left_3.png"),
    (lambda root: (root / "head/notes.txt").write_text("x"), "notes.txt is no picture"),
    (lambda root: (root / "head/0.png").write_bytes(POINTER), "head/0.png is a Git LFS pointer"),
    (lambda root: ((root / "head/0.png").unlink(), os.mkfifo(root / "head/0.png")), "it is no file"),
    (lambda root: shutil.copytree(root / "head", root / "wrist"), "wrist is of no known view: name it head"),
    (lambda root: np.save(root / "front.npy", np.zeros((24, 8, 8, 3), np.uint8)), "front.npy is of no known view"),
    (lambda root: np.save(root / "front.npy", np.zeros((23, 8, 8, 3), np.uint8)), "front.npy is of no known view"),
    (lambda root: np.save(root / "head.npy", np.zeros((24, 8, 8, 3), np.uint8)), "holds head and head.npy"),
    (lambda root: (root / "left_wrist.mp4").write_bytes(b""), "left_wrist.mp4 is not read"),
    (lambda root: np.save(root / "left_wrist.npy", np.zeros((24, 1, 999, 3), np.uint8)), "is 1 x 999"),
    (lambda root: np.save(root / "left_wrist.npy", np.zeros((24, 8, 8, 4), np.uint8)), "expected uint8"),
    (lambda root: (root / "left_wrist.npy").write_bytes(
        header("{'descr':'|u1','fortran_order':False,'shape':(24,100000,100000,3)}")), "greater than file size")])
def test_a_picture_that_is_lost_double_or_of_another_camera_is_named(tmp_path, change, words):
    change(plain_folder(tmp_path / "d", files=True))
    assert words in refused(shown, tmp_path / "d")


def test_a_file_that_is_cut_short_while_it_is_read_is_named(tmp_path):
    """Past its end the kernel would end the process."""
    source = FolderSource(plain_folder(tmp_path / "d"))
    source.frame("head", 0, 0)
    os.truncate(tmp_path / "d/head.npy", 4096)
    assert "head.npy was cut short while it is in use" in refused(source.frame, "head", 1, 3)


# ---- image folders ---------------------------------------------------------------------------------------------

ARM = SimpleNamespace(robot="arm", state_mean=(0.,) * 6, action_mean=(0.,) * 6, cameras=lambda: ())


@pytest.fixture
def images(tmp_path):
    for time in ("past", "now"):
        (tmp_path / f"head_{time}.png").write_bytes(file_of(SCENE))
    np.save(tmp_path / "state.npy", np.ones(6))
    (tmp_path / "task.txt").write_bytes("\ufeffgo\r\n".encode())
    return tmp_path


def test_an_image_folder_is_read_whatever_its_capitals_and_kinds(images):
    """A byte order mark is no part of the instruction; results beside the pictures are not taken for cameras."""
    (images / "head_now.png").rename(images / "Head_Now.PNG")
    (images / "head_past.png").unlink()
    (images / "head_past.WebP").write_bytes(file_of(SCENE, "WEBP", lossless=True))
    (images / "actions.png").write_bytes(file_of(SCENE))
    (images / "Thumbs.db").write_bytes(b"x")
    found = image_folder.read(images, ARM)
    assert all(np.array_equal(picture, SCENE) for picture in found.seen["head"]) and found.task == "go"


def test_a_camera_that_was_not_trained_with_is_refused(images):
    trained = SimpleNamespace(**vars(ARM) | {"cameras": lambda: ("left_wrist", "right_wrist")})
    assert "camera head given; the checkpoint was trained with left_wrist, right_wrist" in refused(
        image_folder.read, images, trained)


def test_an_empty_instruction_and_a_robot_without_state_are_read_and_said(images, capsys):
    (images / "task.txt").write_text("\n")
    (images / "state.npy").unlink()
    found = image_folder.read(images, SimpleNamespace(robot="arm", state_mean=(), action_mean=(0.,), cameras=tuple))
    assert found.task == "" and found.state.shape == (0,)
    assert capsys.readouterr().out == ("robot 'arm' has no state: the state token gets zeros\n"
                                         "the instruction is empty\n")


@pytest.mark.parametrize("name, content, words", [
    ("front_now.png", b"", "front_now.png is of no known view"), ("head_next.png", b"", "and past, now, future"),
    ("head_now.JPG", b"", "holds head_now.JPG and head_now.png"), ("left_wrist_now.mp4", b"x", "past.png is missing"),
    ("TASK.txt", b"x", "but for capitals"), ("task.txt", "W\u00fcrfel".encode("latin-1"), "task.txt cannot be read"),
    ("task.txt", POINTER, "task.txt is a Git LFS pointer"), ("state.json", b"[0]", "holds state.npy and state.json"),
    ("state.npy", header("{'descr':'<f4','fortran_order':False,'shape':(10000000000,)}"), "greater than file size"),
    ("true_actions.npy", b"PK\x03\x04", "true_actions.npy cannot be read"), ("head_now.png", POINTER, "Git LFS")])
def test_a_file_of_an_image_folder_that_would_be_lost_is_named(images, name, content, words):
    (images / name).write_bytes(content)
    assert words in refused(image_folder.read, images, ARM)


@pytest.mark.parametrize("text", ["[" * 100000, "[" + "9" * 400 + ",0,0,0,0,0]", "[1e999,0,0,0,0,0]", "[[1],2]", "{}"],
                         ids=["nested", "huge", "infinite", "ragged", "object"])
def test_a_state_that_is_no_row_of_finite_numbers_is_named(images, text):
    (images / "given.JSON").write_text(text)
    assert "given.JSON" in refused(image_folder.read, images, ARM, None, images / "given.JSON")


def test_a_cut_never_replaces_what_a_folder_holds(tmp_path):
    root, folder = plain_folder(tmp_path / "d", T=80, state=None, action=None), tmp_path / "cut"
    image_folder.cut(root, folder, frame=39)
    assert sorted(path.name for path in folder.iterdir()) == ["head_now.png", "head_past.png", "m.json", "task.txt"]
    before = (folder / "head_now.png").read_bytes()
    assert "holds files already" in refused(image_folder.cut, root, folder, -1, 20)
    assert (folder / "head_now.png").read_bytes() == before


def test_numbers_that_change_in_a_file_of_one_size_and_time_change_what_is_read_of_it(tmp_path):
    """Kept statistics are of the numbers, not of the file's date."""
    root = plain_folder(tmp_path / "d")
    before, stat = FolderSource(root).identity(), (root / "episode.npz").stat()
    arrays = dict(np.load(root / "episode.npz"))
    np.savez(root / "episode.npz", **arrays | {"action": arrays["action"] * 2 + 1})
    os.utime(root / "episode.npz", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (root / "episode.npz").stat().st_size == stat.st_size and FolderSource(root).identity() != before


@pytest.mark.parametrize("name", ["unknown", "Unknown", ""])
def test_a_robot_that_is_called_unknown_is_known_by_what_it_measures(tmp_path, name):
    found = {FolderSource(plain_folder(tmp_path / str(fps), robot=name, fps=fps)).robot for fps in (15, 30)}
    assert len(found) == 2 and all(robot.startswith("unnamed-") for robot in found)


@pytest.mark.parametrize("task", [" pick\tthe  cube \r\n", "pick it up", "\n", "one\r\ntwo"])
def test_the_instruction_of_a_cut_folder_is_the_datasets_to_the_letter(tmp_path, capsys, task):
    """White space is tokens, too."""
    image_folder.cut(plain_folder(tmp_path / "d", task=np.array([task, "b"])), tmp_path / "cut", episode=0, frame=5)
    assert image_folder.read(tmp_path / "cut", ARM).task == (task if task.strip() else "")
    printed = capsys.readouterr().out
    assert ("white space at the ends of the instruction counts" in printed) == (task[0] == " ")
    (tmp_path / "cut/task.txt").write_bytes(b"go\r\n")   # as an editor of another system writes it
    assert image_folder.read(tmp_path / "cut", ARM).task == "go"


def test_a_letterbox_is_the_same_whatever_was_letterboxed_before_and_in_which_thread():
    """Each thread keeps the memory of its last picture."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, shape, np.uint8) for shape in [(48, 64, 3), (64, 48, 3), (33, 70, 3)] * 20]
    floats = [torch.from_numpy(picture).permute(2, 0, 1)[None].float() for picture in pictures]
    expected = [fit(x, 32, torch.uint8)[0] for x in floats]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda picture: letterbox(picture, 32), pictures))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
