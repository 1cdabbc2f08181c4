"""infer.py: the inference as it is read, the engines beside it, and the tree without them."""

import re
import shutil
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

import infer
from config import VIEWS, to_dict
from conftest import ROOT, film
from support import checkpoint
from support.inference.policy import Policy

ENGINE = ("engine", "fused", "buffers")   # files of support/inference that the plain path does without


@pytest.fixture
def run(tmp_path, make):
    """A checkpoint of the smallest network."""
    policy = make(engine="plain", chunk=8)
    state = {"step": 1, "config": to_dict(policy.config), "statistics": asdict(policy.stats), "versions": {},
             "log_length": 0}
    return checkpoint.save(tmp_path / "run", 1, policy.model.state_dict(), {}, state)


@pytest.fixture
def on_pictures(script, tmp_path, run, capsys):
    """(*flags) -> actions (k, d_a) and what was printed, always of the same pictures and the same checkpoint."""
    for view in VIEWS[:2]:
        for images, time in zip(film(2)[0], ("past", "now")):
            Image.fromarray(images[view]).save(tmp_path / f"{view}_{time}.png")
    np.save(tmp_path / "state.npy", np.zeros(6, np.float32))

    def look(*flags):
        script("infer.py", "--image-dir", tmp_path, "--task", "go", "--checkpoint", run, "--out", tmp_path / "out",
               "--device", "cpu", *flags)
        return np.load(tmp_path / "out" / "actions.npy"), capsys.readouterr().out
    return look


@pytest.mark.parametrize("steps", [None, 3])
def test_the_lines_of_infer_py_are_the_policys_plain_path_bit_for_bit(make, steps):
    """Two observations with different cameras, in delta mode; the policy draws the same noise."""
    frames, states = film(2)
    seen = [{view: [images[view]] * 2 for view in views} for images, views in zip(frames, (VIEWS, VIEWS[:2]))]
    policy = make(engine="plain", chunk=8, action_mode="delta", euler_steps=steps)
    batch, eps = policy.batch(seen, states, ["go", "stop"]), policy.noise(2)
    policy.calls = 0
    for mine, its in zip(infer.infer(policy.model, policy.stats, batch, eps, states, steps),
                         policy.plan(seen, states, ["go", "stop"])):
        assert np.array_equal(mine, its)


def test_true_actions_beside_the_pictures_are_compared_in_training_standard_deviations(on_pictures, tmp_path):
    """Shorter than the chunk, as at the end of an episode; the policy's deviation is 2, the state is zero."""
    np.save(tmp_path / "true_actions.npy", np.full((3, 6), 4.0, np.float32))
    actions, printed = on_pictures("--engine", "plain")
    error = np.square((actions[:3] - 4) / 2).mean()
    assert f"training actions: policy {error:.4f}, holding the state 4.0000" in printed


def test_infer_gives_the_same_actions_with_and_without_the_engine(on_pictures, make, monkeypatch):
    """Plain runs infer.py's own lines; fewer Euler steps are told by what they change."""
    fast, _ = on_pictures()
    with monkeypatch.context() as patch:
        patch.setattr(Policy, "plan", None)
        plain, _ = on_pictures("--engine", "plain")
        few, printed = on_pictures("--engine", "plain", "--euler_steps", "2")
    np.testing.assert_allclose(fast, plain, atol=1e-5)
    assert "2 instead of 10 Euler steps move the actions by" in printed and np.abs(few - plain).max() > 1e-3


def test_without_the_engines_files_the_core_tests_and_the_plain_inference_run(run, tmp_path):
    """From a copy of the tree: no test of tests/paper asks for them when collected, and infer.py acts and imagines."""
    tree, without = tmp_path / "tree", shutil.ignore_patterns("__pycache__", *(f"{name}.py" for name in ENGINE))
    for name in ("support", "worlds", "examples", "tests/paper"):
        shutil.copytree(ROOT / name, tree / name, ignore=without)
    for path in (*ROOT.glob("*.py"), ROOT / "pytest.ini", ROOT / "tests/conftest.py"):
        shutil.copy(path, tree / path.relative_to(ROOT))
    assert not (tree / "support/inference/engine.py").exists()
    for path in (tree / "tests/paper").glob("*.py"):
        assert not re.search(rf"^(from|import) support.inference.({'|'.join(ENGINE)})\b", path.read_text(), re.M), path
    both = ("import pytest, runpy\n"
            "assert not pytest.main(['-q', 'tests/paper/test_flow.py', 'tests/paper/test_attention_mask.py'])\n"
            "runpy.run_path('infer.py', run_name='__main__')\n")
    done = subprocess.run([sys.executable, "-c", both, "--image-dir", "examples/conveyor", "--engine", "plain",
                           "--checkpoint", run, "--out", "out"], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in (tree / "out").iterdir()} == {"actions.npy", "actions.png", "foresight.png"}


# ---- which engine ------------------------------------------------------------------------------------------------

def test_a_loaded_policy_has_the_engine_that_suits_its_device(run):
    from support.inference.engine import default_mode
    assert default_mode("cpu") == "eager" and default_mode(torch.device("cuda", 1)) == "graph"
    assert Policy.load(run).engine.mode == "eager" and Policy.load(run, engine="plain").engine is None
    assert Policy.load(run, euler_steps=4, cameras=("head",)).engine.steps == 4


@pytest.mark.parametrize("flags", [["--image-dir", "."], ["--closed-loop"]])
def test_a_graph_on_the_cpu_is_refused_before_anything_is_loaded(flags):
    with pytest.raises(ValueError, match="--engine graph records a CUDA graph"):
        infer.main([*flags, "--engine", "graph", "--device", "cpu", "--checkpoint", "nowhere"])


@pytest.mark.parametrize("flags, engine", [
    ("--image-dir .", "eager"), ("--image-dir . --engine graph", "graph"), ("--closed-loop", None)])
def test_no_graph_is_recorded_for_one_chunk(monkeypatch, run, flags, engine):
    """On a GPU; where there are many chunks the policy chooses."""
    def load(*args, **options):
        raise ValueError(f"engine {options['engine']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Policy, "load", load)
    with pytest.raises(ValueError, match=f"^engine {engine}$"):
        infer.main([*flags.split(), "--device", "cuda", "--checkpoint", str(run)])
