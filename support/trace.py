"""The pass, printed: one training step and one inference call of any preset, in the order of the paper's Section 3.

`python model.py --config a1_2b` runs the model on tensors that have shapes and no memory (the meta device). `Recorder`
notes what its functions were given, returned and cost; the lines are written from those notes.
"""

from collections import defaultdict
from contextlib import ExitStack
from typing import NamedTuple
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

import flow
import model as model_module
from attention_mask import segment_mask, valid_tokens
from config import CONFIGS, get_config
from data import Batch
from support.flags import Parser, add_config_flags
from support.table1 import on_meta

SEGMENTS = ("und", "gen", "state", "action")   # attention_mask's numbers 0 to 3


class Call(NamedTuple):
    """One call of a recorded function."""

    args: tuple
    out: object
    flop: int


class Recorder:
    """Notes every call of the functions that make up the pass, while it is entered: notes[name] -> list of Calls."""

    def __init__(self, model):
        self.notes, self.counter, self.stack = defaultdict(list), FlopCounterMode(display=False), ExitStack()
        und, act = model.und, model.act
        self.functions = [
            ("segments", model_module, "segments"), ("draws", model_module, "draws"), ("euler", flow, "euler"),
            ("target", flow, "velocity_target"), ("prefill", model, "prefill"), ("v_theta", model, "v_theta"),
            ("vision", und.visual, "forward"), ("text", und.embed_tokens, "forward"), ("und", und, "embed"),
            ("state", act.state_proj, "forward"), ("act", act, "embed"), ("velocity", act, "velocity"),
            *(("extend", layer, "extend") for layer in model.layers)]
        if hasattr(und.visual, "patch_embed"):
            self.functions.append(("patches", und.visual.patch_embed, "forward"))
        if model.config.gen_expert:
            self.functions += [
                ("phi", model, "phi_cosmos"), ("decoder", model, "to_pictures"), ("gen", model.gen, "embed"),
                ("compress", model.gen.compress, "forward"), ("mean", model.gen, "pool"),
                ("expand", model.gen.expand, "forward"), ("decode", model.gen, "decode")]

    def __enter__(self):
        self.stack.enter_context(self.counter)
        for name, owner, attribute in self.functions:
            self.stack.enter_context(mock.patch.object(owner, attribute, self.noted(name, getattr(owner, attribute))))
        return self

    def __exit__(self, *error):
        self.stack.close()

    def noted(self, name, function):
        def call(*args, **kwargs):
            before = self.counter.get_total_flops()
            out = function(*args, **kwargs)
            self.notes[name].append(Call(args, out, self.counter.get_total_flops() - before))
            return out
        return call

    def __getitem__(self, name):
        """The last call."""
        return self.notes[name][-1]


def sample(config):
    """One training tuple, nothing missing -> (Batch on the meta device, the same with masks that can be read)."""
    def ones(*shape, dtype=torch.bool):
        return torch.ones(1, *shape, dtype=dtype)

    k, d, view, frame = config.chunk, config.action_dim, config.view_size, config.frame_size
    batch = Batch(image=torch.empty(1, 3, 3, view, view, dtype=torch.uint8, device="meta"),
                  frames=torch.empty(1, 3, 3, 3, frame, frame, dtype=torch.uint8, device="meta"), view_mask=ones(3),
                  text_ids=ones(config.text_tokens, dtype=torch.long), text_mask=ones(config.text_tokens),
                  state=ones(config.state_dim, dtype=torch.float32), dim_mask=ones(d),
                  action=ones(k, d, dtype=torch.float32), action_mask=ones(k, d), future_mask=ones())
    return batch.to("meta"), batch


def walk(config):
    """One training step and one inference call of a Config -> printable lines."""
    model, (batch, masks), R = on_meta(config.model), sample(config.model), config.model.action_draws
    counts = model.counts(masks, R)
    eps = torch.empty(1, R, *batch.action.shape[1:], device="meta")
    with Recorder(model) as training:
        losses = model(batch, eps, eps[..., 0, 0])
        forward = training.counter.get_total_flops()
        losses.total(config.model.lambda_gen, *counts).backward()
        backward = training.counter.get_total_flops() - forward
    with Recorder(model) as inference:
        prefix = model.prefill(batch)
        model.sample_actions(batch, eps[:, 0], prefix=prefix)
        if config.model.gen_expert:
            model.to_pictures(model.imagine(batch, prefix))
    trained = sum(p.numel() for p in model.parameters() if p.grad is not None)
    return [f"{config.name}: one sample through InternVLA-A1, in the order of the paper (beside its Fig. 2)",
            f"{'':<88}{'parameters':>14}{'GFLOP':>10}",
            *tuple_lines(batch, config.data.m), *und_lines(model, training), *gen_lines(model, training),
            *act_lines(model, training), *mask_lines(training, masks), *loss_lines(model, training, counts),
            line("forward pass", "all experts at once", size(model), forward),
            line("backward pass", "gradients of all that is trained", trained, backward),
            *inference_lines(model, inference)]


# ---- how a line looks -------------------------------------------------------------------------------------------

def line(name, what, parameters=None, flop=None):
    """One row: the paper's name, what becomes of it, how many parameters do it and at what cost."""
    giga = (flop or 0) / 1e9
    cost = f"{giga:,.2f}" if giga >= 0.1 else f"{giga:.2g}" if giga else ""
    return f"  {name:<20}{what:<66}{f'{parameters:,}' if parameters else '':>14}{cost:>10}".rstrip()


def dims(tensor, skip=1):
    """The sizes of a tensor behind the first ones, such as 16 x 32 x 32."""
    return " x ".join(map(str, tensor.shape[skip:]))


def size(*modules, recurse=True):
    return sum(p.numel() for module in modules for p in module.parameters(recurse=recurse))


def blocks(model, r, name):
    """An expert's layers, and its learned positions where it has any -> what `line` takes."""
    calls = [call for call in r.notes["extend"] if call.args[0] == name]
    x, (key, _) = calls[0].args[1], calls[0].out[1]
    held = size(*(getattr(layer, name) for layer in model.layers)) + size(getattr(model, name), recurse=False)
    return (f"{x.shape[1]} tokens of width {x.shape[2]}, {len(calls)} layers, against {key.shape[2]} keys", held,
            sum(call.flop for call in calls))


# ---- the paper's order ------------------------------------------------------------------------------------------

def tuple_lines(batch, m):
    views, times = batch.frames.shape[1:3]
    return ["Sec. 3.1  Inputs: the tuple (o_{t-m}, o_t, o_{t+m}, l, q_t, a_{t:t+k})",
            line("o_t", f"{views} views x 3 colours x {dims(batch.image, 3)}, for understanding"),
            line("o_{t-m} o_t o_{t+m}", f"{views} views x {times} times (m = {m} frames) x 3 colours x "
                 f"{dims(batch.frames, 4)}"),
            line("l", f"{dims(batch.text_ids)} token ids, padded"),
            line("q_t", f"{dims(batch.state)} state dimensions, padded"),
            line("a_{t:t+k}", "{} actions x {} dimensions, padded".format(*batch.action.shape[1:]))]


def und_lines(model, r):
    views, tokens, _ = r["vision"].out.shape
    patches = f"{dims(r['patches'].out, -2)} patches -> " if r.notes["patches"] else ""
    text, embedded = r["text"].out.shape[1], r["und"].out.shape[1]
    return ["", "Sec. 3.2  Understanding Expert: h_und = f_und(l, o_t)",
            line("vision encoder", f"{views} views x {dims(r['vision'].args[0], 2)} -> {patches}{tokens} tokens a view",
                 size(model.und.visual), r["vision"].flop),
            line("text", f"{text} ids -> {text} tokens", size(model.und.embed_tokens)),
            line("all tokens", f"{views} x {tokens} visual + {embedded - text - views * tokens} around the views + "
                 f"{text} text = {embedded}"),
            line("f_und", *blocks(model, r, "und"))]


def gen_lines(model, r):
    title = ["", "Sec. 3.2  Generation Expert: z_hat_{t+m} = f_gen(z_{t-m}, z_t; h_und)"]
    if not model.config.gen_expert:
        return title + [line("not built", "gen_expert is false: the ablation of Fig. 9")]
    images, gen = r["phi"].args[0].flatten(0, 2), model.gen
    wide, narrow = r["compress"].args[0], r["compress"].out
    return title + [
        line("phi_cosmos", f"{len(images)} images x {dims(images, 2)} -> {len(images)} x {dims(r['phi'].out, 3)}",
             size(model.vae), r["phi"].flop),
        line("Token Compression", f"{len(wide)} images x {dims(r['gen'].args[0], 3)} -> width {wide.shape[1]} by 1 x 1",
             size(gen.proj_in)),
        line("", f"{dims(gen.compress.weight, 2)} kernel -> {len(narrow)} x {dims(narrow, 2)} tokens = "
             f"{r['gen'].out.shape[1]}", size(gen.compress), r["gen"].flop),
        line("f_gen", *blocks(model, r, "gen")), *decoding(gen, r)]


def decoding(gen, r):
    """Parallel Decoding: in training, and where a future is imagined."""
    before, after = r["mean"].args[0].shape[1], r["mean"].out.shape[1]
    return [line("Parallel Decoding", f"temporal mean: {before} -> {after} tokens", size(gen.norm)),
            line("", f"deconvolution: {dims(r['expand'].args[0], 2)} -> {dims(r['expand'].out, 2)}; z_hat_{{t+m}}: "
                 f"{dims(r['decode'].out)}", size(gen.expand, gen.norm_out, gen.proj_out), r["decode"].flop)]


def act_lines(model, r):
    act, a_tau = model.act, r["act"].args[1]
    R, k = a_tau.shape[1:3]
    draws = f"{R} draws x " if R > 1 else ""
    return ["", "Sec. 3.2  Action Expert: v_theta(q_t, a_tau; h_und, h_gen)",
            line("state token", f"q_t: {dims(r['state'].args[0])} -> {draws}1 token", size(act.state_proj)),
            line("action tokens", f"a_tau: {draws}{dims(a_tau, 2)}, fused with tau -> {draws}{k} tokens",
                 size(act.action_in_proj, act.action_time_mlp_in, act.action_time_mlp_out), r["act"].flop),
            line("f_act", *blocks(model, r, "act")),
            line("v_theta", f"{draws}{k} tokens -> velocity {draws}{dims(r['velocity'].out, 2)}",
                 size(act.norm, act.action_out_proj), r["velocity"].flop)]


def mask_lines(r, masks):
    """Who sees whom, counted in the mask that follows from the segments of this pass."""
    segment, valid = r["segments"].out, valid_tokens(*r["segments"].args, masks.view_mask, masks.text_mask)
    (allowed,) = segment_mask(segment, r["draws"].out, valid)
    kinds = segment.unique().tolist()
    lines = ["", f"Sec. 3.2  Attention Mechanism: the mask of {dims(allowed, 0)}, as how many tokens each query sees",
             line("query", f"{'tokens':>6}" + "".join(f"{SEGMENTS[s]:>9}" for s in kinds))]
    for s in kinds:
        rows = allowed[segment == s]
        seen = [rows[:, segment == other].sum(1).unique().tolist() for other in kinds]
        seen = "".join(f"{' or '.join(map(str, n)) if any(n) else '.':>9}" for n in seen)
        lines.append(line(SEGMENTS[s], f"{len(rows):>6}" + seen))
    return lines


def loss_lines(model, r, counts):
    lines = ["", "Sec. 3.3  Optimization Objectives"]
    if model.config.gen_expert:
        lines.append(line("Eq. (1)  L_gen", "(z_hat_{t+m} - sg[z_{t+m}])^2 over " + dims(r["decode"].out) +
                          f" = {counts[1]:,}"))
    return lines + [line("Eq. (2)  L_act", f"(v_theta - (a - eps))^2 over {dims(r['target'].out)} = {counts[0]:,}"),
                    line("Eq. (4)  L_total", f"lambda L_gen + L_act, lambda = {model.config.lambda_gen}")]


def inference_lines(model, r):
    before, first, last = r["prefill"].out.before, r.notes["v_theta"][0], r["v_theta"]
    key, steps = before[0][0], r["euler"].args[2]
    lines = ["", "Inference",
             line("prefill", f"keys and values of {key.shape[2]} tokens ({key.shape[1]} heads x {key.shape[3]}) in "
                  f"{len(before)} layers", None, r["prefill"].flop),
             line("Eq. (3)", f"{len(r.notes['v_theta'])} Euler steps of {1 / steps:.4g}, tau = {first.args[3]:.4g} ... "
                  f"{last.args[3]:.4g}", None, r["euler"].flop),
             line("  one step", f"{r['act'].out.shape[1]} tokens, {key.shape[2]} keys kept -> v_theta {dims(last.out)}",
                  None, last.flop),
             line("a chunk", f"prefill and Eq. (3) -> {dims(r['euler'].out)}", None,
                  r["prefill"].flop + r["euler"].flop)]
    if not model.config.gen_expert:
        return lines
    return lines + decoding(model.gen, r) + [
        line("decoder", f"z_hat_{{t+m}}: {dims(r['decoder'].args[0])} -> pictures {dims(r['decoder'].out)}",
             None, r["decoder"].flop)]


def main():
    parser = Parser(prog="model.py", description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="conveyor", help=f"one of {', '.join(CONFIGS)}")
    add_config_flags(parser)
    args = parser.parse_args()
    try:
        print("\n".join(walk(get_config(args.config, vars(args)))))
    except ValueError as error:
        parser.error(str(error))
