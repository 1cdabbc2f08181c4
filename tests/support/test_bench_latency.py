"""python -m bench latency: calls side by side, work counted from the run, and the whole table is printed."""

import json
from dataclasses import replace

import pytest
import torch

import bench.__main__ as bench
from bench import chunk, latency, saving
from config import CONFIGS
from conftest import VARIANTS
from support.inference.engine import Engine, random_batch


@pytest.fixture(params=["qwen", "internvl"])
def small(request, build):
    """A network of either backbone, and a batch with padding."""
    config = VARIANTS[request.param]
    batch = random_batch(config, 2)
    batch.text_mask[0, 3:] = False
    batch.dim_mask[:, 6:] = False
    return build(config), batch, torch.randn(2, config.chunk, config.action_dim)


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """The smallest preset that has every part, as --config small; results go to a folder of their own."""
    config = replace(CONFIGS["a1_3b_release"], model=replace(VARIANTS["qwen"], vae_size=32))
    monkeypatch.setitem(CONFIGS, "small", config)
    monkeypatch.setattr(saving, "RESULTS", tmp_path)
    return config


def test_a_last_understanding_layer_that_is_whole_changes_nothing(small, build):
    model, batch, eps = small
    model = build(replace(model.config, und_tail=True))
    torch.testing.assert_close(Engine(model)(batch, eps).actions, model.sample_actions(batch, eps), rtol=0, atol=1e-5)


def test_model_py_as_it_is_read_is_unchanged_by_an_engine_on_its_weights(small):
    """The baseline samples what the model does, bit for bit, and its VAE stays in the layout that torch gives it."""
    model, batch, eps = small
    expected, call = model.sample_actions(batch, eps), chunk.as_read(model, batch, eps)
    Engine(model)
    assert torch.equal(call(), expected)


def test_attention_counts_in_the_work_of_a_run():
    """torch's own counter lacks the CPU's kernel."""
    query, key = torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 5, 8)
    with chunk.flop_counter() as counter:
        torch.nn.functional.scaled_dot_product_attention(query, key, key)
    assert counter.get_total_flops() == 2 * 2 * (2 * 3 * 5 * 8)   # two products, a multiplication and an addition each


def test_calls_are_interleaved_there_and_back():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    found = chunk.interleaved(calls, 2)
    assert "".join(order) == "abccbaabccba" and all(len(times) == 4 for times in found.values())


def test_latency_reports_every_figure_of_a_chunk(quick, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    argv = "latency --config small --dtype bfloat16 --blocks 1 --json out.json".split()
    bench.run(argv)
    printed, report = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    calls = {chunk.MISS, chunk.HIT, chunk.FORESIGHT}
    for words in (chunk.READ, *calls, "latents kept", "equality", "GFLOP", "AVX2", "decode: pictures", "bfloat16",
                  "every call 2 times", "start-up of the engine", latency.processor()):
        assert words in printed, words
    assert report["euler_steps"] == quick.model.euler_steps
    assert report["calls"].keys() == {chunk.READ, *calls} and report["phases"].keys() == calls
    assert all(row["samples"] == len(row["seconds"]) == 2 for row in report["calls"].values())
    rows = report["phases"]
    assert all(row["samples"] >= 3 and row["gflop"] > 0 for name in calls for row in rows[name].values())
    assert rows[chunk.FORESIGHT].keys() == set(chunk.PHASES.values()) > rows[chunk.MISS].keys() == rows[chunk.HIT].keys()
    assert rows[chunk.MISS]["VAE encode"]["gflop"] == pytest.approx(2 * rows[chunk.HIT]["VAE encode"]["gflop"])
    assert any("launched one by one" in line for line in latency.lines(report | {"engine": "graph"}))
    assert report["difference_rms"] < .05 * report["action_rms"]
    with pytest.raises(ValueError, match="out.json holds a finished result: add --force"):
        bench.run(argv)


def test_a_compiled_engines_phases_are_timed_compiled(quick, monkeypatch):
    inner, watched, watch = torch.compile, [], chunk.watch
    monkeypatch.setattr(torch, "compile", lambda f, **options: inner(f, **options | {"backend": "eager"}))
    monkeypatch.setattr(chunk, "watch", lambda engine, *rest: watched.append(engine.mode) or watch(engine, *rest))
    config = replace(quick.model, layers=1, euler_steps=2, vae="dct")
    report = chunk.measure(config, "cpu", torch.float32, "compile", 1)
    assert watched == 3 * ["eager", *3 * ["compile"]]   # counted once, timed three times
    assert "largest difference from model.py" in "\n".join(latency.lines(report))


def test_latency_drives_a_control_loop_with_and_without_the_background(capsys):
    bench.run("latency --config conveyor --control 0.5".split())
    *rows, note = capsys.readouterr().out.splitlines()[1:]
    assert note.startswith("without the first step")
    assert [row.split("  ")[0] for row in rows] == ["planned in the step", "planned in the background"]
    assert all("15 steps" in row and "p50" in row and "starved" in row for row in rows)


@pytest.mark.parametrize("flags, message", [
    ("--engine graph", "--engine graph records a CUDA graph"),
    ("--blocks 0", "--blocks must be at least 1, got 0"), ("--control 0", "--control must be at least 0.1"),
    ("--device cuda", "sees no GPU")])
def test_latency_refuses_flags_before_it_builds_anything(flags, message, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(latency, "random_model", None)
    monkeypatch.setattr(latency, "measure", None)
    with pytest.raises((ValueError, SystemExit)) as end:
        bench.run(["latency", *flags.split()])
    assert message in str(end.value) + capsys.readouterr().err
