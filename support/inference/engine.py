"""Fast inference: the savings that model.py leaves out, as transformations of a built model.

docs/realtime.md lists what it saves, and tests/support/test_engine.py holds each saving equal to the plain path.
Running a `Program` (support/inference/buffers.py) is a fixed list of operations: no value is read back, no shape
depends on data. So it can be one CUDA graph, in which four functions are compiled once.
"""

import copy
import threading
from functools import lru_cache, partial, wraps
from typing import NamedTuple

import torch
import torch.nn.functional as F

import flow
from support.files import must
from support.inference.buffers import Program, Shape, random_batch
from support.inference.fused import BlockWeights, block, compiled, fold_compression
from support.inference.handover import Guide
from support.vision import vit_block

MODES = ("eager", "compile", "graph")
PROGRAMS = 8   # kept, those used last: each has buffers, tables and perhaps a graph of its own
# How far a mode may be from model.py when it starts: rms of the difference, as a share of the actions' own. bfloat16
# keeps 8 bits of a number; over all layers of the 3B it leaves 0.3 %. float32 leaves 1e-6, on a GPU more, where cuDNN
# rounds to 11 bits in the VAE. What goes wrong in a compiler or a recording is of the size of the actions themselves.
TOLERANCE = {torch.bfloat16: 5e-2, torch.float32: 1e-2}


def default_mode(device):
    """The mode for many chunks on a device: on a CPU compiling takes a minute and needs a C++ compiler."""
    return "graph" if torch.device(device).type == "cuda" else "eager"


class Chunk(NamedTuple):
    """One call's results, zeros where a view is missing; without a generation expert z and z_hat are None."""

    actions: torch.Tensor       # (B, k, d_a) float32, standardised
    z: torch.Tensor = None      # (B, V, 16, g, g) float32: latents of o_t, the z_past of m frames later
    z_hat: torch.Tensor = None  # (B, V, 16, g, g) float32, when asked for


def cuda_capture(run):
    """Record run() as one CUDA graph -> a function that replays it and returns its outputs, the same tensors always."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):   # lazily created handles and workspaces must exist before recording
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # The stream is given because torch keeps its own on the device it was first used on; other threads may go on.
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        out = run()

    def replay():
        graph.replay()
        return out
    return replay


def entry(method):
    """A way in: one thread at a time, on the model's device, never in inference mode, which compiles all again."""
    @wraps(method)
    @torch.inference_mode(False)
    @torch.no_grad()
    def call(self, *args, **kwargs):
        with self.lock, torch.cuda.device_of(self.view_tokens):   # no-op on a CPU
            return method(self, *args, **kwargs)
    return call


class Engine:
    """engine(batch, eps) -> Chunk, equal to model.sample_actions(batch, eps) up to rounding.

    mode: "eager"; "compile": the functions in `regions` are compiled; "graph": and every Program is one CUDA graph,
    made by `capture` at its first call. steps: of Euler, the config's by default. views: which of the three the robot
    has; what a control loop calls is compiled and recorded for these here, anything else when it is first asked for.
    Threads on one CUDA stream may share an engine. The model keeps working and shares its weights; train it no further,
    because constants were computed from them. A second engine, or moving the model, holds the weights twice."""

    def __init__(self, model, mode="eager", steps=None, capture=cuda_capture, backend=None, views=(0, 1, 2)):
        must(mode in MODES, f"--engine {mode}: choose from {', '.join(MODES)}")
        device, config = model.act.state_proj.weight.device, model.config
        must(mode != "graph" or capture is not cuda_capture or device.type == "cuda",
             "--engine graph records a CUDA graph, and the model is not on a GPU: use eager or compile")
        self.model, self.config, self.mode, self.capture, self.views = model, config, mode, capture, views
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True   # the VAE's shapes are few
        self.steps = steps or config.euler_steps
        self.programs = lru_cache(PROGRAMS)(partial(Program, model))   # of a Shape
        self.captures, self.lock, self.report = 0, threading.RLock(), None
        self.view_tokens = torch.tensor(config.view_tokens, device=device)
        self.vision = model.und.visual
        self.layers = {name: [BlockWeights.of(getattr(layer, name), config) for layer in model.layers]
                       for name in (("und", "gen", "act") if config.gen_expert else ("und", "act"))}
        self.regions = {"block": block, "vit_block": vit_block}   # as they are written; self.block and so on are called
        if config.gen_expert:
            self.compress, self.vae = fold_compression(model.gen), model.vae
            self.regions |= {"encode": type(self.vae).encode, "decode": type(self.vae).decode}
            for kernel in (p for p in model.vae.parameters() if p.ndim == 4):
                kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
        vars(self).update({name: of if mode == "eager" else compiled(of, backend) for name, of in self.regions.items()})
        self.ready = {"cold"}   # hand-overs that a graph is recorded for
        self._check()

    def _check(self):
        """Compile (and record) what a control loop calls: a plan, latents ahead of one, a plan with them given. Hold
        both plans against model.py on a second input, where a replay that kept something of the first would show.
        ValueError: they are not finite, or further from it than TOLERANCE."""
        fast, model, views, device = self, self.model, self.views, self.view_tokens.device
        if self.mode == "eager":   # nothing to prepare: one camera and two layers show what this machine computes
            fast, model, views = self.eager(), copy.copy(model), views[:1]
            fast.layers = {name: layers[:2] for name, layers in self.layers.items()}
            model._modules = model._modules | {"layers": model.layers[:2]}
        for seed in (0,) if self.mode == "eager" else (0, 1):
            batch, eps, pasts = self._inputs(views, seed)
            found = torch.stack([fast(batch, eps, z_past).actions for z_past in pasts])
        exact = model.sample_actions(batch.to(device), eps.to(device), self.steps)
        if not exact.isfinite().all():   # of what the model computes no mode can be held guilty
            self.report = f"engine {self.mode}: not compared, the actions of model.py are not finite themselves"
            return
        apart, size, limit = found - exact, exact.square().mean().sqrt(), TOLERANCE.get(model.dtype, 5e-2)
        share = (apart.square().mean((1, 2, 3)).sqrt() / size).max().item()
        if not share <= limit:   # NaN too
            rest = "plain" if self.mode == "eager" else "eager or plain"
            raise ValueError(f"engine {self.mode}: its actions differ from those of model.py by {share:.1e} of their "
                             f"size, at most {limit:g} is allowed in {model.dtype}; on this machine, with torch "
                             f"{torch.__version__}, use --engine {rest}")
        if self.mode != "eager":
            self.report = (f"engine {self.mode}: largest difference from model.py {apart.abs().max().item():.1e} of "
                           f"actions up to {exact.abs().max().item():.1f}")

    def _inputs(self, views, seed=0):
        """A random batch of these cameras, its noise, and what a control loop gives as z_past: nothing, or latents."""
        batch, random = random_batch(self.config, seed=seed), torch.Generator().manual_seed(seed)
        batch.view_mask[:] = torch.tensor([v in views for v in range(3)])
        eps, pasts = torch.randn(1, self.config.chunk, self.config.action_dim, generator=random), [None]
        if self.config.gen_expert:
            frames = torch.stack([batch.frames[:, v, :1] for v in views], 1).to(self.view_tokens.device)
            pasts.append(self.all_views(self.to_latents(frames)[:, :, 0], views))
        return batch, eps, pasts

    def prepare(self, handover):
        """Record what a control loop calls with this hand-over, before an episode would wait for it."""
        if self.mode == "graph" and handover not in self.ready:
            batch, eps, pasts = self._inputs(self.views)
            for z_past in pasts:
                self(batch, eps, z_past, guide=Guide(handover, eps, eps[0]))
            self.ready.add(handover)

    def eager(self):
        """A second engine over the same weights, nothing compiled."""
        other = copy.copy(self)   # the lock is the same, so that neither computes while the other records
        other.mode, other.programs = "eager", lru_cache(PROGRAMS)(partial(Program, self.model))
        vars(other).update(self.regions)
        return other

    # ---- a call -------------------------------------------------------------------------------------------------

    @entry
    def __call__(self, batch, eps, z_past=None, imagine=False, guide=None):
        """batch: data.Batch of B samples with the same views; eps (B, k, d_a); z_past (B, V, 16, g, g), latents of t-m;
        guide: a Guide of handover.py, but not "vjp", which takes a backward pass.

        Batch and eps should lie on the CPU: masks are read there, and copying in is part of the call. What is returned
        is the caller's own. ValueError: samples with different views."""
        program = self.programs(self.shape(batch, z_past is not None, imagine, guide.handover if guide else "cold"))
        program.place(self.model, batch)
        program.load(batch, eps, z_past, guide)
        if self.mode == "graph" and program.replay is None:
            self.captures += 1
            program.replay = self.capture(partial(self.run, program))
        out = program.replay() if program.replay else self.run(program)
        return Chunk(*(x if x is None else x.clone() for x in out))   # a graph's next replay writes over its outputs

    def shape(self, batch, cached, imagine, handover="cold"):
        """The Shape that a batch needs. Compiled, the text budget is the config's, so that all prompts are one."""
        views, words = batch.view_mask[0], batch.text_mask.sum(1)
        must((batch.view_mask == views).all(),
             "the samples of one call must have the same cameras: call the engine once per set")
        text = int(words.max()) if self.mode == "eager" else self.config.text_tokens
        return Shape(len(words), tuple(views.nonzero().flatten().tolist()), text, cached and self.config.gen_expert,
                     imagine and self.config.gen_expert, handover)

    def run(self, program):
        """The whole call as a fixed list of operations on a Program's buffers -> Chunk."""
        self.understand(program, self.see(program))
        z = z_hat = None
        if self.config.gen_expert:
            z = self.latents(program)
            gen_out = self.generate(program, z)
            if program.shape.imagine:
                z_hat = self.all_views(self.foresee(gen_out), program.shape.views)
            z = self.all_views(z[:, :, 1], program.shape.views)
        return Chunk(self.denoise(program), z, z_hat)

    # ---- its phases ---------------------------------------------------------------------------------------------

    def see(self, program):
        """Pictures and words -> understanding tokens (B, u, D)."""
        und, config, image = self.model.und, self.config, program.image
        B, V = image.shape[:2]
        pixels = image.flatten(0, 1).float().div_(255)
        if pixels.shape[-1] != config.image_size:   # [release] bicubic, not clamped
            pixels = F.interpolate(pixels, config.image_size, mode="bicubic", antialias=True, align_corners=False)
        x = self.vision(pixels, self.vit_block).unflatten(0, (B, V))
        if config.view_tokens:
            before, after = und.embed_tokens(self.view_tokens).expand(B, V, 2, -1).split(1, 2)
            x = torch.cat([before, x, after], 2)
        x = torch.cat([x.flatten(1, 2), und.embed_tokens(program.text_ids)], 1)
        if config.learned_positions:
            x = x + und.position[program.keep[:program.u]]
        return x.to(self.model.dtype)

    def understand(self, program, x):
        """x (B, u, D): fill the understanding tokens' keys and values."""
        self._layers("und", program, x, 0)

    def latents(self, program):
        """Frames -> z (B, V, 2, 16, g, g) float32 at t-m and t; the former encoded or given."""
        z = self.to_latents(program.frames)
        return torch.cat([program.z_past[:, :, None], z], 2) if program.shape.cached else z

    @entry
    def to_latents(self, frames):
        """model.phi_cosmos, channels-last: frames (B, V, T, 3, s, s) uint8 -> (B, V, T, 16, g, g) float32."""
        x, size = frames.flatten(0, 2).float().div_(127.5).sub_(1), self.config.vae_size
        if x.shape[-1] != size:   # [release]
            x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
        x = x.to(next(self.vae.parameters(), x).dtype).contiguous(memory_format=torch.channels_last)
        return self.encode(self.vae, x).float().unflatten(0, frames.shape[:3])

    def generate(self, program, z):
        """z (B, V, 2, 16, g, g) -> the generation expert's output (B, 32 V, D)."""
        (B, V, T, C, _, _), k = z.shape, self.config.compress_kernel
        patches = z.to(self.compress[0].dtype).view(B, V * T, C, 4, k, 4, k).permute(0, 1, 3, 5, 2, 4, 6)
        x = F.linear(patches.reshape(B, V * T * 16, -1), *self.compress)
        if self.config.learned_positions:
            x = x + self.model.gen.position[program.keep[program.u:program.g] - self.model.layout.n_und]
        return self._layers("gen", program, x.to(self.model.dtype), program.u)

    def foresee(self, gen_out):
        """The generation expert's output (B, 32 V, D) -> z_hat (B, V, 16, g, g) float32."""
        return self.model.gen.decode(gen_out).float()

    @entry
    def to_pictures(self, z):
        """model.to_pictures, channels-last: latents (..., 16, g, g) -> pictures (..., 3, H, W) uint8."""
        dtype = next(self.vae.parameters(), z).dtype
        # A clone, also where nothing is to be converted: a caller's inference tensor would be compiled for anew.
        x = self.decode(self.vae, z.flatten(0, -4).to(dtype).clone(memory_format=torch.channels_last)).float()
        return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().unflatten(0, z.shape[:-3])

    def denoise(self, program):
        """Eq. (3) -> actions (B, k, d_a) float32."""
        act, real = self.model.act, program.real
        if self.config.noise_on_padding:   # [release]
            real = torch.ones_like(real)
        ones = torch.ones(len(real), 1, 1, dtype=torch.float64, device=real.device)

        def v_theta(a, tau):
            x = act.embed(program.state, a[:, None], tau * ones).to(self.model.dtype)
            return act.velocity(self._layers("act", program, x, program.g), R=1)[:, 0] * real

        handover = program.shape.handover
        solve = flow.euler if handover == "cold" else Guide(handover, program.rest, program.weight)
        return solve(v_theta, program.eps * real, self.steps)

    def _layers(self, name, program, x, start):
        """All layers of an expert over rows x, which follow `start` others."""
        end = start + x.shape[1]
        rotary = program.rotary and tuple(table[:, start:end] for table in program.rotary)
        bias = program.bias if name == "act" else program.bias[:, :, :1, :end]   # row 0 sees all that comes before it
        for w, keys, values in zip(self.layers[name], program.keys, program.values):
            x = self.block(x, w, keys, values, start, rotary, bias, self.config.norm_eps)
        return x

    @staticmethod
    def all_views(z, views):
        """(B, views computed, ...) -> (B, 3, ...), zeros where a view is missing."""
        given, missing = dict(zip(views, z.unbind(1))), torch.zeros_like(z[:, 0])
        return torch.stack([given.get(v, missing) for v in range(3)], 1)
