"""What a published tensor is called here: one key map a source.

A key map is a list of (pattern, our name, change), tried in order; support/weights/loading.py applies them."""

import re
from collections import defaultdict

import torch

LEFT_OUT = None   # in place of our name: this key is deliberately not loaded, for the reason given
TEXT = r"(?:model\.)?language_model\.(?:model\.)?"   # transformers has written it in three ways

BACKBONE = [
    (r"(?:model\.)?visual\.patch_embed\.proj\.(.+)", r"und.visual.patch_embed.\1", None),
    (r"(?:model\.)?visual\.deepstack_merger_list\..+", LEFT_OUT, "DeepStack: InternVLA-A1 drops its features"),
    (r"(?:model\.)?visual\.((?:pos_embed|blocks|merger)\..+)", r"und.visual.\1", None),
    (r"(?:model\.)?vision_tower\.embeddings\.patch_embeddings\.projection\.(.+)", r"und.visual.patch_embed.\1", None),
    (r"(?:model\.)?vision_tower\.embeddings\.(cls_token|position_embeddings)", r"und.visual.\1", None),
    (r"(?:model\.)?vision_tower\.encoder\.layer\.(.+)", r"und.visual.layers.\1", None),
    (r"(?:model\.)?multi_modal_projector\.(.+)", r"und.visual.projector.\1", None),
    (TEXT + r"embed_tokens\.weight", "und.embed_tokens.weight", None),
    (TEXT + r"layers\.(\d+)\.(.+)", r"layers.\1.und.\2", None),
    (TEXT + r"norm\.weight", "und.norm.weight", None),
    (r"(?:language_model\.)?lm_head\.weight", LEFT_OUT, "nothing reads the logits"),
]
COSMOS = [
    (r"(?:encoder\.patcher|decoder\.unpatcher|.*patcher\d*)\.(?:wavelets|_arange)", LEFT_OUT,
     "constants of the Haar transform"),
    (r"((?:encoder|decoder|quant_conv|post_quant_conv)\..+)", r"vae.\1", None),
]
RELEASE = [(r"model\.\w+_with_expert\.und_expert\." + pattern, ours, change) for pattern, ours, change in BACKBONE] + [
    (r"model\.cosmos(?:_tokenizer)?\._(?:enc|dec)_model\." + pattern, ours, change)
    for pattern, ours, change in COSMOS] + [
    (r"model\.\w+_with_expert\.(gen|act)_expert\.(?:model\.)?layers\.(\d+)\.(.+)", r"layers.\2.\1.\3", None),
    (r"model\.\w+_with_expert\.(gen|act)_expert\.(?:model\.)?norm\.weight", r"\1.norm.weight", None),
    (r"model\.(?:cosmos|gen)_in_proj\.(.+)", r"gen.proj_in.\1", None),
    (r"model\.downsample_conv\.(.+)", r"gen.compress.\1", None),
    (r"model\.upsample_conv\.(.+)", r"gen.expand.\1", None),
    (r"model\.(?:cosmos|gen)_out_layer_norm\.(.+)", r"gen.norm_out.\1", None),
    (r"model\.(?:cosmos|gen)_out_proj\.(.+)", r"gen.proj_out.\1", None),
    (r"model\.(action_out_proj\..+)", r"act.\1", torch.neg),   # it predicts eps - a, Eq. (2) has a - eps
    (r"model\.((?:state_proj|action_in_proj|action_time_mlp_in|action_time_mlp_out)\..+)", r"act.\1", None),
    (r"model\.imagenet_(?:mean|std)", LEFT_OUT, "constants of the vision tower"),
]
NO_VAE = [(r"model\.cosmos.+", LEFT_OUT, "the tokenizer comes from --vae")] + RELEASE


def text_blocks(expert):
    """Key map of a language model's blocks, alone or inside a backbone, into one of our experts."""
    text = rf"(?:{TEXT}|model\.)"
    return [
        (text + r"layers\.(\d+)\.(.+)", rf"layers.\1.{expert}.\2", None),
        (text + r"norm\.weight", f"{expert}.norm.weight", None),
        (r".*(?:embed_tokens|lm_head)\.weight", LEFT_OUT, "experts have no words"),
        (r"(?:model\.)?(?:visual|vision_tower|multi_modal_projector)\..+", LEFT_OUT, "experts have no eyes"),
    ]


def unbuilt(config):
    """Key map, from our names, of what a preset does not build."""
    rules = []
    if not config.und_tail:
        tail = r"(?:self_attn\.(?:q_proj|q_norm|o_proj)|mlp|post_attention_layernorm)\..+"
        rules.append((rf"layers\.{config.layers - 1}\.und\.{tail}|und\.norm\.weight", LEFT_OUT,
                      "the last understanding layer gives keys and values alone"))
    if not config.gen_expert:
        rules.append((r"(?:gen|vae|layers\.\d+\.gen)\..+", LEFT_OUT, "built without the generation expert"))
    return rules


def translate(key, rules):
    """A foreign key -> (our name or LEFT_OUT, change or reason); ("", None) if no rule knows it."""
    for pattern, ours, change in rules:
        if match := re.fullmatch(pattern, key):
            return LEFT_OUT if ours is LEFT_OUT else match.expand(ours), change
    return "", None


def compact(keys):
    """Every key, layers folded: ["a.0.w", "a.1.w", "b"] -> ["a.{0,1}.w", "b"]."""
    groups = defaultdict(list)
    for key in sorted(keys):
        head, *number_and_tail = re.split(r"\.(\d+)\.", key, maxsplit=1)
        number, tail = number_and_tail or ("", "")
        groups[head, tail].append(number)
    return [f"{head}.{{{','.join(numbers)}}}.{tail}" if tail else head for (head, tail), numbers in groups.items()]
