"""bench.py's measurements: the plain arm computes the model, work is counted from shapes, ratios have an interval."""

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

import bench.__main__ as bench
from config import CONFIGS
from bench import latency
from bench import roofline
from support.inference.engine import Engine, Program, Shape, random_batch
from bench.plain_arm import PlainArm
from support.weights.loading import empty_model


@pytest.fixture(params=["qwen", "internvl"])
def tailed(request, build):
    """A small network of either backbone with its whole last understanding layer, and a batch with padding."""
    from conftest import VARIANTS
    config = replace(VARIANTS[request.param], und_tail=True)
    batch = random_batch(config, 2)
    batch.text_mask[0, 3:] = False
    batch.dim_mask[:, 6:] = False
    return build(config), batch, torch.randn(2, config.chunk, config.action_dim)


def test_the_plain_arm_computes_the_models_chunk(tailed):
    """A slower straw man that computes something else proves nothing. tau is float32 there: 1e-4."""
    model, batch, eps = tailed
    torch.testing.assert_close(PlainArm(model)(batch, eps), model.sample_actions(batch, eps), rtol=0, atol=1e-4)


def test_the_engine_leaves_out_a_last_understanding_layer_that_is_there(tailed):
    model, batch, eps = tailed
    engine = Engine(model)
    torch.testing.assert_close(engine(batch, eps).actions, model.sample_actions(batch, eps), rtol=0, atol=1e-5)
    assert engine.layers["und"][-1].o is None


def test_the_plain_arm_refuses_a_model_without_the_tail(build, tiny):
    with pytest.raises(ValueError, match="und_tail"):
        PlainArm(build(tiny))


# ---- work --------------------------------------------------------------------------------------------------

def counted(run):
    """GFLOP by torch's own counter, and by ours."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode
    with roofline.Ledger() as seen:
        run()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as theirs:   # it does not know the CPU's flash kernel
        run()
    return theirs.get_total_flops(), roofline.total_flops(seen.work)


def test_the_work_is_what_torchs_counter_finds(tailed):
    """Products, convolutions with stride and padding, transposed ones and attention, of a whole call."""
    model, batch, eps = tailed
    engine = Engine(model)
    theirs, ours = counted(lambda: engine(batch, eps, imagine=True))
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_the_vaes_work_is_what_torchs_counter_finds(build, tiny):
    vae = build(replace(tiny, vae="cosmos")).vae
    theirs, ours = counted(lambda: vae.decode(vae.encode(torch.zeros(1, 3, 32, 32))))
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_floors_follow_from_work_and_rates():
    """Two products: one bound by arithmetic, one by its weights."""
    work = {("product", (1000, 100, 100), torch.bfloat16): 1, ("product", (1, 1000, 1000), torch.bfloat16): 3}
    assert roofline.total_flops(work) == 2e7 + 6e6
    assert roofline.peak_floor(work, peak=1e9, bandwidth=1e8) == pytest.approx(2e7 / 1e9 + 3 * 2e6 / 1e8)
    times = dict(zip(work, (.25, 2.0)))
    assert roofline.shape_floor(work, times) == 6.25


def test_the_prediction_for_a_4090_is_each_operations_bound_there_and_1_2_us_a_kernel():
    """At 75 % of 165 TFLOP/s or 85 % of 1008 GB/s: the first product by arithmetic, the others by their weights."""
    work = {("product", (1000, 100, 100), torch.bfloat16): 1, ("product", (1, 1000, 1000), torch.bfloat16): 3}
    bounds = 2e7 / (.75 * 165e12) + 3 * 2e6 / (.85 * 1008e9)
    assert roofline.predict_4090(work, 0) == pytest.approx(bounds)
    assert roofline.predict_4090(work, 4000) == pytest.approx(bounds + 4.8e-3)


def test_kernels_are_what_the_profiler_saw_on_the_gpu(monkeypatch):
    """Of the run under it, to its end; waiting is no kernel, nor is anything on the CPU."""
    def event(name, device=roofline.DeviceType.CUDA):
        return SimpleNamespace(name=name, device_type=device)
    order, seen = [], [event("gemm"), event("Memcpy HtoD"), event("Context Sync"), event("mm", roofline.DeviceType.CPU)]
    monkeypatch.setattr(roofline, "profile", lambda activities: nullcontext(SimpleNamespace(events=lambda: seen)))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("end"))
    assert roofline.kernels(lambda: order.append("run")) == 2 and order == ["run", "end"]


@pytest.mark.parametrize("rows", [1, 100, 822])
@pytest.mark.parametrize("product", [roofline.linear, F.linear])
def test_the_weight_of_a_product_is_the_operand_that_the_run_did_not_compute(product, rows):
    """More rows than outputs or fewer, on the left (fused.linear, few rows) or on the right."""
    x, weight = torch.randn(2, rows, 64), torch.randn(128, 64)
    with roofline.Ledger() as seen:
        product(x + 1, weight)
    (key, count), = seen.work.items()
    assert key == ("product", (2 * rows, 64, 128), torch.float32) and count == 1
    assert roofline.weight_bytes(*key) == 128 * 64 * 4


# Megabytes of weights in bfloat16 that one chunk reads, each once per use, counted by hand in another program: 822 or 201
# understanding tokens, 96 of generation, its last layer and the understanding's giving keys and values alone, ten steps.
WEIGHTS_MB = {"a1_2b": {"ViT and words": 614.6, "understanding": 686.3, "VAE encode, 6 frames": 62.3, "generation": 688.2,
                        "Euler steps": 7174.3},
              "a1_3b": {"ViT and words": 657.9, "understanding": 2726.3, "VAE encode, 6 frames": 62.3, "generation": 855.6,
                        "Euler steps": 8830.4}}


@pytest.mark.parametrize("name", WEIGHTS_MB)
def test_the_weights_of_a_chunk_at_full_size_are_those_counted_by_hand(name):
    """On tensors without content. By hand with biases, and two small maps of the action expert in bfloat16: 1 %."""
    model = empty_model(CONFIGS[name].model, "meta", torch.bfloat16)
    program = Program(model, Shape(1, (0, 1, 2), model.config.text_tokens, False, False, False))
    engine = Engine(model)
    for label, seen in latency.record(engine, [lambda: engine.run(program)]).items():
        bytes_read = sum(count * roofline.weight_bytes(*key) for key, count in seen.work.items()
                         if key[0] in ("product", "convolution"))   # without attention
        assert bytes_read / 1e6 == pytest.approx(WEIGHTS_MB[name][label], rel=.01), label


@pytest.mark.parametrize("name, cached, hz", [("a1_2b", False, 36), ("a1_2b", True, 38), ("a1_3b", False, 52),
                                              ("a1_3b", True, 57)])
def test_what_an_rtx_4090_could_reach_at_its_data_sheets_rates(name, cached, hz):
    """README: chunks a second, with both frames encoded and with latents kept."""
    model = empty_model(CONFIGS[name].model, "meta", torch.bfloat16)
    program, engine = Program(model, Shape(1, (0, 1, 2), model.config.text_tokens, False, cached, False)), Engine(model)
    found = latency.record(engine, [lambda: engine.run(program)])
    assert round(1 / sum(roofline.peak_floor(seen.work, 165e12, 1008e9) for seen in found.values())) == hz


def test_an_operation_is_timed_alone_at_its_shape(monkeypatch):
    """A product of 16 times the work takes longer; every kind of a ledger can be timed."""
    monkeypatch.setattr(roofline, "COLD_BYTES", 1 << 24)
    device = torch.device("cpu")
    small, large = (roofline.time_alone("product", (size, 256, 1024), torch.float32, device) for size in (8, 512))
    assert 0 < small < large
    for kind, shape in (("convolution", (1, 4, 8, 8, 4, 3, 1)), ("transposed", (1, 4, 4, 4, 4, 2, 2)),
                        ("attention", (1, 2, 4, 8, 6)), ("batched", (2, 3, 4, 5))):
        assert roofline.time_alone(kind, shape, torch.float32, device) > 0


def test_a_product_alone_meets_its_weights_uncached(monkeypatch):
    """Small weights too are so many that they fill COLD_BYTES before one comes again."""
    seen = set()
    monkeypatch.setattr(roofline, "COLD_BYTES", 1 << 20)
    monkeypatch.setattr(roofline, "linear", lambda x, weight: seen.add(weight.data_ptr()))
    roofline.time_alone("product", (2, 64, 64), torch.float32, torch.device("cpu"))
    assert len(seen) * 64 * 64 * 4 == 1 << 20


def test_a_left_hand_weight_is_the_same_product():
    """fused.linear: with and without bias, few rows and many."""
    weight, bias = torch.randn(7, 5), torch.randn(7)
    for rows in (1, 3, 300):
        x = torch.randn(2, rows, 5)
        for b in (None, bias):
            torch.testing.assert_close(roofline.linear(x, weight, b), F.linear(x, weight, b))


# ---- arms and phases ---------------------------------------------------------------------------------------

def test_arms_are_interleaved_there_and_back():
    order = []
    arms = {name: lambda name=name: order.append(name) for name in "abc"}
    found = latency.interleaved(arms, 2, torch.device("cpu"))
    assert "".join(order) == "abccbaabccba" and all(len(times) == 4 for times in found.values())


def test_a_ratio_has_an_interval_that_holds_it():
    random = np.random.default_rng(0)
    one, other = 2 + .1 * random.standard_normal(30), 4 + .1 * random.standard_normal(30)
    middle, low, high = latency.ratio(one, other)
    assert low < middle < high and middle == pytest.approx(.5, abs=.02) and high - low < .05
    assert latency.ratio([1] * 8, [1] * 8) == (1, 1, 1)
    assert latency.ratio([2] * 8, [1] * 7) == latency.ratio([2] * 7, [1] * 8) == (2, None, None)   # too few to say


def test_a_percentile_is_given_where_the_samples_are_enough_for_it():
    few, some, many = (latency.spread(list(range(1, n + 1))) for n in (19, 20, 100))
    assert (few["calls"], few["p50_s"], few["hz"]) == (19, 10, .1) and few["p95_s"] is few["p99_s"] is None
    assert some["p95_s"] == pytest.approx(19.05) and some["p99_s"] is None
    assert many["p95_s"] == pytest.approx(95.05) and many["p99_s"] == pytest.approx(99.01)
    assert latency.ms(None) == " " * len(latency.ms(.5)) and latency.ms(.5).strip() == "500.00"


def test_bench_reports_every_figure_of_a_chunk(monkeypatch, capsys, tmp_path):
    """The whole table at the smallest size that has every part; its command is in the README at full size."""
    from conftest import VARIANTS
    small = replace(CONFIGS["a1_3b_release"], model=replace(VARIANTS["qwen"], vae="cosmos", vae_size=32))
    monkeypatch.setitem(CONFIGS, "small", small)
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(roofline, "time_alone", lambda *key: 1e-6)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    bench.run(["--config", "small", "--device", "cpu", "--dtype", "bfloat16", "--random", "--blocks", "1", "--euler_steps", "5",
               "--json", "out.json"])
    printed, report = capsys.readouterr().out, bench.json.loads((tmp_path / "out.json").read_text())
    for words in ("plain arm", latency.MISS, latency.HIT, latency.FORESIGHT, "critical path", "equality", "copy", "GFLOP",
                  "decode: pictures", "5 Euler steps", "every arm 2 times", "start-up of the engine", "arms together",
                  "eager ops: operations that the eager engine launches", f"{small.model.euler_steps} Euler steps",
                  "random weights of seed 0", "ONEDNN_MAX_CPU_ISA=AVX2", bench.processor()):
        assert words in printed, words
    assert [line for line in printed.splitlines() if "not measured" in line] == [
        "plain arm under torch.compile: not measured; --compiled_arm adds it (compiling takes long on a CPU)"]
    assert not any(words in printed for words in ("prediction", "launched one by one", "kernels"))   # only on a GPU
    assert (report["euler_steps"], report["weights_seed"], report["onednn_max_cpu_isa"]) == (small.model.euler_steps, 0, "AVX2")
    assert report["startup"]["first_call_s"] > 0 and report["peak_memory_gb"] > 0
    phases, totals = report["phases"], report["totals"]
    assert set(phases) == set().union(*latency.cases("Euler steps").values())
    assert all(row["calls"] >= 3 and row["p95_s"] is None and row["eager_ops"] > 0 for row in phases.values())
    assert phases["VAE encode, 6 frames"]["gflop"] == pytest.approx(2 * phases["VAE encode, 3 frames"]["gflop"])
    assert totals[latency.MISS]["p50_s"] == pytest.approx(sum(phases[label]["p50_s"] for label in
                                                              latency.cases("Euler steps")[latency.MISS]))
    engines = {latency.MISS, latency.HIT, latency.FORESIGHT}
    assert set(report["ratios"]) == set(totals) == engines and set(report["arms"]) == engines | {latency.PLAIN}
    assert all(low is high is None for _, low, high in report["ratios"].values())   # two calls have no interval
    for name, arm in report["arms"].items():
        assert arm["calls"] == len(arm["seconds"]) == 2 and arm["p95_s"] is None and arm["first_call_s"] > 0
        assert name == latency.PLAIN or arm["peak_fraction"] == pytest.approx(totals[name]["peak_floor_s"] / arm["p50_s"])
    assert any("launched one by one" in line for line in latency.lines(report | {"engine": "graph"}))
    assert report["difference_rms"] < .05 * report["action_rms"] and report["fewer_steps"]["action_error_rms"] > 0


def test_bench_drives_a_control_loop_with_and_without_the_background(capsys):
    bench.run(["--config", "conveyor", "--control", "0.5"])
    *rows, note = capsys.readouterr().out.splitlines()[1:]
    assert note.startswith("without the first step")
    assert [row.split("  ")[0] for row in rows] == ["planned in the step", "planned in the background"]
    assert all("15 steps" in row and "p50" in row and "starved" in row for row in rows)


def test_compiled_arms_are_timed_and_a_gpus_figures_are_added_and_printed(monkeypatch):
    """One graph of the plain arm here, with a backend that counts; fewer steps are timed in the engine's mode. The
    figures of a GPU are those of a profiler that counts 1,000 kernels in every call."""
    from conftest import VARIANTS
    counter, inner, modes = CompileCounterWithBackend("eager"), torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda f, **options: inner(f, **options | {"mode": None, "backend": counter}))
    monkeypatch.setattr(latency, "Engine", lambda *args: modes.append(args[1:]) or Engine(*args))
    monkeypatch.setattr(roofline, "time_alone", lambda *key: 1e-6)
    rates = dict.fromkeys(("copy_gb_s", "large_gemm_tflop_s", "gemm_m51_tflop_s"), 1.0)
    monkeypatch.setattr(roofline, "probes", lambda *_: rates)
    monkeypatch.setattr(roofline, "kernels", lambda run: 1000)
    kept, record = {}, latency.record
    monkeypatch.setattr(latency, "record", lambda *of: kept.setdefault("ledgers", record(*of)))
    report = latency.measure(replace(VARIANTS["qwen"], layers=1, euler_steps=2), "cpu", torch.float32, "compile", blocks=1,
                             compiled_arm=True, euler_steps=1)
    assert counter.frame_count >= 1 and len(report["arms"]["plain arm, torch.compile"]["seconds"]) == 2
    assert modes == [("compile",), ("compile", 1)] and report["fewer_steps"]["calls"] == 2
    report |= {"engine": "graph", "startup": report["startup"] | {"peak_memory_gb": 3}}
    report["arms"] = {name: row | {"peak_memory_gb": 2} for name, row in report["arms"].items()}
    latency.add_gpu_figures(report, dict.fromkeys(report["arms"], lambda: sum(range(10000))), kept["ledgers"], 1,
                            torch.device("cpu"), torch.bfloat16)
    assert all(row["kernels"] == 1000 and row["cpu_ms"] > 0 for row in report["arms"].values())
    predicted = report["predicted_4090_s"]
    assert 1.2e-3 < predicted[latency.HIT] < predicted[latency.MISS] and latency.FORESIGHT in predicted
    work = sum((kept["ledgers"][label].work for label in latency.cases("Euler steps")[latency.HIT]), Counter())
    assert predicted[latency.HIT] == roofline.predict_4090(work, 1000)
    printed = "\n".join(latency.lines(report))
    assert printed.count("prediction, not a measurement, for an RTX 4090") == 3 and "peak memory 3.0 GB" in printed
    assert printed.count("1,000 kernels, peak memory 2.0 GB") == 5 and "arms together" not in printed


def test_a_prediction_is_made_for_a_graph_in_bfloat16_alone(monkeypatch):
    monkeypatch.setattr(roofline, "kernels", lambda run: 1)
    monkeypatch.setattr(latency, "predictions", lambda *of: "made")
    for mode, dtype in (("graph", torch.float32), ("compile", torch.bfloat16), ("graph", torch.bfloat16)):
        report = {"engine": mode, "arms": {"a": {}}}
        latency.add_gpu_figures(report, {"a": list}, {}, 1, torch.device("cpu"), dtype)
    assert "predicted_4090_s" in report and report["arms"]["a"]["kernels"] == 1


def test_a_phase_that_fails_leaves_the_engine_as_it_was(build, tiny):
    engine = Engine(build(tiny))
    with pytest.raises(ZeroDivisionError), latency.watched(engine, lambda label, phase, *args: 1 / 0):
        engine(random_batch(tiny), torch.zeros(1, tiny.chunk, tiny.action_dim))
    assert not set(latency.PHASES) & set(vars(engine))


@pytest.mark.parametrize("flags, message", [
    ("--engine graph", "--engine graph records a CUDA graph"),
    ("--blocks 0", "--blocks must be at least 1, got 0"), ("--euler_steps -1", "--euler_steps must be at least 1, got -1"),
    ("--euler_steps 0", "at least 1"), ("--control 0", "--control 0: give the seconds"), ("--control -1", "--control -1"),
    ("--control 1 --blocks 2 --compiled_arm", "without --blocks, --compiled_arm"),
    ("--control 1 --euler_steps 5", "without --euler_steps")])
def test_bench_refuses_flags_of_latency_before_it_builds_anything(flags, message, monkeypatch):
    for name in ("measure", "control"):
        monkeypatch.setattr(bench, name, None)
    with pytest.raises(ValueError, match=message):
        bench.run(["--config", "a1_2b", *flags.split()])


def test_bench_refuses_what_it_cannot_compare(capsys):
    with pytest.raises(ValueError, match="--control times any"):
        bench.run(["--config", "conveyor"])
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="sees no GPU"):
            bench.run(["--config", "a1_2b", "--device", "cuda"])
