"""python -m bench latency: work is counted from the run, ratios have an interval, and the whole table is printed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bench.__main__ as bench
from bench import chunk, latency, roofline, saving
from config import CONFIGS
from support.inference.engine import Engine, Program, Shape, random_batch
from support.inference.fused import linear
from support.weights.loading import empty_model


@pytest.fixture(params=["qwen", "internvl"])
def small(request, build):
    """A network of either backbone, and a batch with padding."""
    from conftest import VARIANTS
    config = VARIANTS[request.param]
    batch = random_batch(config, 2)
    batch.text_mask[0, 3:] = False
    batch.dim_mask[:, 6:] = False
    return build(config), batch, torch.randn(2, config.chunk, config.action_dim)


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """The smallest preset that has every part, as --config small; results go to a folder of their own."""
    from conftest import VARIANTS
    config = replace(CONFIGS["a1_3b_release"], model=replace(VARIANTS["qwen"], vae="cosmos", vae_size=32))
    monkeypatch.setitem(CONFIGS, "small", config)
    monkeypatch.setattr(saving, "RESULTS", tmp_path)
    monkeypatch.setattr(chunk, "rates", lambda *_: (1e12, 1e10))
    return config


def test_the_engine_leaves_out_a_last_understanding_layer_that_is_there(small, build):
    model, batch, eps = small
    model = build(replace(model.config, und_tail=True))
    engine = Engine(model)
    torch.testing.assert_close(engine(batch, eps).actions, model.sample_actions(batch, eps), rtol=0, atol=1e-5)
    assert engine.layers["und"][-1].o is None


def test_model_py_as_it_is_read_is_unchanged_by_an_engine_on_its_weights(small):
    """The baseline samples what the model does, bit for bit, and its VAE stays in the layout that torch gives it."""
    model, batch, eps = small
    expected, call = model.sample_actions(batch, eps), chunk.as_read(model, batch, eps)
    Engine(model)
    assert torch.equal(call(), expected)


# ---- work --------------------------------------------------------------------------------------------------

def counted(run):
    """GFLOP by torch's own counter, and by ours."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode
    with roofline.Ledger() as seen:
        run()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as theirs:   # it lacks the CPU's flash kernel
        run()
    return theirs.get_total_flops(), roofline.total_flops(seen.work)


def test_the_work_is_what_torchs_counter_finds_with_attention_as_products(small):
    model, batch, eps = small
    engine = Engine(model)
    theirs, ours = counted(lambda: engine(batch, eps, imagine=True))
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_the_floor_follows_from_work_and_rates():
    """Two products: one bound by arithmetic, one by its weights."""
    work = {(2 * 10 ** 7, 20_000): 1, (2 * 10 ** 6, 2 * 10 ** 6): 3}
    assert roofline.total_flops(work) == 2e7 + 6e6 and roofline.total_bytes(work) == 6_020_000
    assert roofline.floor(work, peak=1e9, bandwidth=1e8) == pytest.approx(2e7 / 1e9 + 3 * 2e6 / 1e8)


@pytest.mark.parametrize("rows", [1, 100, 822])
@pytest.mark.parametrize("product", [linear, F.linear])
def test_the_bytes_of_a_product_are_the_operand_that_the_run_did_not_compute(product, rows):
    """More rows than outputs or fewer, on the left (support/inference/fused.py, few rows) or on the right."""
    x, weight = torch.randn(2, rows, 64), torch.randn(128, 64)
    with roofline.Ledger() as seen:
        product(x + 1, weight)
    assert seen.work == {(2 * 2 * rows * 64 * 128, 128 * 64 * 4): 1}


# Megabytes of weights in bfloat16 that one chunk reads, each once per use, counted by hand in another program: 822 or
# 201 understanding tokens, 96 of generation, ten steps; the last layer of both gives keys and values alone.
WEIGHTS_MB = {"a1_2b": {"ViT and words": 614.6, "understanding": 686.3, "VAE encode, 6 frames": 62.3,
                        "generation": 688.2, "Euler steps": 7174.3},
              "a1_3b": {"ViT and words": 657.9, "understanding": 2726.3, "VAE encode, 6 frames": 62.3,
                        "generation": 855.6, "Euler steps": 8830.4}}
# Both frames encoded, at 165 TFLOP/s and 1008 GB/s: what the data sheet of an RTX 4090 allows, in chunks a second.
ALLOWED_HZ = {"a1_2b": 36, "a1_3b": 52}


@pytest.mark.parametrize("name", WEIGHTS_MB)
def test_the_weights_of_a_chunk_at_full_size_are_those_counted_by_hand(name, monkeypatch):
    """On tensors without content, without attention's keys and values. 2 %: a phase's input counts at its first use."""
    model = empty_model(CONFIGS[name].model, "meta", torch.bfloat16)
    program = Program(model, Shape(1, (0, 1, 2), model.config.text_tokens, False, False, False))
    engine = Engine(model)
    found = chunk.record(engine, [lambda: engine.run(program)])
    hz = 1 / sum(roofline.floor(seen.work, 165e12, 1008e9) for seen in found.values())
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda query, *others, **options: torch.empty_like(query))
    for label, seen in chunk.record(engine, [lambda: engine.run(program)]).items():
        assert roofline.total_bytes(seen.work) / 1e6 == pytest.approx(WEIGHTS_MB[name][label], rel=.02), label
    assert round(hz) == ALLOWED_HZ[name]


# ---- arms and phases ---------------------------------------------------------------------------------------

def test_arms_are_interleaved_there_and_back():
    order = []
    arms = {name: lambda name=name: order.append(name) for name in "abc"}
    found = chunk.interleaved(arms, 2, torch.device("cpu"))
    assert "".join(order) == "abccbaabccba" and all(len(times) == 4 for times in found.values())


def test_a_ratio_has_an_interval_that_holds_it():
    random = np.random.default_rng(0)
    one, other = 2 + .1 * random.standard_normal(30), 4 + .1 * random.standard_normal(30)
    middle, low, high = chunk.ratio(one, other)
    assert low < middle < high and middle == pytest.approx(.5, abs=.02) and high - low < .05
    assert chunk.ratio([2] * 8, [1] * 7) == chunk.ratio([2] * 7, [1] * 8) == (2, None, None)   # too few to say


def test_latency_reports_every_figure_of_a_chunk(quick, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    argv = "latency --config small --dtype bfloat16 --blocks 1 --euler_steps 5 --json out.json".split()
    bench.run(argv)
    printed, report = capsys.readouterr().out, saving.json.loads((tmp_path / "out.json").read_text())
    for words in (chunk.READ, chunk.MISS, chunk.HIT, chunk.FORESIGHT, "latents kept", "equality", "GFLOP", "AVX2",
                  "5 Euler steps", "decode: pictures", "every arm 2 times", "start-up of the engine", "bfloat16",
                  latency.processor()):
        assert words in printed, words
    assert (report["euler_steps"], report["weights_seed"]) == (quick.model.euler_steps, 0)
    rows, totals = report["phases"], report["totals"]
    assert set(rows) == set().union(*chunk.CASES.values())
    assert all(row["calls"] >= 3 and row["operations"] > 0 for row in rows.values())
    assert rows["VAE encode, 6 frames"]["gflop"] == pytest.approx(2 * rows["VAE encode, 3 frames"]["gflop"])
    for key in ("p50_s", "floor_s"):
        assert totals[chunk.MISS][key] == pytest.approx(sum(rows[label][key] for label in chunk.CASES[chunk.MISS]))
    assert set(report["ratios"]) == set(totals) == set(chunk.CASES)
    assert set(report["arms"]) == {chunk.READ, *chunk.CASES}
    assert all(low is high is None for _, low, high in report["ratios"].values())   # two calls have no interval
    assert all(arm["calls"] == len(arm["seconds"]) == 2 for arm in report["arms"].values())
    assert any("launched one by one" in line for line in latency.lines(report | {"engine": "graph"}))
    assert report["difference_rms"] < .05 * report["action_rms"] and report["fewer_steps"]["action_error_rms"] > 0
    with pytest.raises(ValueError, match="out.json holds a finished result: add --force"):
        bench.run(argv)


def test_a_compiled_engines_phases_and_fewer_steps_are_timed_in_its_own_mode(quick, monkeypatch):
    inner, modes, parts, timed = torch.compile, [], [], chunk.timed
    monkeypatch.setattr(torch, "compile", lambda f, **options: inner(f, **options | {"backend": "eager"}))
    monkeypatch.setattr(chunk, "Engine", lambda *args: modes.append(args[1:]) or Engine(*args))
    monkeypatch.setattr(chunk, "timed", lambda engine, *rest: parts.append(engine.mode) or timed(engine, *rest))
    config = replace(quick.model, layers=1, euler_steps=2, vae="dct")
    report = chunk.measure(config, "cpu", torch.float32, "compile", 1, euler_steps=1)
    assert modes == [("compile",), ("compile", 1)] and parts == ["compile"] and report["fewer_steps"]["calls"] == 2
    assert "largest difference from eager" in "\n".join(latency.lines(report))


def test_a_phase_that_fails_leaves_the_engine_as_it_was(build, tiny):
    engine = Engine(build(tiny))
    with pytest.raises(ZeroDivisionError), chunk.watched(engine, lambda label, phase, *args: 1 / 0):
        engine(random_batch(tiny), torch.zeros(1, tiny.chunk, tiny.action_dim))
    assert not set(chunk.PHASES) & set(vars(engine))


def test_latency_drives_a_control_loop_with_and_without_the_background(capsys):
    bench.run("latency --config conveyor --control 0.5".split())
    *rows, note = capsys.readouterr().out.splitlines()[1:]
    assert note.startswith("without the first step")
    assert [row.split("  ")[0] for row in rows] == ["planned in the step", "planned in the background"]
    assert all("15 steps" in row and "p50" in row and "starved" in row for row in rows)


@pytest.mark.parametrize("flags, message", [
    ("--engine graph", "--engine graph records a CUDA graph"),
    ("--blocks 0", "--blocks must be at least 1, got 0"), ("--euler_steps -1", "--euler_steps must be at least 1"),
    ("--control 0", "--control 0: give the seconds"), ("--control -1", "--control -1"),
    ("--control 1 --blocks 2", "without --blocks"), ("--control 1 --euler_steps 5", "without --euler_steps")])
def test_latency_refuses_flags_before_it_builds_anything(flags, message, monkeypatch):
    monkeypatch.setattr(latency, "random_model", None)
    monkeypatch.setattr(latency, "measure", None)
    with pytest.raises(ValueError, match=message):
        bench.run(["latency", *flags.split()])


def test_a_gpu_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="sees no GPU"):
        bench.run(["latency", "--device", "cuda"])
