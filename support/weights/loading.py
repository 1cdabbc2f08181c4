"""Weights from elsewhere into a model, strictly: backbones, text blocks for the experts, NVIDIA's Cosmos, our own.

Each key of either side must be matched, converted or named as deliberately left out (key_maps.py), and shapes must be
equal, before the first tensor is read. Tensors are then copied one by one, so memory never holds a second copy."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

from experts import RMSNorm
from model import InternVLA_A1
from support.checkpoint import DTYPES, TOKENIZER
from support.data.prompts import check_tokenizer, has_tokenizer
from support.files import damage, must, read_json, unreadable
from support.weights.key_maps import BACKBONE, COSMOS, LEFT_OUT, compact, text_blocks, translate, unbuilt

HF_FILES = ("config.json", "*.safetensors")
INDEX = "model.safetensors.index.json"   # which tensor is in which file
FLOATS = ("F64", "F32", "F16", "BF16")   # others are quantised


# ---- where tensors come from ------------------------------------------------------------------------------------

def find(path_or_id, files, revision=None):
    """A directory, or a hub id such as Qwen/Qwen3-VL-2B-Instruct, which is fetched -> Path. Only for what a user names.
    revision: branch, tag or commit of a hub id. ValueError says what to fetch and where."""
    if Path(path_or_id).is_dir():
        must(not revision, f"--revision {revision} is of a hub id, {path_or_id} is a directory: leave it out")
        return Path(path_or_id)
    if str(path_or_id).count("/") != 1 or str(path_or_id)[0] in "/.~":
        raise ValueError(f"{path_or_id} is no directory here, and no hub id such as Qwen/Qwen3-VL-2B-Instruct")
    from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(str(path_or_id), allow_patterns=list(files), revision=revision))
    except Exception as error:   # offline, absent, gated, no id at all: the hub has a class for each
        raise ValueError(f"{path_or_id} is no directory here and could not be fetched from the hub "
                         f"({type(error).__name__}): download {', '.join(files)} of huggingface.co/{path_or_id} "
                         "into a directory and give its path") from error


class Source(NamedTuple):
    """Tensors of files, read one by one: nothing is in memory before it is asked for."""

    directory: Path
    shapes: dict            # key -> its shape
    read: Callable          # key -> its tensor
    dtypes: dict            # key -> its dtype, as safetensors name them
    metadata: dict = None   # of safetensors files


def safetensors_of(directory):
    """The safetensors files of a directory, those that its index names where it has one -> Source."""
    paths, files, shapes, dtypes = sorted(Path(directory).glob("*.safetensors")), {}, {}, {}
    if (index := Path(directory) / INDEX).exists():
        named = read_json(index, repair="download it again").get("weight_map")
        files_here = isinstance(named, dict) and all(str(name) == Path(str(name)).name for name in named.values())
        must(files_here, f"{index} names no files of this directory as weight_map: download it again")
        paths = [index.with_name(name) for name in sorted({*map(str, named.values())})]
    must(paths, f"{directory} holds no weights: expected model.safetensors or its shards")
    for path in paths:
        must(path.exists(), f"{path} is missing, and {INDEX} names it: download it")
        try:
            file = safe_open(path, "pt")
        except Exception as error:   # of the library, whatever a torn header makes it raise
            raise unreadable(path, error, "download it again") from error
        twice = next((key for key in file.keys() if key in files), None)
        must(twice is None, f"{path} holds {twice}, and so does a file before it: keep one of the two in {directory}")
        files |= dict.fromkeys(file.keys(), file)
        shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
        dtypes |= {key: file.get_slice(key).get_dtype() for key in file.keys()}
    return Source(Path(directory), shapes, lambda key: files[key].get_tensor(key), dtypes, file.metadata())


def torchscript_of(path_or_id):
    """NVIDIA's encoder.jit and decoder.jit -> Source."""
    names, tensors = ("encoder.jit", "decoder.jit"), {}
    directory = find(path_or_id, names)
    for name in names:
        try:
            tensors |= torch.jit.load(directory / name, map_location="cpu").state_dict()
        except Exception as error:
            raise unreadable(directory / name, error, "download this TorchScript file again") from error
    dtypes = {key: DTYPES.get(x.dtype, str(x.dtype)) for key, x in tensors.items()}
    return Source(directory, {key: tuple(x.shape) for key, x in tensors.items()}, tensors.get, dtypes)


# ---- into a model -----------------------------------------------------------------------------------------------

@dataclass
class Report:
    """What a load did. converted: foreign keys. left_out: reason -> foreign keys."""

    source: str
    matched: int = 0
    converted: list = field(default_factory=list)
    left_out: dict = field(default_factory=dict)

    def __str__(self):
        lines = [f"{self.source}: {self.matched} tensors matched"]
        lines += [f"  converted: {', '.join(compact(self.converted))}"] if self.converted else []
        return "\n".join(lines + [f"  not loaded, {len(keys)} tensors: {why}" for why, keys in self.left_out.items()])


def plan(source, rules, config, own, wanted=""):
    """Decide the fate of every key before anything is read -> ([(foreign key, our name, change)], Report). own: our
    name -> tensor, to be filled if the name matches `wanted`. ValueError: all missing, unexpected, misshapen keys."""
    own = {name: p for name, p in own.items() if re.match(wanted, name)}
    if not any(key.endswith("embed_tokens.weight") for key in source.shapes) and "und.embed_tokens.weight" in own:
        # safetensors keeps one of a tied pair, and it is this one
        rules = [(r".*lm_head\.weight", "und.embed_tokens.weight", None), *rules]
    report, copies, unexpected, wrong, quantised = Report(str(source.directory)), {}, [], [], []
    for key in sorted(source.shapes):
        ours, change = translate(key, rules)
        reason = change if ours is LEFT_OUT else translate(ours, unbuilt(config))[1]
        if reason:
            report.left_out.setdefault(reason, []).append(key)
        elif ours not in own or ours in copies:
            unexpected.append(key)
        else:
            if source.shapes[key] != tuple(own[ours].shape):
                wrong.append(f"{key} is {list(source.shapes[key])}, {ours} is {list(own[ours].shape)}")
            if source.dtypes[key] not in FLOATS:
                quantised.append(f"{key} is {source.dtypes[key]}; expected one of {', '.join(FLOATS)}")
            copies[ours] = key, ours, change
            report.converted += [key] if change else []
    report.matched, missing = len(copies), own.keys() - copies.keys()
    problems = [*(f"missing for {line}" for line in compact(missing)),
                *(f"unexpected {line}" for line in compact(unexpected)), *(f"shape: {line}" for line in wrong),
                *(f"dtype: {line}" for line in quantised)]
    must(not problems, f"{source.directory} does not fit this model ({len(missing)} missing, {len(unexpected)} "
         f"unexpected, {len(wrong)} of another shape, {len(quantised)} of another dtype); nothing was loaded:\n  "
         + "\n  ".join(problems))
    return list(copies.values()), report


@torch.no_grad()
def fill(model, source, rules, wanted):
    """Copy a source's tensors into the parameters whose names match the pattern `wanted`, strictly -> Report."""
    own = model.state_dict()
    copies, report = plan(source, rules, model.config, own, wanted)
    for key, ours, change in copies:
        own[ours].copy_(change(source.read(key)) if change else source.read(key))
    return report


def to_compute(model, dtype):
    """Cast a model: norms, action projections and all buffers (rotary frequencies) stay float32. Returns it."""
    act = model.act
    exact = act.state_proj, act.action_in_proj, act.action_out_proj, act.action_time_mlp_in, act.action_time_mlp_out
    for module in model.modules():
        if module not in exact and not isinstance(module, RMSNorm):
            for p in module.parameters(recurse=False):
                p.data = p.data.to(dtype)
    return model


def slow_products(model):
    """[one line] where a model in bfloat16 is on a CPU without instructions for it, else [].

    torch then computes such products in software. One of a preset's width took 6 times as long as in float32, its
    gradients 8 and 75 times (an AMD EPYC with AVX2, torch 2.13)."""
    native = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    slow = model.dtype == torch.bfloat16 and next(model.parameters()).device.type == "cpu" and not native
    return ["this CPU has no instructions for bfloat16: products take many times as long as in float32, which "
            "--optimizer fp32 trains in, and --weights with --dtype float32 infers in"] * slow


def empty_model(config, device="cpu", dtype=torch.float32):
    """InternVLA-A1 whose parameters are allocated once, in their final dtype, and not initialised."""
    try:
        with torch.device("meta"):
            model = to_compute(InternVLA_A1(config), dtype)   # constants are born on the CPU all the same
        return model._apply(lambda x: torch.empty_like(x, device=device) if x.is_meta else x.to(device)).eval()
    except (RuntimeError, ValueError, TypeError, ArithmeticError, MemoryError) as error:
        raise ValueError(f"no network of this config can be built here ({' '.join(str(error).split())[:120]}): use "
                         "that of the weights, or more memory") from error


def backbone_fields(directory):
    """What a backbone's config.json says, as ModelConfig fields; transformers 4.57 and 5.x write it differently."""
    path = Path(directory) / "config.json"
    stored = read_json(path, repair="give the directory of the backbone")
    with damage(str(path), "this is not a vision-language model's"):
        text, vision, kind = stored["text_config"], stored["vision_config"], stored["model_type"]
        rope = (text.get("rope_scaling") or {}) | (text.get("rope_parameters") or {})
        heads = text["num_attention_heads"]
        fields = {"layers": text["num_hidden_layers"], "heads": heads, "kv_heads": text["num_key_value_heads"],
                  "head_dim": text.get("head_dim") or text["hidden_size"] // heads, "und_width": text["hidden_size"],
                  "und_mlp": text["intermediate_size"], "norm_eps": text["rms_norm_eps"], "vocab": text["vocab_size"],
                  "rope_theta": rope.get("rope_theta") or text["rope_theta"],
                  "mrope_sections": tuple(rope.get("mrope_section") or ()),
                  "vit_width": vision["hidden_size"], "vit_mlp": vision["intermediate_size"]}
        if kind == "internvl":
            patch, size = (x[0] if isinstance(x, list) else x for x in (vision["patch_size"], vision["image_size"]))
            return fields | {"backbone": "internvl3", "qkv_bias": True, "qk_norm": False, "vit_patch": patch,
                             "vit_layers": vision["num_hidden_layers"], "vit_heads": vision["num_attention_heads"],
                             "vit_grid": size // patch}
        if kind == "qwen3_vl":
            grid = round(vision["num_position_embeddings"] ** 0.5)
            return fields | {"backbone": "qwen3vl", "qkv_bias": bool(text.get("attention_bias")), "qk_norm": True,
                             "vit_patch": vision["patch_size"], "vit_layers": vision["depth"],
                             "vit_heads": vision["num_heads"], "vit_grid": grid}
        raise ValueError(f"{path}: model_type {kind!r:.60} is no backbone of InternVLA-A1; known are internvl "
                         "(OpenGVLab/InternVL3-1B-hf) and qwen3_vl (Qwen/Qwen3-VL-2B-Instruct)")


def load_backbone(model, path_or_id):
    """InternVL3-1B or Qwen3-VL-2B into the understanding expert -> Report. ValueError: the config differs."""
    directory = find(path_or_id, HF_FILES)
    differ = [f"{name} {value} there, {getattr(model.config, name)} here" for name, value
              in backbone_fields(directory).items() if getattr(model.config, name) != value]
    must(not differ, f"{directory}/config.json is not the backbone of this config: {'; '.join(differ)}")
    return fill(model, safetensors_of(directory), BACKBONE, r"und\.|layers\.\d+\.und\.")


def initialise_experts(model, path_or_id):
    """Copy a language model's blocks into the generation and action experts -> a Report for each.
    It is the backbone itself for a1_2b, whose shapes match, and Qwen3-0.6B for a1_3b."""
    source = safetensors_of(find(path_or_id, HF_FILES))
    return [fill(model, source, text_blocks(expert), rf"layers\.\d+\.{expert}\.|{expert}\.norm\.")
            for expert in (("gen", "act") if model.config.gen_expert else ("act",))]


def load_cosmos(model, path_or_id):
    """NVIDIA's Cosmos CI8x8 tokenizer into the VAE -> Report."""
    return fill(model, torchscript_of(path_or_id), COSMOS, r"vae\.")


def load_state(model, tensors, what):
    """Tensors of one of our checkpoints into a model. ValueError says, in torch's words, what does not fit."""
    for name, ours in model.state_dict().items():
        if name in tensors and tensors[name].is_floating_point() != ours.is_floating_point():   # torch would convert it
            raise ValueError(f"{what}: {name} is {tensors[name].dtype}, expected {ours.dtype}: copy it again")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{what} does not fit this config: {' '.join(str(error).split())[:300]}") from error


def with_tokenizer(model, path, given=None):
    """The ModelConfig of a checkpoint or published directory `path`, its tokenizer a directory that has been read.
    given: --tokenizer, a directory or hub id: what a user names may be fetched. What a file names never is, nor
    followed: its tokenizer's files stand beside it. ValueError: they do not."""
    if model.tokenizer and not (given or has_tokenizer(path)):
        raise ValueError(f"{path} was trained with the tokenizer {model.tokenizer[:100]!r}, whose files do not stand "
                         "in it: give --tokenizer DIR, with tokenizer.json, or with vocab.json and merges.txt")
    if given or model.tokenizer:   # else one token a byte
        model = replace(model, tokenizer=str(find(given, TOKENIZER) if given else path))
    check_tokenizer(model)
    return model
