"""Table 1: parameters by part, of what is built and of what the release holds besides."""

from collections import Counter
from dataclasses import replace

import torch

from model import InternVLA_A1

PAPER = {"a1_2b": {"und": 0.94, "gen": 0.36, "act": 0.36, "total": 1.8},   # billions, as printed
         "a1_3b": {"und": 2.13, "gen": 0.44, "act": 0.44, "total": 3.2}}


def on_meta(config):
    """The model of a ModelConfig without memory."""
    with torch.device("meta"):
        return InternVLA_A1(config).to("meta")   # constants are born on the CPU


def size(*modules, recurse=True):
    """Parameters of modules, with or without those of their submodules."""
    return sum(p.numel() for module in modules for p in module.parameters(recurse=recurse))


def count_parameters(model):
    """Parameters by part: dict of und, gen, act, projections, vae, total (Table 1's columns)."""
    layers, gen = model.layers, model.config.gen_expert
    rows = {"und": size(model.und, *(layer.und for layer in layers)),
            "gen": size(model.gen.norm, *(layer.gen for layer in layers)) if gen else 0,
            "act": size(model.act.norm, *(layer.act for layer in layers))}
    vae, total = size(model.vae) if gen else 0, size(model)
    return rows | {"projections": total - sum(rows.values()) - vae, "vae": vae, "total": total}


def not_built(config):
    """What the release's code builds and this model does not, because nothing reads it: key pattern -> parameters
    (int). A negative entry is the reverse. Built plus not built is Table 1's total: 1,835,996,688 (2B), 3,222,760,208
    (3B)."""
    if config.backbone == "tiny":
        return {}
    rows, own = Counter(), on_meta(config)
    if config.backbone == "internvl3":
        rows["lm_head.weight"] = own.und.embed_tokens.weight.numel()               # untied in the release
        rows["vision_tower...attention.{q,k,v}_proj.bias"] = -config.vit_layers * 3 * config.vit_width
    if config.backbone == "qwen3vl":
        four, out = 4 * config.vit_width, config.und_width
        rows["visual.deepstack_merger_list.{0,1,2}"] = 3 * (2 * four + four * four + four + out * four + out)
    built = dict(own.named_parameters())
    for name, p in on_meta(replace(config, und_tail=True, gen_expert=True)).named_parameters():
        if name not in built:   # of the last understanding layer, or of the generation expert and its tokenizer
            part = name.replace("und.", "").removesuffix(".weight").removesuffix(".bias")
            rows[f"language_model.{part}" if "und." in name else "generation expert"] += p.numel()
    return dict(rows)


def table(config):
    """Table 1 for a preset (Config) as printable lines: millions built, millions released, the paper's billions."""
    rows, absent = count_parameters(on_meta(config.model)), not_built(config.model)
    paper = PAPER.get(config.name.removesuffix("_release"), {})
    title = f"parameters of {config.name}, in millions"
    lines = [f"{title:<54}{'built':>8}" + (f"{'released':>10}{'Table 1':>9}" if paper else "")]
    for name, count in rows.items():
        released = count + sum(absent.values()) * (name in ("und", "total"))
        lines.append(f"  {name:<52}{count / 1e6:>8.2f}" + (f"{released / 1e6:>10.2f}" if paper else "")
                     + (f"{paper[name]:>8}B" if name in paper else ""))
    if absent:
        lines.append(f"  {'not built':<52}{sum(absent.values()) / 1e6:>8.2f}")
    return lines
