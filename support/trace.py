"""The pass, printed: one training step and one inference call of any preset, in the order of the paper's Section 3.

The model runs on the meta device, whose tensors have shapes and no memory. `recorded` notes what its functions were
given, returned and cost. The lines are written from those notes."""

from support.entry import command   # first: Ctrl-C during the imports is one line, too
from collections import namedtuple
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

import flow
from attention_mask import draw_of_token, segment_mask, segments, valid_tokens
from config import CONFIGS, get_config
from data import Batch
from support.flags import Parser, add_config_flags, refuse_ignored
from support.table1 import on_meta, size

SEGMENTS = ("und", "gen", "state", "action")   # attention_mask's numbers 0 to 3
Call = namedtuple("Call", "args out flop times")   # the last call of a function; cost and number of all its calls


@contextmanager
def recorded(model):
    """While entered, the functions that make up the pass are noted -> (name -> Call, FlopCounterMode)."""
    calls, und, act = {}, model.und, model.act
    functions = [("euler", flow, "euler"), ("prefill", model, "prefill"), ("v_theta", model, "v_theta"),
                 ("vision", und.visual, "forward"), ("und", und, "embed"), ("act", act, "embed"),
                 ("velocity", act, "velocity"), *(("f_", layer, "extend") for layer in model.layers)]
    if und.visual.layers:
        functions.append(("patches", und.visual.patch_embed, "forward"))
    if model.config.gen_expert:
        gen = model.gen
        functions += [("phi", model, "phi_cosmos"), ("decoder", model, "to_pictures"), ("gen", gen, "embed"),
                      ("compress", gen.compress, "forward"), ("mean", gen, "pool"),
                      ("expand", gen.expand, "forward"), ("decode", gen, "decode")]

    def noted(name, function):
        def call(*args, **kwargs):
            before = counter.get_total_flops()
            out = function(*args, **kwargs)
            key = name + args[0] if name == "f_" else name   # f_und, f_gen, f_act
            past = calls.get(key, Call((), None, 0, 0))
            calls[key] = Call(args, out, past.flop + counter.get_total_flops() - before, past.times + 1)
            return out
        return call

    with FlopCounterMode(display=False) as counter, ExitStack() as stack:
        for name, owner, attribute in functions:
            stack.enter_context(mock.patch.object(owner, attribute, noted(name, getattr(owner, attribute))))
        yield calls, counter


def sample(config, B=1):
    """B training tuples, nothing missing. Their masks can be read; .to("meta") is the same without memory."""
    def ones(*shape, dtype=torch.bool):
        return torch.ones(B, *shape, dtype=dtype)

    k, d, view, frame = config.chunk, config.action_dim, config.view_size, config.frame_size
    return Batch(image=ones(3, 3 * config.und_frames, view, view, dtype=torch.uint8),
                 frames=ones(3, 3, 3, frame, frame, dtype=torch.uint8),
                 view_mask=ones(3), text_ids=ones(config.text_tokens, dtype=torch.long),
                 text_mask=ones(config.text_tokens), state=ones(config.state_dim, dtype=torch.float32),
                 dim_mask=ones(d), action=ones(k, d, dtype=torch.float32), action_mask=ones(k, d), future_mask=ones())


def walk(config):
    """One training step and one inference call of a Config -> printable lines."""
    model, example, R = on_meta(config.model), sample(config.model), config.model.action_draws
    batch, counts = example.to("meta"), model.counts(example, torch.zeros(1, R))
    eps = torch.empty(1, R, *batch.action.shape[1:], device="meta")
    with recorded(model) as (training, counter):
        losses = model(batch, eps, eps[..., 0, 0])
        forward = counter.get_total_flops()
        losses.total(config.model.lambda_gen, *counts).backward()
        backward = counter.get_total_flops() - forward
    with recorded(model) as (inference, _):
        prefix = model.prefill(batch)
        model.sample_actions(batch, eps[:, 0], prefix=prefix)
        if config.model.gen_expert:
            model.to_pictures(model.imagine(batch, prefix))
    trained = sum(p.numel() for p in model.parameters() if p.grad is not None)
    return [f"{config.name}: one sample through InternVLA-A1, in the order of the paper (beside its Fig. 2)",
            f"{'':<88}{'parameters':>14}{'GFLOP':>10}",
            *tuple_lines(batch, config.data.m), *und_lines(model, training), *gen_lines(model, training),
            *act_lines(model, training), *mask_lines(replace(model.layout, draws=R), example),
            *loss_lines(model, training, counts), line("forward pass", "all experts at once", size(model), forward),
            line("backward pass", "gradients of all that is trained", trained, backward),
            *inference_lines(model, inference)]


def line(name, what, parameters=None, flop=None):
    """One row: the paper's name, what becomes of it, how many parameters do it and at what cost."""
    giga = (flop or 0) / 1e9
    cost = f"{giga:,.2f}" if giga >= 0.1 else f"{giga:.2g}" if giga else ""
    return f"  {name:<20}{what:<66}{f'{parameters:,}' if parameters else '':>14}{cost:>10}".rstrip()


def dims(tensor, skip=1):
    """The sizes of a tensor behind the first ones, such as 16 x 32 x 32."""
    return " x ".join(map(str, tensor.shape[skip:]))


def blocks(model, r, name):
    """The line of an expert's blocks, counted with its learned positions."""
    call = r[f"f_{name}"]
    x, (key, _) = call.args[1], call.out[1]
    held = size(*(getattr(layer, name) for layer in model.layers)) + size(getattr(model, name), recurse=False)
    return line(f"f_{name}", f"{x.shape[1]} tokens of width {x.shape[2]}, {call.times} layers, "
                f"against {key.shape[2]} keys", held, call.flop)


def tuple_lines(batch, m):
    views, times = batch.frames.shape[1:3]
    return ["Sec. 3.3  Inputs: the tuple (o_{t-m}, o_t, o_{t+m}, l, q_t, a_{t:t+k})",
            line("o_t", f"{views} views x {batch.image.shape[2]} colours x {dims(batch.image, 3)}, for understanding"),
            line("o_{t-m} o_t o_{t+m}",
                 f"{views} views x {times} times (m = {m} frames) x 3 colours x {dims(batch.frames, 4)}"),
            line("l", f"{dims(batch.text_ids)} token ids, padded"),
            line("q_t", f"{dims(batch.state)} state dimensions, padded"),
            line("a_{t:t+k}", "{} actions x {} dimensions, padded".format(*batch.action.shape[1:]))]


def und_lines(model, r):
    views, tokens, _ = r["vision"].out.shape
    patches = f"{dims(r['patches'].out, -2)} patches -> " if "patches" in r else ""
    text, embedded = r["und"].args[1].shape[1], r["und"].out.shape[1]
    return ["", "Sec. 3.2  Understanding Expert: h_und = f_und(l, o_t)",
            line("vision encoder", f"{views} views x {dims(r['vision'].args[0], 2)} -> {patches}{tokens} tokens a view",
                 size(model.und.visual), r["vision"].flop),
            line("text", f"{text} ids -> {text} tokens", size(model.und.embed_tokens)),
            line("all tokens", f"{views} x {tokens} visual + {embedded - text - views * tokens} around the views + "
                 f"{text} text = {embedded}"),
            blocks(model, r, "und")]


def gen_lines(model, r):
    if not model.config.gen_expert:   # the ablation of Fig. 9
        return []
    images, gen = r["phi"].args[0].flatten(0, 2), model.gen
    wide, narrow = r["compress"].args[0], r["compress"].out
    return ["", "Sec. 3.2  Generation Expert: z_hat_{t+m} = f_gen(z_{t-m}, z_t; h_und)",
            line("phi_cosmos", f"{len(images)} images x {dims(images, 2)} -> {len(images)} x {dims(r['phi'].out, 3)}",
                 size(model.vae), r["phi"].flop),
            line("Token Compression", f"{len(wide)} images x {dims(r['gen'].args[0], 3)} -> width {wide.shape[1]} by "
                 "1 x 1", size(gen.proj_in)),
            line("", f"{dims(gen.compress.weight, 2)} kernel -> {len(narrow)} x {dims(narrow, 2)} tokens = "
                 f"{r['gen'].out.shape[1]}", size(gen.compress), r["gen"].flop),
            blocks(model, r, "gen"), *decoding(gen, r)]


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
            line("state token", f"q_t: {dims(r['act'].args[0])} -> {draws}1 token", size(act.state_proj)),
            line("action tokens", f"a_tau: {draws}{dims(a_tau, 2)}, fused with tau -> {draws}{k} tokens",
                 size(act.action_in_proj, act.action_time_mlp_in, act.action_time_mlp_out), r["act"].flop),
            blocks(model, r, "act"),
            line("v_theta", f"{draws}{k} tokens -> velocity {draws}{dims(r['velocity'].out, 2)}",
                 size(act.norm, act.action_out_proj), r["velocity"].flop)]


def mask_lines(layout, masks):
    """Who sees whom, counted in the mask itself."""
    segment, valid = segments(layout), valid_tokens(layout, masks.view_mask, masks.text_mask)
    (allowed,) = segment_mask(segment, draw_of_token(layout), valid)
    kinds = segment.unique().tolist()
    lines = ["", f"Sec. 3.2  Attention Mechanism: the mask of {dims(allowed, 0)}, as how many tokens each query sees",
             line("query", f"{'tokens':>6}" + "".join(f"{SEGMENTS[s]:>9}" for s in kinds))]
    for s in kinds:
        rows = allowed[segment == s]
        seen = [rows[0, segment == key].sum().item() or "." for key in kinds]   # all of a segment see as many
        lines.append(line(SEGMENTS[s], f"{len(rows):>6}" + "".join(f"{n:>9}" for n in seen)))
    return lines


def loss_lines(model, r, counts):
    gen = [line("Eq. (1)  L_gen", f"(z_hat_{{t+m}} - sg[z_{{t+m}}])^2 over {dims(r['decode'].out)} = {counts[1]:,}")
           ] if model.config.gen_expert else []
    return ["", "Sec. 3.3  Optimization Objectives", *gen,
            line("Eq. (2)  L_act", f"(v_theta - (a - eps))^2 over {dims(r['velocity'].out)} = {counts[0]:,}"),
            line("Eq. (4)  L_total", f"lambda L_gen + L_act, lambda = {model.config.lambda_gen}")]


def inference_lines(model, r):
    kv, step = r["prefill"].out.kv, r["v_theta"]
    key, steps = kv[0][0], r["euler"].args[2]
    lines = ["", "Inference",
             line("prefill", f"keys and values of {key.shape[2]} tokens ({key.shape[1]} heads x {key.shape[3]}) in "
                  f"{len(kv)} layers", None, r["prefill"].flop),
             line("Eq. (3)", f"{step.times} Euler steps of {1 / steps:.4g}, tau = 0 ... {step.args[3]:.4g}", None,
                  r["euler"].flop),
             line("  one step", f"{r['act'].out.shape[1]} tokens, {key.shape[2]} keys kept -> v_theta {dims(step.out)}",
                  None, step.flop / step.times),
             line("a chunk", f"prefill and Eq. (3) -> {dims(r['euler'].out)}", None,
                  r["prefill"].flop + r["euler"].flop)]
    if model.config.gen_expert:
        lines += [*decoding(model.gen, r), line("decoder", f"z_hat_{{t+m}}: {dims(r['decoder'].args[0])} -> pictures "
                                                f"{dims(r['decoder'].out)}", None, r["decoder"].flop)]
    return lines


def main(argv):
    parser = Parser(prog="model.py", description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="conveyor", help=f"one of {', '.join(CONFIGS)}")
    add_config_flags(parser, ("model", "data"))
    args = parser.parse_args(argv)
    refuse_ignored(parser.prog, args)
    print("\n".join(walk(get_config(args.config, vars(args)))))


if __name__ == "__main__":
    command("model.py", main)
