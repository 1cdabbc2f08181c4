"""The parts of `python -m bench card`. Each is a generator of (row, {figure: number}) and raises what it finds wrong.

A figure "difference" stands beside what is "allowed"; bench/card.py makes a fault of a larger one."""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F

from attention_mask import attention_bias, draws, segment_mask, segments
from bench.chunk import HIT, MISS, as_read, calls_of, flop_of, product_rate, random_model, seconds_of
from bench.latency import control as control_loop
from config import get_config
from experts import attend
from model import InternVLA_A1
from support.files import must
from support.inference.engine import Engine, random_batch
from support.table1 import on_meta
from support.training import memory
from support.training.optimizers import adamw, clip_scale, global_norm
from support.training.prepare import prepare
from support.training.ranks import Ranks

CAP = 24            # GiB that training may take on any card: an RTX 4090's
TESTS = "tests/support/test_gpu.py"
GRADIENT = 1e-3     # relative: how far a gradient may be from the CPU's, in float32 without TF32
LOSS = 1e-5         # the same of a loss, between a plain process and a group of one rank
GIB = 2 ** 30


def rows(part, quick, tiny):
    """The rows of a part. tiny: networks of a rehearsal, on the CPU."""
    name, _, preset = part.partition(" ")
    return PARTS[name](Card(quick, tiny), *([preset] if preset else []))


class Card:
    """Where and how thoroughly a part is run."""

    def __init__(self, quick, tiny):
        self.quick, self.tiny = quick, tiny
        self.device = torch.device("cpu" if tiny else "cuda")
        self.repeats = 3 if tiny else 20 if quick else 60

    def config(self, preset):
        """The preset; in a rehearsal with conveyor's network."""
        config = get_config(preset)
        if not self.tiny:
            return config
        return replace(config, model=get_config("conveyor").model, train=replace(config.train, batch_size=2))

    def times(self, call):
        """Seconds of the call, repeatedly but for about 3 s, after two that are not counted."""
        found = [seconds_of(call, self.device) for _ in range(2)]
        repeats = max(3, min(self.repeats, round(3 / found[1])))
        return [seconds_of(call, self.device) for _ in range(repeats)]

    def kernels(self, call):
        """(CUDA kernels of a call, the name of the one that takes most time); (0, "") on a CPU."""
        if self.tiny:
            return 0, ""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            call()
            torch.cuda.synchronize()
        events = [event for event in seen.key_averages() if event.self_device_time_total]
        longest = max(events, key=lambda event: event.self_device_time_total)
        return sum(event.count for event in events), longest.key[:60]

    def copy_rate(self, host=False):
        """Bytes a second, best of four: read and written on the device, or sent to it from pinned memory."""
        there = torch.randint(256, (GIB if self.device.type == "cuda" else GIB // 16,), dtype=torch.uint8,
                              device=self.device)
        here = torch.empty(there.shape, dtype=there.dtype, pin_memory=True) if host else torch.empty_like(there)
        call = partial(there.copy_, here, non_blocking=True) if host else partial(here.copy_, there)
        return (1 if host else 2) * len(there) / min(seconds_of(call, self.device) for _ in range(4))


def spread(times):
    return {"p50 ms": 1e3 * statistics.median(times), "p95 ms": 1e3 * sorted(times)[math.ceil(0.95 * len(times)) - 1]}


def rates(card):
    """What the units of the card reach: the two ceilings of all that follows."""
    for dtype in (torch.bfloat16, torch.float32):
        yield f"product of 8192 x 8192, {str(dtype)[6:]}", {"TFLOP/s": product_rate(card.device, dtype) / 1e12}
    yield "copy on the device", {"GB/s": card.copy_rate() / 1e9}
    if not card.tiny:
        yield "copy from the host", {"GB/s": card.copy_rate(host=True) / 1e9}


def agreement(card):
    """The gradients of a training step beside the CPU's."""
    torch.backends.cudnn.allow_tf32 = False
    config, found = get_config("conveyor").model, []
    torch.manual_seed(0)
    model, inputs = InternVLA_A1(config), memory.synthetic(config, 4)
    for device in (torch.device("cpu"), card.device):
        model.to(device).zero_grad()
        model(*(x.to(device) for x in inputs)).total(config.lambda_gen, 1, 1).backward()
        # A copy: moving a module moves its gradients in place.
        found.append({name: p.grad.cpu().clone() for name, p in model.named_parameters() if p.grad is not None})
    apart = max(float(torch.linalg.vector_norm(found[1][name] - x) / torch.linalg.vector_norm(x))
                for name, x in found[0].items() if x.any())
    yield "gradients of a step, against the CPU's", {"difference": apart, "allowed": GRADIENT}


def tests(card):
    """The tests that need a GPU. Most of their time is compiling."""
    ended = subprocess.run([sys.executable, "-m", "pytest", "-q", "-rf", TESTS], capture_output=True, text=True)
    print(ended.stdout, file=sys.stderr)
    closing = ended.stdout.strip().splitlines()[-1].strip("= ")
    must(ended.returncode == 0, f"{TESTS}: {closing}")
    yield f"{TESTS}: {closing}", {}


def attention(card):
    """Attention in training, the whole joint sequence of a micro-batch, forward and backward: as experts.attend does
    it, with grouped heads and a mask, and without a mask, which nobody may do. torch prefers cuDNN's kernels on an H100
    and not on an RTX 4090, so each is timed without them, too."""
    for preset in ("a1_2b", "a1_3b"):
        config = card.config(preset)
        c, B, layout = config.model, config.train.batch_size, on_meta(config.model).layout
        segment = segments(layout)
        allowed = segment_mask(segment, draws(layout), torch.ones(B, len(segment), dtype=torch.bool))
        bias = attention_bias(allowed, torch.bfloat16).to(card.device)

        def heads(n):
            return torch.randn(B, n, len(segment), c.head_dim, dtype=torch.bfloat16, device=card.device,
                               requires_grad=True)
        q, k, v = heads(c.heads), heads(c.kv_heads), heads(c.kv_heads)
        ways = {"experts.attend": lambda: attend(q, k, v, bias),
                "grouped heads, mask": lambda: F.scaled_dot_product_attention(q, k, v, bias, enable_gqa=True),
                "grouped heads, no mask": lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)}
        for name, way, cudnn in [(name, way, cudnn) for name, way in ways.items() for cudnn in (True, False)]:
            torch.backends.cuda.enable_cudnn_sdp(cudnn)

            def call():
                way().sum().backward()
            figures = spread(card.times(call))
            if not card.tiny:
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                call()
                figures["MiB"] = (torch.cuda.max_memory_allocated() - before) / 2 ** 20
            name += "" if cudnn else ", without cuDNN"
            yield f"{preset}, {len(segment)} tokens x {B}: {name}", figures | {"kernel": card.kernels(call)[1]}


def ranks(card):
    """A group of one rank, DDP and FSDP2, over NCCL (a rehearsal: gloo): the loss and gradients of a plain process."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29531"}
    config, plain = get_config("conveyor"), None
    group = Ranks()
    for name, shard in (("plain", None), ("DDP", False), ("FSDP2", True)):
        torch.manual_seed(0)
        model, inputs = InternVLA_A1(config.model), memory.synthetic(config.model, 4)
        if shard is None:
            call = model.to(card.device)
        else:
            call, _, _ = prepare(model, config.train, group, shard)
        losses = call(*(x.to(card.device) for x in inputs))
        loss = losses.total(config.model.lambda_gen, 1, 1)
        loss.backward()
        seen = torch.stack([loss.detach(), global_norm(model.parameters())]).cpu()
        if plain is None:
            plain = seen
        else:
            yield f"{name}, one rank", {"difference": float(((seen - plain) / plain).abs().max()), "allowed": LOSS}
    group.close()


def chunk(card, preset):
    """One action chunk, bfloat16, three views: model.py as it is read, then the engine's modes.

    of floor: the time that the bytes of its weights, and of model.py alone its products, take at least at the card's
    own rates, as a share of the median."""
    config = card.config(preset).model
    model = random_model(config, card.device, torch.bfloat16)
    batch, eps = random_batch(config), torch.randn(1, config.chunk, config.action_dim)
    z_past = torch.randn(1, 3, 16, config.latent_grid, config.latent_grid, device=card.device)
    rate, bandwidth = product_rate(card.device, torch.bfloat16), card.copy_rate()
    act = sum(p.nbytes for layer in model.layers for p in layer.act.parameters())
    whole = sum(p.nbytes for p in model.parameters())

    def figures(call, steps=config.euler_steps, flop=None):
        times = card.times(call)
        floor = max((flop or 0) / rate, (whole + (steps - 1) * act) / bandwidth)
        found = spread(times) | {"chunks/s": 1 / statistics.median(times), "of floor": floor / statistics.median(times)}
        return found if card.quick else found | {"kernels": card.kernels(call)[0]}
    plain = as_read(model, batch.to(card.device), eps.to(card.device))
    flop, exact = flop_of(plain), plain().float()
    yield "model.py as it is read", figures(plain, flop=flop) | {"TFLOP": flop / 1e12}
    modes = [("eager", None, None)] if card.tiny else [("graph", "eager", None), ("graph", "eager", 2)]
    if not (card.quick or card.tiny):   # to compile takes a minute or two
        modes = [("graph", None, None), ("graph", None, 2), *modes, ("eager", None, None)]
    for mode, backend, steps in modes:
        began = time.perf_counter()
        engine = Engine(model, mode, steps, backend=backend)
        how = f"graph, {'not ' if backend else ''}compiled" if mode == "graph" else mode
        name = f"{how}, {steps or config.euler_steps} steps"
        yield f"{name}: start", {"s": time.perf_counter() - began}
        calls = calls_of(engine, batch, eps, z_past)
        if steps is None:
            apart = (calls[MISS]().actions.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
            yield f"{name}: against model.py, rms", {"difference": float(apart), "allowed": 0.05}
        for label, way in (("both frames encoded", MISS), ("latents kept", HIT)):
            yield f"{name}: {label}", figures(calls[way], steps or config.euler_steps)
        del engine, calls
    if not (card.quick or card.tiny):
        fast = torch.compile(lambda: model.sample_actions(*there, prefix=model.prefill(there[0])))
        there = batch.to(card.device), eps.to(card.device)
        with torch.no_grad():
            began = time.perf_counter()
            fast()
            yield "torch.compile of model.py: start", {"s": time.perf_counter() - began}
            yield "torch.compile of model.py", figures(fast, flop=flop)


def training(card, preset):
    """Optimizer steps with a preset's own flags, under a cap of CAP GiB: memory, speed, and what the update costs."""
    config = card.config(preset)
    train, accumulate = config.train, 1 if card.tiny else 4 if card.quick else 16
    torch.manual_seed(0)
    with torch.device(card.device):   # made there: a minute less than on the CPU, where train.py makes it
        model = InternVLA_A1(config.model)
    _, masters, _ = prepare(model, train, Ranks(), False)
    optimizer = adamw(train.optimizer, model, masters)
    if not card.tiny:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.set_per_process_memory_fraction(min(1, CAP / memory.card(card.device)))
    inputs = [x.to(card.device) for x in memory.synthetic(config.model, train.batch_size)]

    def micro():
        model(*inputs).total(config.model.lambda_gen, 1, 1).backward()

    def step(accumulate):
        times = [seconds_of(micro, card.device) for _ in range(accumulate)]
        norm = global_norm(optimizer.parameters.values())
        optimizer.step(train.lr, clip_scale(norm, train.clip))
        optimizer.zero_grad()
        return times
    for _ in range(2):   # the states are made, kernels chosen
        step(1)
    began = time.perf_counter()
    times = step(accumulate) + step(accumulate)
    optimizer.finish()
    seconds = seconds_of(lambda: None, card.device) + time.perf_counter() - began
    peaks = {} if card.tiny else {"peak GiB": torch.cuda.max_memory_allocated() / GIB, "cap GiB": CAP,
                                  "reserved GiB": torch.cuda.max_memory_reserved() / GIB}
    forward = flop_of(lambda: model(*inputs))
    samples = 2 * accumulate * train.batch_size / seconds
    yield f"{memory.describe(train)}", {
        "samples/s": samples, "s a micro-batch": statistics.median(times), "s a step": seconds / 2,
        "MFU": 3 * forward / train.batch_size * samples / product_rate(card.device, torch.bfloat16)}
    yield "memory", peaks
    if not card.quick:   # it takes half a minute
        yield "memory, as --dry-run predicts it", {"GiB": memory.predict(config).device / GIB}


def control(card):
    """policy.step at 30 Hz, planned in the step and in the background."""
    config, mode = card.config("a1_2b"), "eager" if card.tiny else "graph"
    model = random_model(config.model, card.device, torch.float32 if card.tiny else torch.bfloat16)
    with mock.patch("support.inference.engine.Engine", partial(Engine, backend="eager")):   # not compiled: starts soon
        for name, found in control_loop(model, config, mode, 1 if card.tiny else 4 if card.quick else 10).items():
            yield f"a1_2b, 30 Hz, {name}", {key: found[key] for key in ("p50_ms", "p99_ms", "max_ms", "steps", "plans",
                                                                       "starved", "late")}


def conveyor(card):
    """The main job, as in the README."""
    few = "--steps 4 --decay_steps 4 --warmup_steps 1 --eval_windows 8 --episodes 2".split() if card.tiny else []
    with tempfile.TemporaryDirectory() as out:
        ended = subprocess.run([sys.executable, "train.py", "--config", "conveyor", "--out", out, *few],
                               capture_output=True, text=True)
        must(ended.returncode == 0, (ended.stderr.strip().splitlines() or ["train.py ended"])[-1])
        report = json.loads((Path(out) / "report.json").read_text())
        steps = [json.loads(line)["seconds"] for line in open(Path(out) / "timing.jsonl")]
    yield f"{report['steps']} steps", {"s in all": report["seconds"], "ms a step": 1e3 * statistics.median(steps)}
    yield "success", {suite: report[suite]["success"] for suite in ("static", "dynamic")}


PARTS = {part.__name__: part
         for part in (rates, agreement, chunk, training, control, attention, ranks, tests, conveyor)}
