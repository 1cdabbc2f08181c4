"""The parts of `python -m bench card`. Each is a generator of (row, {figure: number}) and raises what it finds wrong.

A figure "difference" stands beside what is "allowed"; bench/card.py makes a fault of a larger one."""

import math
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from torch.utils.benchmark import timer

from attention_mask import segments
from bench.chunk import HIT, MISS, as_read, calls_of, flop_of, product_rate, random_inputs, random_model, seconds_of
from bench.latency import control as control_loop
from config import get_config
from experts import attend
from model import InternVLA_A1
from support.files import must
from support.inference.engine import Engine
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


class Card:
    """Where and how thoroughly a part is run. tiny: networks of a rehearsal, on the CPU."""

    def __init__(self, quick, tiny):
        self.quick, self.tiny = quick, tiny
        self.device = torch.device("cpu" if tiny else "cuda")
        self.repeats = 3 if tiny else 20 if quick else 60

    def config(self, preset):
        """The preset; in a rehearsal with conveyor's network."""
        config = get_config(preset)
        small = {"model": get_config("conveyor").model, "train": replace(config.train, batch_size=2)}
        return replace(config, **small) if self.tiny else config

    def spread(self, call):
        """Median and 95th percentile of the call's time, repeated for about 3 s, after two that are not counted."""
        call()
        repeats = max(3, min(self.repeats, round(3 / seconds_of(call))))
        times = sorted(1e3 * seconds_of(call) for _ in range(repeats))
        return {"p50 ms": statistics.median(times), "p95 ms": times[math.ceil(0.95 * repeats) - 1]}

    def copy_rate(self):
        """Bytes a second that the device reads and writes, best of four."""
        x = torch.ones(GIB // 16 if self.tiny else GIB, dtype=torch.uint8, device=self.device)
        return 2 * x.nbytes / min(seconds_of(x.clone) for _ in range(4))


def rates(card):
    """What the units of the card reach: the two ceilings of all that follows."""
    for dtype in (torch.bfloat16, torch.float32):
        yield f"product of 8192 x 8192, {str(dtype)[6:]}", {"TFLOP/s": product_rate(card.device, dtype) / 1e12}
    yield "copy on the device", {"GB/s": card.copy_rate() / 1e9}
    if not card.tiny:
        here = torch.empty(GIB, dtype=torch.uint8, pin_memory=True)
        there = here.to(card.device)
        seconds = min(seconds_of(partial(there.copy_, here, non_blocking=True)) for _ in range(4))
        yield "copy from the host", {"GB/s": here.nbytes / seconds / 1e9}


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
        found.append([p.grad.cpu().clone() for p in model.parameters() if p.grad is not None])
    apart = max(float((other - x).norm() / x.norm()) for x, other in zip(*found, strict=True) if x.any())
    yield "gradients of a step, against the CPU's", {"difference": apart, "allowed": GRADIENT}


def tests(card):
    """The tests that need a GPU. Most of their time is compiling."""
    ended = subprocess.run([sys.executable, "-m", "pytest", "-q", "-rf", TESTS], capture_output=True, text=True)
    print(ended.stdout, file=sys.stderr)
    closing = ended.stdout.strip().splitlines()[-1].strip("= ")
    must(ended.returncode == 0, f"{TESTS}: {closing}")
    yield f"{TESTS}: {closing}", {}


def attention(card):
    """Attention of a micro-batch, forward and backward, as experts.attend does it and with grouped heads; each without
    cuDNN's kernels, too, which torch prefers on an H100 and not on an RTX 4090."""
    for preset in ("a1_2b", "a1_3b"):
        config = card.config(preset)
        c, B, n = config.model, config.train.batch_size, len(segments(on_meta(config.model).layout))
        bias = torch.zeros(B, 1, n, n, dtype=torch.bfloat16, device=card.device)   # its values cost nothing
        q, k, v = (torch.randn(B, heads, n, c.head_dim, dtype=torch.bfloat16, device=card.device, requires_grad=True)
                   for heads in (c.heads, c.kv_heads, c.kv_heads))
        grouped = partial(F.scaled_dot_product_attention, enable_gqa=True)
        ways = {"experts.attend": attend, "grouped heads, mask": grouped}
        for name, way, cudnn in [(name, way, cudnn) for name, way in ways.items() for cudnn in (True, False)]:
            torch.backends.cuda.enable_cudnn_sdp(cudnn)

            def call():
                way(q, k, v, bias).sum().backward()
            figures = card.spread(call)
            if not card.tiny:
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                call()
                figures["MiB"] = (torch.cuda.max_memory_allocated() - before) / 2 ** 20
            yield f"{preset}, {n} tokens x {B}: {name}{'' if cudnn else ', without cuDNN'}", figures


def ranks(card):
    """A group of one rank, DDP and FSDP2, over NCCL (a rehearsal: gloo): the loss and gradients of a plain process."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29531"}
    config, group, found = get_config("conveyor"), Ranks(), {}
    for name, shard in (("plain", None), ("DDP", False), ("FSDP2", True)):
        torch.manual_seed(0)
        model, inputs = InternVLA_A1(config.model), memory.synthetic(config.model, 4)
        call = model.to(card.device) if shard is None else prepare(model, config.train, group, shard)[0]
        loss = call(*(x.to(card.device) for x in inputs)).total(config.model.lambda_gen, 1, 1)
        loss.backward()
        found[name] = torch.stack([loss.detach(), global_norm(model.parameters())]).cpu()
    group.close()
    plain = found.pop("plain")
    for name, seen in found.items():
        yield f"{name}, one rank", {"difference": float(((seen - plain) / plain).abs().max()), "allowed": LOSS}


def chunk(card, preset):
    """One action chunk, bfloat16, three views: model.py as it is read, then the engine's modes.

    of floor: the time that the bytes of its weights, and of model.py alone its products, take at least at the card's
    own rates, as a share of the median."""
    config = card.config(preset).model
    model, inputs = random_model(config, card.device, torch.bfloat16), random_inputs(config, card.device)
    rate, bandwidth = product_rate(card.device, torch.bfloat16), card.copy_rate()
    act = sum(p.nbytes for layer in model.layers for p in layer.act.parameters())
    whole = sum(p.nbytes for p in model.parameters())

    def figures(call, steps, flop=0):
        found, floor = card.spread(call), max(flop / rate, (whole + (steps - 1) * act) / bandwidth)
        found |= {"chunks/s": 1e3 / found["p50 ms"], "of floor": 1e3 * floor / found["p50 ms"]}
        if not (card.quick or card.tiny):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
                call()
                torch.cuda.synchronize()
            found["kernels"] = sum(event.count for event in seen.key_averages() if event.self_device_time_total)
        return found
    plain = as_read(model, *inputs[:2])
    flop, exact = flop_of(plain), plain().float()
    yield "model.py as it is read", figures(plain, config.euler_steps, flop) | {"TFLOP": flop / 1e12}
    modes = [("eager", None, None)] if card.tiny else [("graph", "eager", None), ("graph", "eager", 2)]
    if not (card.quick or card.tiny):   # to compile takes a minute or two
        modes = [("graph", None, None), ("graph", None, 2), *modes]
    for mode, backend, steps in modes:
        began = timer()
        engine, steps = Engine(model, mode, steps, backend=backend), steps or config.euler_steps
        how = f"graph, {'not ' if backend else ''}compiled" if mode == "graph" else mode
        name = f"{how}, {steps} steps"
        yield f"{name}: start", {"s": timer() - began}
        calls = calls_of(engine, *inputs)
        if steps == config.euler_steps:
            apart = (calls[MISS]().actions.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
            yield f"{name}: against model.py, rms", {"difference": float(apart), "allowed": 0.05}
        for label, way in (("both frames encoded", MISS), ("latents kept", HIT)):
            yield f"{name}: {label}", figures(calls[way], steps)
        del engine, calls
    if not (card.quick or card.tiny):
        batch, eps, _ = (x.to(card.device) for x in inputs)
        fast, began = torch.compile(lambda: model.sample_actions(batch, eps, prefix=model.prefill(batch))), timer()
        with torch.no_grad():
            fast()
            yield "torch.compile of model.py: start", {"s": timer() - began}
            yield "torch.compile of model.py", figures(fast, config.euler_steps, flop)


def training(card, preset):
    """Optimizer steps with a preset's own flags, under a cap of CAP GiB: memory, speed, and what the update costs."""
    config = card.config(preset)
    train, accumulate = config.train, 1 if card.tiny else 4 if card.quick else 16
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

    times = []
    for step, micro_batches in enumerate((1, 1, accumulate, accumulate)):
        if step == 2:   # the states are made, kernels chosen
            began, times = timer(), []
        times += [seconds_of(micro) for _ in range(micro_batches)]
        optimizer.step(train.lr, clip_scale(global_norm(optimizer.parameters.values()), train.clip))
        optimizer.zero_grad()
    optimizer.finish()
    seconds = timer() - began
    peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()   # 0 without a GPU
    forward = flop_of(lambda: model(*inputs))
    samples = 2 * accumulate * train.batch_size / seconds
    yield memory.describe(train), {
        "samples/s": samples, "s a micro-batch": statistics.median(times), "s a step": seconds / 2,
        "MFU": 3 * forward / train.batch_size * samples / product_rate(card.device, torch.bfloat16)}
    yield "memory", {"peak GiB": peak / GIB, "cap GiB": CAP, "reserved GiB": reserved / GIB}
    if not card.quick:   # it takes half a minute
        yield "memory, as --dry-run predicts it", {"GiB": memory.predict(config).device / GIB}


def control(card):
    """policy.step at 30 Hz, planned in the step and in the background."""
    config, mode = card.config("a1_2b"), "eager" if card.tiny else "graph"
    model = random_model(config.model, card.device, torch.float32 if card.tiny else torch.bfloat16)
    with mock.patch("support.inference.engine.Engine", partial(Engine, backend="eager")):   # not compiled: starts soon
        for name, found in control_loop(model, config, mode, 1 if card.tiny else 4 if card.quick else 10).items():
            yield f"a1_2b, 30 Hz, {name}", found


PARTS = {part.__name__: part for part in (rates, agreement, chunk, training, control, attention, ranks, tests)}
