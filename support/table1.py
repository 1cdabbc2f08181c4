"""Table 1: parameters by part, of what is built and of what the release holds besides."""

def count_parameters(model):
    """Unique parameters by part: dict of und, gen, act, projections, vae, total (Table 1's columns)."""
    def size(modules):
        return sum(p.numel() for m in modules for p in m.parameters())

    layers = model.layers
    rows = {"und": size([model.und] + [layer.und for layer in layers]),
            "act": size([layer.act for layer in layers] + [model.act.norm]),
            "gen": 0, "vae": 0}
    if model.config.gen_expert:
        rows["gen"] = size([layer.gen for layer in layers] + [model.gen.norm])
        rows["vae"] = size([model.vae])
    rows["total"] = sum(p.numel() for p in model.parameters())
    rows["projections"] = rows["total"] - sum(rows[name] for name in ("und", "gen", "act", "vae"))
    return rows


def not_built(model):
    """What the release's files hold and this model does not build, by key pattern -> parameters (int).

    Nothing in InternVLA-A1 reads these tensors. A negative entry is the reverse: built here, absent there. Built
    plus not built is Table 1's total: 1,835,996,688 (2B) and 3,222,760,208 (3B).
    """
    if model.backbone == "tiny":
        return {}
    D, F, q, vision = model.und_width, model.und_mlp, model.heads * model.head_dim, model.vit_width
    kv = model.kv_heads * model.head_dim
    rows = {}
    if model.backbone == "internvl3":
        rows["lm_head.weight"] = model.vocab * D                                    # untied in the release
        rows["vision_tower...attention.{q,k,v}_proj.bias"] = -model.vit_layers * 3 * vision   # B6: it drops them
    if model.backbone == "qwen3vl":
        four, out = 4 * vision, D
        rows["visual.deepstack_merger_list.{0,1,2}"] = 3 * (2 * four + four * four + four + out * four + out)
    if not model.und_tail:
        last = f"language_model.layers.{model.layers - 1}"
        rows[f"{last}.self_attn.q_proj"] = D * q + (q if model.qkv_bias else 0)
        if model.qk_norm:
            rows[f"{last}.self_attn.q_norm"] = model.head_dim
        rows[f"{last}.self_attn.o_proj"] = q * D
        rows[f"{last}.post_attention_layernorm"] = D
        rows[f"{last}.mlp"] = 3 * D * F
        rows["language_model.norm"] = D
    if not model.gen_expert:
        if model.vae == "cosmos":
            rows["vae"] = 76_789_472
        E, kernel = model.gen_width, model.compress_kernel ** 2
        bias, qk = (q + 2 * kv if model.qkv_bias else 0), (2 * model.head_dim if model.qk_norm else 0)
        block = E * (2 * q + 2 * kv) + bias + qk + 3 * E * model.gen_mlp + 2 * E
        rows["gen_expert"] = model.layers * block + E
        rows["gen projections"] = (16 * E + E) + 2 * (E * E * kernel + E) + 2 * E + (16 * E + 16)
    return rows
