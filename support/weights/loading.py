"""Weights from elsewhere: the backbones, the released InternVLA-A1, NVIDIA's Cosmos tokenizer.

    load_backbone       InternVL3-1B or Qwen3-VL-2B, in Hugging Face's form, into the understanding expert
    initialise_experts  text blocks of such a model into the generation and action experts
    load_cosmos         encoder.jit and decoder.jit, or safetensors, into the VAE
    load_release        the authors' published checkpoint, whole
    export_release      the way back

Key maps are in support/weights/key_maps.py. Every load is strict: shapes are compared and each key of either
side must be matched, converted or named as deliberately left out before the first tensor is read; a refusal lists
all others. Tensors are then copied one by one, so memory holds the model and never a second copy of it.

    python -m support.weights import DIR OUT --config a1_3b_release --robot NAME --action_mode delta
    python -m support.weights export RUN OUT --base DIR
    python -m support.weights random DIR --keys tests/data/keys_3b.tsv  a random directory of the published form
"""

import json
import re
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from config import CONFIGS, from_dict, get_config, to_dict
from model import InternVLA_A1
from support import checkpoint
from support.flags import Parser
from support.precision import to_compute
from support.weights.key_maps import (BACKBONE, COSMOS, LEFT_OUT, NO_VAE, RELEASE, compact, text_blocks, translate,
                              unread)
from support.data.robots import ROBOTS, release_statistics
from support.data.statistics import Statistics
from support.table1 import not_built
from support.weights.tensor_files import Tensors, TorchScript, find

# ---- loading ----------------------------------------------------------------------------------------------------

@dataclass
class Report:
    """What a load did. left_out: reason -> foreign keys."""

    source: str
    matched: int = 0
    converted: list = field(default_factory=list)
    left_out: dict = field(default_factory=dict)

    def __str__(self):
        lines = [f"{self.source}: {self.matched} tensors matched"]
        if self.converted:
            lines.append(f"  converted: {', '.join(compact(self.converted))}")
        lines += [f"  not loaded, {len(keys)} tensors: {reason}" for reason, keys in self.left_out.items()]
        return "\n".join(lines)


def plan(source, rules, config, own):
    """Decide the fate of every key before anything is read: ([(foreign key, our name, change)], Report).

    own: our name -> tensor to be filled. ValueError lists all missing, unexpected and misshapen keys.
    """
    if not any(key.endswith("embed_tokens.weight") for key in source.where) and "und.embed_tokens.weight" in own:
        # safetensors keeps one of a tied pair, and it is this one
        rules = [(r".*lm_head\.weight", "und.embed_tokens.weight", None), *rules]
    skip, report = unread(config), Report(str(source.directory))
    copies, unexpected, wrong = {}, [], []   # our name -> (foreign key, our name, change)
    for key in sorted(source.where):
        found = translate(key, rules)
        ours, change = found or (None, None)
        if found is None or ours in copies:
            unexpected.append(key)
        elif ours is LEFT_OUT:
            report.left_out.setdefault(change, []).append(key)
        elif ours in own:
            if source.shape(key) != tuple(own[ours].shape):
                wrong.append(f"{key} is {list(source.shape(key))}, {ours} is {list(own[ours].shape)}")
            copies[ours] = key, ours, change
            report.converted += [key] if change else []
        elif skip and re.fullmatch(skip[0], ours):
            report.left_out.setdefault(skip[1], []).append(key)
        elif not config.gen_expert and re.match(r"gen\.|vae\.|layers\.\d+\.gen\.", ours):
            report.left_out.setdefault("built without the generation expert", []).append(key)
        else:
            unexpected.append(key)
    report.matched, missing = len(copies), set(own) - set(copies)
    problems = [f"missing for {line}" for line in compact(missing)]
    problems += [f"unexpected {line}" for line in compact(unexpected)]
    problems += [f"shape: {line}" for line in wrong]
    if problems:
        raise ValueError(f"{source.directory} does not fit this model ({len(missing)} missing, {len(unexpected)} "
                         f"unexpected, {len(wrong)} of another shape); nothing was loaded:\n  " + "\n  ".join(problems))
    return list(copies.values()), report


def read(source, copies):
    """Yield (our name, tensor) one at a time, converted."""
    for key, ours, change in copies:
        tensor = source.read(key)
        yield ours, change(tensor) if change else tensor


@torch.no_grad()
def fill(model, source, rules, wanted):
    """Copy a source's tensors into the parameters whose names match the pattern `wanted`, strictly -> Report."""
    own = {name: p for name, p in model.state_dict().items() if re.match(wanted, name)}
    copies, report = plan(source, rules, model.config, own)
    for ours, tensor in read(source, copies):
        own[ours].copy_(tensor)
    return report


def empty_model(config, device="cpu", dtype=torch.float32):
    """InternVLA-A1 whose parameters are allocated once, in their final dtype, and not initialised."""
    with torch.device("meta"):
        model = to_compute(InternVLA_A1(config), dtype)   # constants are born on the CPU all the same
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty_like(p, device=device), requires_grad=p.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return model.eval()


def backbone_fields(directory):
    """What a backbone's config.json says, as ModelConfig fields; transformers 4.57 and 5.x write it differently."""
    try:
        stored = json.loads((Path(directory) / "config.json").read_text())
        text, vision = stored["text_config"], stored["vision_config"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{directory}/config.json is missing or is not a vision-language model's "
                         f"({type(error).__name__}: {error}); give the directory of the backbone") from error
    rope = text.get("rope_parameters") or {}
    sections = {**(text.get("rope_scaling") or {}), **rope}.get("mrope_section") or ()
    heads = text["num_attention_heads"]
    fields = {"layers": text["num_hidden_layers"], "heads": heads, "kv_heads": text["num_key_value_heads"],
              "head_dim": text.get("head_dim") or text["hidden_size"] // heads, "und_width": text["hidden_size"],
              "und_mlp": text["intermediate_size"], "rope_theta": rope.get("rope_theta", text.get("rope_theta")),
              "norm_eps": text["rms_norm_eps"], "vocab": text["vocab_size"], "mrope_sections": tuple(sections),
              "vit_width": vision["hidden_size"], "vit_mlp": vision["intermediate_size"]}
    if stored["model_type"] == "internvl":
        patch, size = (x[0] if isinstance(x, list) else x for x in (vision["patch_size"], vision["image_size"]))
        return fields | {"backbone": "internvl3", "qkv_bias": True, "qk_norm": False, "vit_patch": patch,
                         "vit_layers": vision["num_hidden_layers"], "vit_heads": vision["num_attention_heads"],
                         "vit_grid": size // patch}
    if stored["model_type"] == "qwen3_vl":
        return fields | {"backbone": "qwen3vl", "qkv_bias": bool(text.get("attention_bias")), "qk_norm": True,
                         "vit_patch": vision["patch_size"], "vit_layers": vision["depth"],
                         "vit_heads": vision["num_heads"], "vit_grid": round(vision["num_position_embeddings"] ** 0.5)}
    raise ValueError(f"{directory}/config.json: model_type '{stored['model_type']}' is no backbone of InternVLA-A1; "
                     f"known are internvl (OpenGVLab/InternVL3-1B-hf) and qwen3_vl (Qwen/Qwen3-VL-2B-Instruct)")


HF_FILES = ("config.json", "*.safetensors", "model.safetensors.index.json")


def load_backbone(model, path_or_id):
    """InternVL3-1B or Qwen3-VL-2B into the understanding expert -> Report. ValueError: the config differs."""
    directory = find(path_or_id, HF_FILES)
    differ = [f"{name} {value} there, {getattr(model.config, name)} here" for name, value
              in backbone_fields(directory).items() if getattr(model.config, name) != value]
    if differ:
        raise ValueError(f"{directory}/config.json is not the backbone of this config: {'; '.join(differ)}")
    with Tensors(directory) as source:
        return fill(model, source, BACKBONE, r"und\.|layers\.\d+\.und\.")


def initialise_experts(model, path_or_id):
    """Copy a language model's blocks into the generation and action experts -> list of two Reports.

    The directory is the backbone's own (a1_2b, whose shapes match) or Qwen3-0.6B's (a1_3b). Without this call they
    are random, as the release starts them.
    """
    reports, directory = [], find(path_or_id, HF_FILES)
    with Tensors(directory) as source:
        for expert in ("gen", "act") if model.config.gen_expert else ("act",):
            wanted = rf"layers\.\d+\.{expert}\.|{expert}\.norm\."
            reports.append(fill(model, source, text_blocks(expert), wanted))
    return reports


def open_cosmos(path_or_id):
    directory = find(path_or_id, ("encoder.jit", "decoder.jit"))
    return (TorchScript if (directory / "encoder.jit").exists() else Tensors)(directory)


def load_cosmos(model, path_or_id):
    """NVIDIA's Cosmos CI8x8 tokenizer (encoder.jit and decoder.jit, or safetensors) into the VAE -> Report."""
    with open_cosmos(path_or_id) as source:
        return fill(model, source, COSMOS, r"vae\.")


def load_state(model, tensors, what):
    """Tensors of one of our checkpoints into a model. ValueError names what does not fit."""
    own = model.state_dict()
    wrong = sorted(name for name in own.keys() | tensors.keys()
                   if name not in own or name not in tensors or own[name].shape != tensors[name].shape)
    if wrong:
        raise ValueError(f"{what} does not fit this config: {len(wrong)} tensors are missing, unexpected or of another "
                         f"shape, such as {', '.join(compact(wrong)[:3])}")
    model.load_state_dict(tensors)


# What may differ between a run and the one its weights come from: how it is trained, not what the network computes.
TRAINED_ANEW = {"lambda_gen", "gen_target", "action_draws", "tau_density", "noise_on_padding", "euler_steps",
                "text_tokens", "tokenizer"}


def origin_config(path):
    """The ModelConfig of one of our checkpoints."""
    return from_dict(json.loads((path / checkpoint.STATE).read_text())["config"]).model


def start(model, origin=None, und=None, vae=None, experts="scratch", release=None):
    """The weights a training run begins with, over random ones -> list of Reports or lines.

    origin: a checkpoint of ours. und, vae: directories or hub ids. experts: "scratch", "und" (the text blocks of
    `und`) or a directory. release: the authors' directory. ValueError: one line, or a refused load.
    """
    if (origin or release) and (und or vae or experts != "scratch" or origin and release):
        raise ValueError("--from and the release's directory bring all weights: leave out --init_und, --init_vae and "
                         "--init_experts")
    if release:
        if not model.config.rope_bf16:   # equal shapes are not enough here either
            raise ValueError(f"--weights {release} holds the authors' weights, which expect --config a1_3b_release")
        with Tensors(find(release, RELEASE_FILES)) as source:
            return [fill(model, source, RELEASE, "")]
    if origin:
        there, here = vars(origin_config(origin)), vars(model.config)
        differ = [f"--{name} {there[name]} there, {here[name]} here" for name in sorted(here.keys() - TRAINED_ANEW)
                  if there[name] != here[name]]
        if differ:   # equal shapes are not enough: rotary positions and picture sizes have none
            raise ValueError(f"--from {origin} is another network: {', '.join(differ[:4])}; give its --config")
        load_state(model, checkpoint.load(origin)[0], origin)
        return [f"weights of {origin}; optimizer, schedule and statistics start afresh"]
    if experts == "und" and not und:
        raise ValueError("--init_experts und copies the text blocks of --init_und DIR, which is missing")
    reports = [load_backbone(model, und)] if und else []
    reports += [load_cosmos(model, vae)] if vae else []
    if experts != "scratch":
        reports += initialise_experts(model, und if experts == "und" else experts)
    return reports


def chosen(args, out):
    """The arguments of `start` that train.py's flags ask for; out: the run's folder. ValueError: one line.

    A run that is resumed and told nothing brings its own weights and vocabulary. A run is resolved to its newest good
    checkpoint here, once: that hashes gigabytes.
    """
    given = {"origin": args.origin, "und": args.init_und, "vae": args.init_vae, "experts": args.init_experts}
    if args.weights:
        others = args.init, args.origin, args.init_und, args.init_vae
        if any(others) or args.init_experts != "scratch":
            raise ValueError(f"--weights {args.weights} says where all weights come from: leave out --from, --init, "
                             f"--init_und, --init_vae and --init_experts, or give those instead of it")
        given |= identify(args.weights)
    elif args.resume and args.config != "conveyor" and not (args.init or args.init_und) and any(out.glob("step_*")):
        given["origin"] = given["origin"] or out
    if given["origin"]:
        given["origin"] = checkpoint.resolve(given["origin"])
    return given


def identify(directory):
    """What a directory of published files holds, for --weights -> the arguments of `start` it stands for.

    One of our runs; the release's directory (stats.json); or a backbone and Cosmos, each in `directory` itself or in
    folders of it, told apart by config.json and encoder.jit. Experts start random, as the release's do. ValueError
    lists what was looked for, or names two folders for one thing.
    """
    root = Path(directory)
    if any(root.glob("step_*")) or (root / checkpoint.MANIFEST).exists():
        return {"origin": directory}
    if (root / "stats.json").exists() and (root / "model.safetensors").exists():
        return {"release": directory}
    found = {}
    for folder in (root, *sorted(path for path in root.glob("*") if path.is_dir())):
        holds = {"vae": (folder / "encoder.jit").exists(), "und": model_type(folder) in ("internvl", "qwen3_vl")}
        for key in (key for key, here in holds.items() if here):
            if key in found:
                what = "Cosmos tokenizers" if key == "vae" else "backbones"
                raise ValueError(f"--weights {directory} holds two {what}, {found[key]} and {folder}: name one with "
                                 f"--init_und DIR --init_vae DIR instead")
            found[key] = str(folder)
    if "und" not in found:
        raise ValueError(f"--weights {directory}: found neither a run (step_*), nor the release's files "
                         "(model.safetensors and stats.json), nor a backbone (a config.json of InternVL3-1B-hf or "
                         "Qwen3-VL-2B, here or in a folder of it; Cosmos' encoder.jit and decoder.jit beside it)")
    return found


def model_type(folder):
    """What config.json of a folder says of itself, None without one. ValueError: it cannot be read."""
    path = folder / "config.json"
    try:
        return json.loads(path.read_text()).get("model_type") if path.exists() else None
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}): download it again") from error


TOKENIZERS = {"internvl3": "OpenGVLab/InternVL3-1B-hf", "qwen3vl": "Qwen/Qwen3-VL-2B-Instruct"}


def release_tokenizer(directory, backbone):
    """The tokenizer of the authors' directory: its own, else the backbone's on the hub, "" if that has none."""
    own = (directory / "tokenizer.json").exists() or (directory / "vocab.json").exists()
    return str(directory) if own else TOKENIZERS.get(backbone, "")


def tokenizer_of(start, model):
    """The tokenizer of the weights a run starts with, "" if they bring none. start: arguments of `start`."""
    if start.get("release"):
        return release_tokenizer(Path(start["release"]), model.backbone)
    return start["und"] or (origin_config(start["origin"]).tokenizer if start["origin"] else "")


RELEASE_FILES = ("config.json", "model.safetensors", "stats.json")


def skeleton(config, wanted=""):
    """Our names and shapes, without memory: what a load has to fill."""
    with torch.device("meta"):
        return {name: p for name, p in InternVLA_A1(config).state_dict().items() if re.match(wanted, name)}


def load_release(config, path_or_id, device="cpu", dtype=torch.float32, vae=None):
    """The authors' checkpoint -> (model in eval mode, [Report]). config: ModelConfig, such as a1_3b_release's.

    vae: a directory of NVIDIA's files, where the release's own copy of the tokenizer is not wanted.
    """
    rules, wanted = (RELEASE, "") if vae is None else (NO_VAE, r"(?!vae\.)")
    with Tensors(find(path_or_id, RELEASE_FILES)) as source:
        plan(source, rules, config, skeleton(config, wanted))   # refuse before allocating
        model = empty_model(config, device, dtype)
        reports = [fill(model, source, rules, wanted)]
    return model, reports + ([] if vae is None else [load_cosmos(model, vae)])


def export_release(config, own, out, base=None):
    """Write weights as a directory that the release can load -> Path of its model.safetensors.

    own: our state dict; config: its ModelConfig. base: the published directory: what we do not build (DeepStack, the
    last understanding layer's tail, lm_head) is copied from it, and every tensor keeps its dtype there. ValueError
    without it, listing those keys.
    """
    if base is None:
        raise ValueError("export needs --base, the published directory, for what is not built here: "
                         + ", ".join(not_built(config)))
    out = Path(out)
    with Tensors(find(base, RELEASE_FILES)) as source:
        copies, _ = plan(source, RELEASE, config, own)
        tensors = {key: source.read(key) for key in source.where}
        for key, ours, change in copies:
            tensor = change(own[ours]) if change else own[ours]
            tensors[key] = tensor.to("cpu", tensors[key].dtype).contiguous()
        out.mkdir(parents=True, exist_ok=True)
        save_file(tensors, out / "model.safetensors", metadata=source.metadata)
        for name in ("config.json", "stats.json"):
            if (source.directory / name).exists():
                (out / name).write_bytes((source.directory / name).read_bytes())
    return out / "model.safetensors"


# ---- from the release to our checkpoint, and back ---------------------------------------------------------------

def release_settings(directory, config, robot, action_mode, fps=30.0, tokenizer=None):
    """What the release's directory says beside its weights -> (Path, Config, Statistics).

    config: name of a preset. What cannot be derived (the robot, the action mode) has no default. The tokenizer is the
    one given, else the directory's own, else the backbone's on the hub.
    """
    if not robot or not action_mode:
        raise ValueError("--robot NAME and --action_mode absolute|delta are needed: the release's files do not say "
                         "which of their statistics to use")
    directory = find(directory, RELEASE_FILES)
    moments = release_statistics(directory / "stats.json", robot, action_mode)
    preset = get_config(config)
    tokenizer = tokenizer or release_tokenizer(directory, preset.model.backbone)
    names = tuple(f"{feature}[{i}]" if width > 1 else feature
                  for feature, width in zip(ROBOTS[robot].action, ROBOTS[robot].widths) for i in range(width))
    stats = Statistics(robot=robot, action_mode=action_mode, fps=fps, windows=0, action_names=names,
                       relative=ROBOTS[robot].relative, **moments)
    return directory, get_config(config, {"action_mode": action_mode, "tokenizer": tokenizer}), stats


def import_release(args):
    """The command `import`: an ordinary checkpoint at step 0, every tensor in the dtype it was published in."""
    if Path(args.out).exists() and any(Path(args.out).iterdir()):
        raise ValueError(f"{args.out} is not empty: give a new directory")
    directory, config, stats = release_settings(args.dir, args.config, args.robot, args.action_mode, args.fps,
                                                args.tokenizer)
    parts = [(Tensors(directory), RELEASE if args.vae is None else NO_VAE, "" if args.vae is None else r"(?!vae\.)")]
    if args.vae:
        parts.append((open_cosmos(args.vae), COSMOS, r"vae\."))
    tensors = {}
    with ExitStack() as stack:
        for source, rules, wanted in parts:
            copies, report = plan(stack.enter_context(source), rules, config.model, skeleton(config.model, wanted))
            tensors |= dict(read(source, copies))   # memory-mapped, but for the converted ones
            print(report)
        state = {"step": 0, "config": to_dict(config), "statistics": asdict(stats), "versions": {}, "log_length": 0}
        print(f"wrote {checkpoint.save(args.out, 0, tensors, {}, state)}")


def random_release(args):
    """The command `random`: noise in the published form, to try the other commands on without the real files.

    --keys: lines of key, shape, dtype, such as tests/data/keys_3b.tsv. Norms are ones; the 3B's text embedding is
    left out, as safetensors does with a tied pair. stats.json is made for --robot.
    """
    out, tensors = Path(args.dir), {}
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for line in Path(args.keys).read_text().splitlines():
        key, shape, dtype = line.split("\t")[:3]
        if key.endswith("embed_tokens.weight") and "qwen3_vl" in key:
            continue
        shape = json.loads(shape)
        make = torch.ones if "norm" in key and key.endswith("weight") and len(shape) == 1 else torch.randn
        tensors[key] = make(shape, dtype=getattr(torch, dtype)).mul_(1 if make is torch.ones else 0.02)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    robot = ROBOTS[args.robot]
    moments = {key: {"mean": [0.0] * width, "std": [1.0] * width}
               for keys in (robot.state, robot.action) for key, width in zip(keys, robot.widths)}
    (out / "stats.json").write_text(json.dumps({args.robot: moments}, indent=1) + "\n")
    print(f"wrote {sum(t.numel() for t in tensors.values()) / 1e9:.2f} billion random numbers to {out}")


def parse(argv):
    parser = Parser(prog="python -m support.weights", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    load = commands.add_parser("import", help="the release's directory to a checkpoint of ours")
    load.add_argument("dir", help="directory or hub id with model.safetensors and stats.json")
    load.add_argument("out", help="run folder to write")
    load.add_argument("--config", default="a1_3b_release", choices=[name for name in CONFIGS if name != "conveyor"])
    load.add_argument("--robot", help="whose statistics: a robot of support/data/robots.py")
    load.add_argument("--action_mode", choices=("absolute", "delta"), help="how the checkpoint was trained")
    load.add_argument("--fps", type=float, default=30.0, help="frames per second of that robot")
    load.add_argument("--vae", help="directory of encoder.jit and decoder.jit, instead of the release's copy")
    load.add_argument("--tokenizer", help="directory or hub id of the tokenizer (default: DIR, else the backbone's)")
    save = commands.add_parser("export", help="a checkpoint of ours to a directory the release can load")
    save.add_argument("run", help="a run or one checkpoint of it")
    save.add_argument("out", help="directory to write")
    save.add_argument("--base", help="the published directory")
    noise = commands.add_parser("random", help="a random directory of the published form")
    noise.add_argument("dir", help="directory to write")
    noise.add_argument("--keys", required=True, help="tests/data/keys_3b.tsv or keys_2b.tsv")
    noise.add_argument("--robot", default="genie1", choices=[name for name in ROBOTS if ROBOTS[name].state])
    return parser.parse_args(argv)


def export_run(args):
    """The command `export`."""
    tensors, state = checkpoint.load(checkpoint.resolve(args.run))
    print(f"wrote {export_release(from_dict(state['config']).model, tensors, args.out, args.base)}")
