"""bench.py's measurements: the plain arm computes the model, work is counted from shapes, ratios have an interval."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

import bench
from config import CONFIGS
from support import latency, roofline
from support.engine import Engine, Program, Shape, random_batch
from support.plain_arm import PlainArm
from support.weights import empty_model


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
    assert roofline.predict_4090(work, fraction=.5) == pytest.approx(2 * (2e7 / 165e12 + 3 * 2e6 / 1008e9))
    times = dict(zip(work, (.25, 2.0)))
    assert roofline.shape_floor(work, times) == 6.25


@pytest.mark.parametrize("rows", [1, 100, 822])
@pytest.mark.parametrize("product", [roofline.linear, F.linear])
def test_the_weight_of_a_product_is_the_operand_that_the_run_did_not_compute(product, rows):
    """More rows than outputs or fewer, on the left (support/linear.py, few rows) or on the right."""
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
    """support/linear.py: with and without bias, few rows and many."""
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
    assert latency.ratio([1, 1], [1, 1]) == (1, 1, 1)


def test_bench_reports_every_figure_of_a_chunk(monkeypatch, capsys, tmp_path):
    """The whole table at the smallest size that has every part; its command is in the README at full size."""
    from conftest import VARIANTS
    small = replace(CONFIGS["a1_3b_release"], model=replace(VARIANTS["qwen"], vae="cosmos", vae_size=32))
    monkeypatch.setitem(CONFIGS, "small", small)
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(roofline, "time_alone", lambda *key: 1e-6)
    bench.run(["--config", "small", "--device", "cpu", "--dtype", "bfloat16", "--random", "--blocks", "1", "--euler_steps", "5",
               "--json", "out.json"])
    printed, report = capsys.readouterr().out, bench.json.loads((tmp_path / "out.json").read_text())
    for words in ("plain arm", latency.MISS, latency.HIT, "critical path", "equality", "copy", "GFLOP", "decode: pictures",
                  "5 Euler steps", "under torch.compile: not measured"):
        assert words in printed, words
    assert "prediction" not in printed   # only where a GPU was measured
    phases, totals = report["phases"], report["totals"]
    assert set(phases) == set().union(*latency.cases("Euler steps").values())
    assert phases["VAE encode, 6 frames"]["gflop"] == pytest.approx(2 * phases["VAE encode, 3 frames"]["gflop"])
    assert totals[latency.MISS]["p50_s"] == pytest.approx(sum(phases[label]["p50_s"] for label in
                                                              latency.cases("Euler steps")[latency.MISS]))
    assert set(report["ratios"]) == {latency.MISS, latency.HIT}
    for name in (latency.MISS, latency.HIT):
        arm = report["arms"][name]
        assert arm["peak_fraction"] == pytest.approx(totals[name]["peak_floor_s"] / arm["p50_s"])
    assert "launched one by one" not in printed
    assert any("launched one by one" in line for line in latency.lines(report | {"engine": "graph"}))
    assert report["difference_rms"] < .05 * report["action_rms"] and report["fewer_steps"]["action_error_rms"] > 0


def test_bench_drives_a_control_loop_with_and_without_the_background(capsys):
    bench.run(["--config", "conveyor", "--control", "0.5"])
    *rows, note = capsys.readouterr().out.splitlines()[1:]
    assert note.startswith("without the first step")
    assert [row.split("  ")[0] for row in rows] == ["planned in the step", "planned in the background"]
    assert all("15 steps" in row and "p50" in row and "starved" in row for row in rows)


def test_the_compiled_plain_arm_is_timed_and_a_prediction_follows_from_what_is_reached(monkeypatch):
    """One graph of the plain arm here, with a backend that counts; its chunk is the plain arm's."""
    from conftest import VARIANTS
    counter, inner = CompileCounterWithBackend("eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda arm, mode: inner(arm, backend=counter))
    monkeypatch.setattr(roofline, "time_alone", lambda *key: 1e-6)
    monkeypatch.setattr(roofline, "probes", lambda *_: dict.fromkeys(("copy_gb_s", "large_gemm_tflop_s"), 1.0))
    kept, record = {}, latency.record
    monkeypatch.setattr(latency, "record", lambda *of: kept.setdefault("ledgers", record(*of)))
    report = latency.measure(replace(VARIANTS["qwen"], layers=1, euler_steps=1), "cpu", torch.float32, blocks=1, compiled_arm=True)
    assert counter.frame_count >= 1 and "plain arm, torch.compile" in report["ratios"]
    assert len(report["arms"]["plain arm, torch.compile"]["seconds"]) == 2
    arms = {name: {"peak_fraction": .25} for name in (latency.MISS, latency.HIT)}
    far, near = latency.predictions(kept["ledgers"], arms), latency.predictions(
        kept["ledgers"], {name: {"peak_fraction": .5} for name in arms})
    assert all(far[name] == pytest.approx(2 * near[name]) and near[name] > 0 for name in arms)
    assert far[latency.HIT] < far[latency.MISS]


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
