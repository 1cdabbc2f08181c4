"""Figures: that a pixel or a value shows where it should, and that odd input is drawn or refused."""

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageSequence

from support import pictures
from support.pictures import ORANGE, action_plot, curves, foresight, gif

VIEWS = ("head", "left wrist", "right wrist")
TIMES = ("t - 15", "t", "imagined t + 15", "true t + 15")


def grey(height: int = 16, width: int = 16) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def grid() -> list:
    return [(view, [(time, grey()) for time in TIMES]) for view in VIEWS]


def has(image: Image.Image, colour: tuple[int, int, int], tolerance: int = 2) -> bool:
    return bool((np.abs(np.asarray(image).astype(int) - colour) <= tolerance).all(axis=2).any())


def test_a_figure_is_written_as_it_is_returned_and_small_pictures_are_enlarged(tmp_path):
    image = foresight(grid(), tmp_path / "new" / "foresight.png", scale=4)
    assert image.mode == "RGB" and image.getpixel((0, 0)) == pictures.PAPER
    with Image.open(tmp_path / "new" / "foresight.png") as stored:
        assert ImageChops.difference(image, stored).getbbox() is None
    assert foresight([("", [("", grey())])]).size == (192 + 2 * pictures.MARGIN,) * 2
    assert foresight([("", [("", grey(448, 448))])]).width == 448 + 2 * pictures.MARGIN


@pytest.mark.parametrize("row, column", [(0, 0), (1, 2), (2, 3)])
def test_a_changed_pixel_shows_once_in_its_own_cell(row, column):
    before = foresight(grid(), scale=6)
    rows = grid()
    rows[row][1][column][1][5, 11] = (255, 0, 0)
    after = foresight(rows, scale=6)
    left, top, right, bottom = ImageChops.difference(before, after).getbbox()
    assert (right - left, bottom - top) == (6, 6)
    assert all(after.getpixel((x, y)) == (255, 0, 0) for x in (left, right - 1) for y in (top, bottom - 1))
    pitch = 16 * 6 + pictures.GUTTER
    assert right == before.width - pictures.MARGIN - (3 - column) * pitch - 4 * 6
    assert bottom == before.height - pictures.MARGIN - (2 - row) * pitch - 10 * 6


def test_a_missing_picture_is_hatched_and_smaller_ones_fit():
    rows = grid()
    rows[1] = ("left wrist", [(time, None) for time in TIMES])
    assert foresight(rows, scale=6).size == foresight(grid(), scale=6).size
    assert ImageChops.difference(foresight(rows, scale=6), foresight(grid(), scale=6)).getbbox()
    foresight([("all missing", [("t", None), ("t + 1", None)])])
    foresight([("a", [("t", grey(8, 20)), ("much too long for its picture", grey(20, 8))])])


def test_gif_colours_times_and_loop(tmp_path):
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (7, 7, 7)] * 5
    path = tmp_path / "new" / "world.gif"
    gif([Image.new("RGB", (8, 8), colour) for colour in colours], path, 30)
    with Image.open(path) as image:
        assert image.n_frames == 20 and image.info["loop"] == 0
        frames = [(frame.convert("RGB").getpixel((4, 4)), frame.info["duration"])
                  for frame in ImageSequence.Iterator(image)]
    assert [colour for colour, _ in frames] == colours
    assert abs(sum(duration for _, duration in frames) - 20 / 30 * 1000) <= 10


def wave(steps: int, count: int) -> np.ndarray:
    return np.sin(np.linspace(0, 3, steps)[:, None] + np.arange(count))


@pytest.mark.parametrize("count", [1, 5, 32])
def test_action_plot_size_and_colours(tmp_path, count):
    names = [f"joint {i}" for i in range(count)]
    plain = action_plot(wave(16, count), names, path=tmp_path / "actions.png")
    assert plain.size == Image.open(tmp_path / "actions.png").size
    assert has(plain, pictures.BLUE) and not has(plain, pictures.BASELINE_COLOURS[0])
    full = action_plot(wave(16, count), names, wave(16, count) + 0.3, {"hold": wave(16, count) * 0}, fps=30)
    assert has(full, pictures.BLUE) and has(full, pictures.GREY) and has(full, pictures.BASELINE_COLOURS[0])
    assert full.height > plain.height                     # the axis in seconds


def test_a_changed_value_moves_its_own_panel_only():
    names = [f"joint {i}" for i in range(4)]
    before, values = action_plot(wave(30, 4), names), wave(30, 4)
    values[15, 2] += 0.05
    after = action_plot(values, names)
    left, top, right, bottom = ImageChops.difference(before, after).getbbox()
    assert before.width / 2 < left and right < 0.77 * before.width
    assert right - left < 0.1 * pictures.PANEL_WIDTH + 10 and bottom - top < pictures.PANEL_HEIGHT


@pytest.mark.parametrize("values", [np.zeros((10, 2)), np.full((10, 2), -3.5), np.full((1, 2), 1e-12),
                                    np.full((7, 2), 1e30), 100 + wave(9, 2) * 1e-3, wave(9, 2) * 1e-20,
                                    np.full((5, 2), 0.1, np.float32) + np.float32(1e-9)])
def test_constant_single_step_and_extreme_data(values):
    for true in (None, values, values + 1e-3):
        assert has(action_plot(values, ["a", "b"], true, {"hold": values}, fps=12.5), pictures.BLUE)


def test_a_joint_that_does_not_move_looks_like_one():
    """Its axis spans a standard deviation of the training data, so the same small wave is nearly a straight line."""
    def heights(**options):
        image = np.asarray(action_plot(wave(30, 1) * 1e-3, ["joint"], **options)).astype(int)
        rows = np.flatnonzero((np.abs(image - pictures.BLUE) <= 2).all(2).any(1))
        return np.ptp(rows[rows > pictures.MARGIN + 20])   # below the legend
    assert heights() > 0.8 * pictures.PANEL_HEIGHT and heights(spans=[1.0]) < 4


def row(step, act, gen=0.5, lr=1e-3):
    return {"step": step, "loss": act, "loss_act": act, "loss_gen": gen, "lr": lr}


def test_curves_show_training_and_what_is_held_out(tmp_path):
    rows = [row(n, 2.0 / n) for n in range(1, 200)] + [{"step": 199, "held_out": {"loss_act": 0.02, "loss_gen": None}}]
    image = curves(rows, tmp_path / "new" / "curves.png")
    assert has(image, pictures.BLUE) and has(image, ORANGE) and image.size == Image.open(tmp_path / "new/curves.png").size
    assert not has(curves(rows[:-1]), ORANGE)
    held_out = np.argwhere((np.abs(np.asarray(image).astype(int) - ORANGE) <= 2).all(2))
    assert held_out[:, 1].max() > 0.9 * image.width   # a point at the last step


@pytest.mark.parametrize("rows", [
    [row(1, 0.5)], [row(1, 1e-9), row(5_000_000, 1e9)], [row(n, 0.5, gen=0.0) for n in (1, 2)], [row(1, 0.0, gen=0.0)],
    [row(1, 0.5), {"step": 2, "skipped": True, "lr": 1.0, "n_act": 1, "n_gen": 1}, {"step": 2, "held_out": {"loss_act": 0.1}}],
    [row(n, 0.5 + 1e-4 * n) for n in range(1, 5)], [row(n, 1.0 / n) for n in range(1, 20_000, 7)]])
def test_curves_of_odd_runs_are_drawn(rows):
    """One step, an enormous range, no generation expert, no losses at all, skipped steps, next to no change."""
    assert has(curves(rows), pictures.BLUE)


def test_an_action_that_is_not_finite_is_named():
    broken = wave(8, 3)
    broken[5, 1] = np.nan
    for change, who in (({"predicted": broken}, "predicted"), ({"true": broken}, "true"),
                        ({"baselines": {"hold": broken}}, "hold")):
        with pytest.raises(ValueError, match=f"^action_plot: {who} is nan at step 5 of elbow .*drawn$"):
            action_plot(**{"predicted": wave(8, 3), "names": ["waist", "elbow", "gripper"]} | change)
