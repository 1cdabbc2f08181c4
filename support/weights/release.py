"""The authors' published checkpoint: into a model, into an ordinary checkpoint of ours, and back to their form."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from config import from_dict, get_config, to_dict
from support import checkpoint
from support.data.robots import ROBOTS, release_statistics
from support.data.statistics import Statistics
from support.owner import contents
from support.table1 import on_meta
from support.weights.key_maps import COSMOS, NO_VAE, RELEASE
from support.weights.loading import empty_model, fill, plan, read
from support.weights.tensor_files import Tensors, TorchScript, find

RELEASE_FILES = ("config.json", "model.safetensors", "stats.json")
TOKENIZERS = {"internvl3": "OpenGVLab/InternVL3-1B-hf", "qwen3vl": "Qwen/Qwen3-VL-2B-Instruct"}


def release_tokenizer(directory, backbone):
    """The tokenizer of the authors' directory: its own, else the backbone's on the hub, "" if that has none."""
    own = (directory / "tokenizer.json").exists() or (directory / "vocab.json").exists()
    return str(directory) if own else TOKENIZERS.get(backbone, "")


def release_parts(directory, vae):
    """[(source, key map, pattern of the names it fills)]. vae: as for load_release."""
    if vae is None:
        return [(Tensors(directory), RELEASE, "")]
    return [(Tensors(directory), NO_VAE, r"(?!vae\.)"), (TorchScript(vae), COSMOS, r"vae\.")]


def load_release(config, path_or_id, device="cpu", dtype=torch.float32, vae=None):
    """The authors' checkpoint -> (model in eval mode, [Report]). config: ModelConfig, such as a1_3b_release's.

    vae: a directory of NVIDIA's files, where the release's own copy of the tokenizer is not wanted.
    """
    model = empty_model(config, device, dtype)
    return model, [fill(model, *part) for part in release_parts(find(path_or_id, RELEASE_FILES), vae)]


def export_release(config, own, out, base):
    """Write weights as a directory that the release can load -> Path of its model.safetensors.

    config: ModelConfig. own: its state dict. base: the published directory. What is not built here is copied from it,
    and every tensor gets its dtype there.
    """
    source, out = Tensors(find(base, RELEASE_FILES)), Path(out)
    copies, _ = plan(source, RELEASE, config, own)
    tensors = {key: source.read(key) for key in source.where}
    for key, ours, change in copies:
        tensor = change(own[ours]) if change else own[ours]
        tensors[key] = tensor.to("cpu", tensors[key].dtype).contiguous()
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata=source.metadata)
    for name in ("config.json", "stats.json"):
        if (source.directory / name).exists():
            shutil.copyfile(source.directory / name, out / name)
    return out / "model.safetensors"


def release_settings(directory, config, robot, action_mode, fps=30.0, tokenizer=None):
    """What the release's directory says beside its weights -> (Path, Config, Statistics).

    config: name of a preset. tokenizer: in place of the directory's own, or else the backbone's on the hub.
    """
    if not robot or not action_mode:
        raise ValueError("--robot NAME and --action_mode absolute|delta are needed: the release's files do not say "
                         "which of their statistics to use")
    directory = find(directory, RELEASE_FILES)
    moments, row = release_statistics(directory / "stats.json", robot), ROBOTS[robot]
    tokenizer = tokenizer or release_tokenizer(directory, get_config(config).model.backbone)
    names = tuple(f"{feature}[{i}]" if width > 1 else feature
                  for feature, width in zip(row.action, row.widths) for i in range(width))
    stats = Statistics(robot=robot, action_mode=action_mode, fps=fps, windows=0, action_names=names,
                       relative=row.relative, **moments)
    return directory, get_config(config, {"action_mode": action_mode, "tokenizer": tokenizer}), stats


def import_release(args):
    """The command `import`: an ordinary checkpoint at step 0, every tensor in the dtype it was published in."""
    if contents(args.out):
        raise ValueError(f"{args.out} is not empty: give a new directory")
    directory, config, stats = release_settings(args.dir, args.config, args.robot, args.action_mode, args.fps,
                                                args.tokenizer)
    own, tensors = on_meta(config.model).state_dict(), {}
    for source, rules, wanted in release_parts(directory, args.vae):
        copies, report = plan(source, rules, config.model, own, wanted)
        tensors |= dict(read(source, copies))   # memory-mapped, but for the converted ones
        print(report)
    state = {"step": 0, "config": to_dict(config), "statistics": asdict(stats), "versions": {}, "log_length": 0}
    print(f"wrote {checkpoint.save(args.out, 0, tensors, {}, state)}")


def export_run(args):
    """The command `export`."""
    tensors, state = checkpoint.load(checkpoint.resolve(args.run))
    print(f"wrote {export_release(from_dict(state['config']).model, tensors, args.out, args.base)}")


def random_release(args):
    """The command `random`: noise in the published form, with statistics of genie1. --keys: lines of key, shape, dtype.

    The 3B's text embedding is left out, as safetensors does with a tied pair.
    """
    out, tensors = Path(args.dir), {}
    torch.manual_seed(0)
    for line in Path(args.keys).read_text().splitlines():
        key, shape, dtype = line.split("\t")[:3]
        if not (key.endswith("embed_tokens.weight") and "qwen3_vl" in key):
            tensors[key] = 0.02 * torch.randn(json.loads(shape), dtype=getattr(torch, dtype))
    robot = ROBOTS["genie1"]
    moments = {key: {"mean": [0.0] * width, "std": [1.0] * width}
               for keys in (robot.state, robot.action) for key, width in zip(keys, robot.widths)}
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "stats.json").write_text(json.dumps({"genie1": moments}, indent=1) + "\n")
    print(f"wrote {sum(t.numel() for t in tensors.values()) / 1e9:.2f} billion random numbers to {out}")
