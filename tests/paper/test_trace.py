"""python model.py: the pass, printed. Every figure comes from the pass that was run, so another config gives others."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from config import get_config
from support.table1 import count_parameters, on_meta
from support.trace import walk

ROOT = Path(__file__).parents[2]


def rows(name="conveyor", **flags):
    """The trace, (start of the line) -> the line; a continued line stands under ''."""
    return {line[2:22].strip(): line for line in walk(get_config(name, flags)) if line.startswith("  ")}


def figures(line):
    """(parameters, GFLOP) at the end of a line, 0 where there is none."""
    return [float(part.replace(",", "") or 0) for part in (line[88:102].strip(), line[102:].strip())]


def test_the_trace_says_what_the_paper_says_of_the_2b():
    """Sec. 3.2: 6 images of 32 x 32 latents become 96 tokens; 48 after the temporal mean, and 32 x 32 again."""
    lines = "\n".join(walk(get_config("a1_2b", {"layers": 2})))
    for words in ("6 images x 16 x 32 x 32", "8 x 8 kernel -> 6 x 4 x 4 tokens = 96", "temporal mean: 96 -> 48 tokens",
                  "deconvolution: 4 x 4 -> 32 x 32", "10 Euler steps of 0.1, tau = 0 ... 0.9", "lambda = 0.01"):
        assert words in lines
    for query in (r"und +822 +822 +\. +\. +\.", r"gen +96 +822 +96 +\. +\.", r"state +1 +822 +96 +1 +\.",
                  r"action +50 +822 +96 +1 +50"):
        assert re.search(rf"^  {query}$", lines, re.M)
    assert lines.count("\n") < 60 and max(map(len, lines.splitlines())) <= 120


def test_another_config_gives_another_trace():
    other = rows(chunk=20, euler_steps=3, layers=2, vae_size=128)
    assert "20 actions" in other["a_{t:t+k}"] and "-> 20 x 32" in other["a chunk"] and "2 layers" in other["f_act"]
    assert "3 Euler steps of 0.3333, tau = 0 ... 0.6667" in other["Eq. (3)"]
    assert "9 x 16 x 16 x 16" in other["phi_cosmos"]
    ablation = "\n".join(walk(get_config("conveyor", {"gen_expert": False})))
    assert "Generation Expert" not in ablation and "Parallel Decoding" not in ablation and "L_gen  " not in ablation


@pytest.mark.parametrize("flags", [{}, {"gen_expert": False}, {"action_draws": 1}])
def test_the_lines_of_section_3_2_add_up_to_the_whole_pass(flags):
    """Parameters: to the last one. GFLOP: as far as they are printed."""
    config = get_config("conveyor", flags)
    lines = walk(config)
    parts = [figures(line) for line in lines[:lines.index("Sec. 3.3  Optimization Objectives")][2:]]
    total = next(figures(line) for line in lines if line.startswith("  forward pass"))
    assert sum(p for p, _ in parts) == total[0] == count_parameters(on_meta(config.model))["total"]
    assert sum(g for _, g in parts) == pytest.approx(total[1], rel=0.03)


def test_model_py_prints_it_and_refuses_in_one_line(tmp_path):
    run = [sys.executable, str(ROOT / "model.py")]
    done = subprocess.run([*run, "--chunk", "20"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "against" in done.stdout and "-> 20 x 32" in done.stdout
    done = subprocess.run([*run, "--config", "a1_9b"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "did you mean" in done.stderr
