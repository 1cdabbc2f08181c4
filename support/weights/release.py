"""The authors' published checkpoint: into a model, into an ordinary checkpoint of ours, and back to their form."""

from dataclasses import replace
from pathlib import Path

import torch

from config import from_dict, get_config, to_dict
from support import checkpoint
from support.checkpoint import safetensors_file
from support.data.prompts import has_tokenizer, tokenizer_files
from support.data.robots import check_width
from support.data.statistics import in_checkpoint, of_checkpoint
from support.files import must, written
from support.table1 import on_meta
from support.weights.key_maps import COSMOS, NO_VAE, RELEASE
from support.weights.loading import empty_model, fill, find, plan, safetensors_of, torchscript_of, with_tokenizer
from support.weights.settings import (CONFIG, OURS, STATS, TOKENIZERS, TRAIN_CONFIG, release_config, release_stats,
                                      write_settings)

RELEASE_FILES = (CONFIG, TRAIN_CONFIG, STATS, "model.safetensors", OURS, *checkpoint.TOKENIZER)


def release_parts(directory, vae):
    """[(source, key map, pattern of the names it fills)]. vae: as for load_release."""
    if vae is None:
        return [(safetensors_of(directory), RELEASE, "")]
    return [(safetensors_of(directory), NO_VAE, r"(?!vae\.)"), (torchscript_of(vae), COSMOS, r"vae\.")]


def load_release(config, directory, device="cpu", dtype=torch.float32, vae=None):
    """The authors' checkpoint -> (model in eval mode, [Report]). config: ModelConfig, such as a1_3b_release's.
    vae: a directory of NVIDIA's files, where the release's own copy of the tokenizer is not wanted."""
    model = empty_model(config, device, dtype)
    return model, [fill(model, *part) for part in release_parts(directory, vae)]


def export_release(config, own, out, base):
    """Write weights in a directory that the release can load -> Path of its model.safetensors. config: ModelConfig.
    own: its state dict. base: the published directory: of what is not built here, and of every tensor's dtype."""
    source = safetensors_of(base)
    copies, _ = plan(source, RELEASE, config, own)
    tensors = {key: source.read(key) for key in source.shapes}
    for key, ours, change in copies:
        tensor = change(own[ours]) if change else own[ours]
        tensors[key] = tensor.to("cpu", tensors[key].dtype).contiguous()
    with written(out / "model.safetensors") as beside, open(beside, "wb") as file:
        file.writelines(safetensors_file(tensors, source.metadata))   # an OSError where the disk is full
    return out / "model.safetensors"


def release_settings(directory, config, robot, action_mode, fps=None, tokenizer=None, revision=None, acts=True):
    """What the release's directory says beside its weights -> (Path, Config, Statistics).
    config: name of a preset, None: by the directory. robot, action_mode: None where the files say it. tokenizer,
    revision: of --tokenizer and of a hub id. acts: whether it needs a tokenizer now."""
    directory = find(directory, RELEASE_FILES, revision)
    flags = {"action_mode": action_mode}
    config = release_config(directory, flags, config and get_config(config, flags))
    stats, model = release_stats(directory, robot, config.data.action_mode, fps), config.model
    for kind, most in (("state", model.state_dim), ("action", model.action_dim)):
        width = len(getattr(stats, f"{kind}_mean"))
        check_width(f"{directory / STATS}: the {kind} of robot '{stats.robot}'", width, most)
    if acts or tokenizer or has_tokenizer(directory):
        model = with_tokenizer(model, directory, tokenizer)
    return directory, replace(config, model=model), stats


def import_release(args):
    """The command `import`: an ordinary checkpoint at step 0, every tensor in the dtype it was published in."""
    directory, config, stats = release_settings(args.dir, args.config, args.robot, args.action_mode, args.fps,
                                                args.tokenizer, args.revision, acts=False)
    stored, words = to_dict(config), {}
    if has_tokenizer(config.model.tokenizer):
        words = tokenizer_files(config.model.tokenizer)
        stored["model"]["tokenizer"] = checkpoint.OWN_TOKENIZER
    elif config.model.tokenizer:
        print(f"no tokenizer in {directory}: {args.out} will ask for --tokenizer DIR, that of {config.model.tokenizer}")
    own, tensors = on_meta(config.model).state_dict(), {}
    for source, rules, wanted in release_parts(directory, args.vae):
        copies, report = plan(source, rules, config.model, own, wanted)
        for key, ours, change in copies:   # memory-mapped, but for the converted ones
            tensors[ours] = change(source.read(key)) if change else source.read(key)
        print(report)
    state = {"step": 0, "config": stored, **in_checkpoint({stats.robot: stats}), "versions": {}, "log_length": 0}
    print(f"wrote {checkpoint.save(args.out, 0, tensors, {}, state, tokenizer=words)}")


def export_run(args):
    """The command `export`: weights, and all that the other side needs to act the same."""
    path, out = checkpoint.resolve(args.run), Path(args.out)
    tensors, state = checkpoint.load(path)
    config, by_robot = from_dict(state.get("config")), of_checkpoint(state)
    must(config.model.backbone in TOKENIZERS, f"{path} is of backbone {config.model.backbone}, which the released code "
         "does not have: train --config a1_3b_release to export it")
    for stats in by_robot.values():
        stats.check(config.data.action_mode)
    wrote = export_release(config.model, tensors, out, base=find(args.base, RELEASE_FILES, args.revision))
    print(*write_settings(out, config, by_robot, checkpoint.step_of(path)), sep="\n")
    words = checkpoint.load_tokenizer(path)
    for name, content in words.items():
        (out / name).write_bytes(content)
    if config.model.tokenizer and not words:
        print(f"no tokenizer in {path}: copy the files of {config.model.tokenizer[:100]!r} into {out}")
    print(f"wrote {wrote}")
