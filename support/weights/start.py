"""The weights that a training run begins with: what train.py's --weights, --from and --init_* stand for."""

from dataclasses import replace
from pathlib import Path

from config import WORLDS, from_dict
from support import checkpoint
from support.files import must, read_json
from support.weights.key_maps import RELEASE
from support.weights.loading import (fill, initialise_experts, load_backbone, load_cosmos, load_state, safetensors_of,
                                     with_tokenizer)
from support.weights.settings import release_config

# What may differ between a run and the one its weights come from: how it is trained, not what the network computes.
TRAINED_ANEW = {"lambda_gen", "gen_target", "action_draws", "tau_density", "noise_on_padding", "euler_steps",
                "text_tokens", "tokenizer"}


def chosen(args, out):
    """The arguments of `start` that train.py's flags ask for; out: the run's folder. ValueError: one line.
    A run that is resumed and told nothing brings its own weights and vocabulary."""
    given = {"origin": args.origin, "und": args.init_und, "vae": args.init_vae, "experts": args.init_experts}
    parts = args.init_und or args.init_vae or args.init_experts != "scratch"
    if args.weights and (args.origin or args.init or parts) or args.origin and parts:
        flag = f"--weights {args.weights}" if args.weights else f"--from {args.origin}"
        raise ValueError(f"{flag} says where all weights come from: give it without --init, --init_und, --init_vae, "
                         "--init_experts, and --weights without --from")
    if args.weights:
        given |= identify(args.weights)
    elif args.resume and args.config not in WORLDS and not (args.init or args.init_und) and any(out.glob("step_*")):
        given["origin"] = given["origin"] or out
    if given["origin"]:
        given["origin"] = checkpoint.resolve(given["origin"])   # once: it hashes gigabytes
    return given


def identify(directory):
    """What the directory of --weights holds -> the arguments of `start` it stands for. A backbone and Cosmos may each
    lie in `directory` itself or in a folder of it. ValueError: what was looked for, or two folders for one thing."""
    root = Path(directory)
    if any(root.glob("step_*")) or (root / checkpoint.MANIFEST).exists():
        return {"origin": directory}
    if (root / "stats.json").exists() and (root / "model.safetensors").exists():
        return {"release": directory}
    folders = [root, *sorted(path for path in root.glob("*") if path.is_dir())]
    found = {"vae": [str(folder) for folder in folders if (folder / "encoder.jit").exists()], "und": []}
    for path in (folder / "config.json" for folder in folders):
        if path.exists() and read_json(path, repair="download it again").get("model_type") in ("internvl", "qwen3_vl"):
            found["und"].append(str(path.parent))
    for what, places in zip(("Cosmos tokenizers", "backbones"), found.values()):
        if len(places) > 1:
            raise ValueError(f"--weights {directory} holds two {what}, {places[0]} and {places[1]}: name one with "
                             "--init_und DIR --init_vae DIR instead")
    must(found["und"], f"--weights {directory}: found neither a run (step_*), nor the release's files "
         "(model.safetensors and stats.json), nor a backbone (a config.json of InternVL3-1B-hf or Qwen3-VL-2B, here or "
         "in a folder of it; Cosmos' encoder.jit and decoder.jit beside it)")
    return {key: places[0] for key, places in found.items() if places}


def settings(args, config, start, out):
    """The Config of a run that begins with these weights: their tokenizer and, of published ones, what their files say.
    start: arguments of `start`. Words and embeddings belong together: a run that is resumed has its tokenizer in its
    checkpoints. ValueError: a flag contradicts the files, or a tokenizer is not there."""
    given, beside, named = args.tokenizer, start["origin"], ""
    if start.get("release"):
        config, beside = release_config(Path(start["release"]), vars(args), config), start["release"]
        named = config.model.tokenizer
    elif start["origin"]:
        named = origin_config(start["origin"]).tokenizer
    if args.resume and not given:
        given = next(filter(_has_words, sorted(out.glob("step_*"), reverse=True)), None)
    model = replace(config.model, tokenizer="" if given else named)
    return replace(config, model=with_tokenizer(model, beside, given or start["und"]))


def _has_words(path):
    try:
        return bool(checkpoint.load_tokenizer(path))
    except checkpoint.CheckpointError:
        return False   # it will be named when the run is


def origin_config(path):
    """The ModelConfig of one of our checkpoints."""
    return from_dict(read_json(path / checkpoint.STATE).get("config")).model


def start(model, origin=None, und=None, vae=None, experts="scratch", release=None):
    """The weights a training run begins with, over random ones -> list of Reports or lines.
    origin: a checkpoint of ours. release: the authors' directory. Without either, und, vae: directories or hub ids;
    experts: "scratch", "und" (the text blocks of `und`) or a directory. ValueError: one line, or a refused load."""
    if release:
        if not model.config.rope_bf16:   # equal shapes are not enough here either
            raise ValueError(f"--weights {release} holds the authors' weights, which expect --config a1_3b_release")
        return [fill(model, safetensors_of(release), RELEASE, "")]
    if origin:
        there, here = vars(origin_config(origin)), vars(model.config)
        differ = [f"--{name} {there[name]} there, {here[name]} here" for name in sorted(here.keys() - TRAINED_ANEW)
                  if there[name] != here[name]]
        if differ:   # equal shapes are not enough: rotary positions and picture sizes have none
            raise ValueError(f"--from {origin} is another network: {', '.join(differ[:4])}; give its --config")
        load_state(model, checkpoint.load(origin)[0], origin)
        return [f"weights of {origin}; optimizer, schedule and statistics start afresh"]
    must(experts != "und" or und, "--init_experts und copies the text blocks of --init_und DIR, which is missing")
    reports = [load_backbone(model, und)] if und else []
    if vae:
        reports.append(load_cosmos(model, vae))
    elif model.config.gen_expert and model.config.vae == "cosmos":
        reports.append("the image tokenizer is random, as --init scratch asks, and so are the latents of L_gen")
    return reports + ([] if experts == "scratch" else initialise_experts(model, und if experts == "und" else experts))
