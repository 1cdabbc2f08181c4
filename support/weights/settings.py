"""What stands beside published weights: config.json, train_config.json and stats.json, read and written."""

import json
import re
from dataclasses import asdict, replace

import numpy as np

from config import CONFIGS, get_config
from support.data.robots import RELEASE_EPSILON, RELEASE_FEATURES, ROBOTS, Robot, find_robot, release_statistics
from support.data.statistics import Statistics
from support.files import must, read_json

CONFIG, TRAIN_CONFIG, STATS = "config.json", "train_config.json", "stats.json"
OURS = "robots.json"   # of an export: what the release's form has no place for. Only this project reads it
TYPES = {"qwena1": "qwen3vl", "interna1": "internvl3"}
PRESETS = {"qwen3vl": "a1_3b_release", "internvl3": "a1_2b"}
TOKENIZERS = {"qwen3vl": "Qwen/Qwen3-VL-2B-Instruct", "internvl3": "OpenGVLab/InternVL3-1B-hf"}
MODES = {"abs": "absolute", "absolute": "absolute", "delta": "delta"}
# What the files say of the weights: field of our config, file, key.
SAID = [("backbone", CONFIG, "type"), ("backbone", TRAIN_CONFIG, "policy.type"),
        *(("view_size", TRAIN_CONFIG, f"dataset.{side}") for side in ("height", "width")),
        *(("action_mode", file, prefix + key) for file in (CONFIG, TRAIN_CONFIG)
          for prefix in ("dataset.", "policy.", "")
          for key in ("action_mode", "action_type", "use_delta_joint_actions", "data_transforms.inputs")),
        *((field, file, prefix + key) for file, prefix in ((CONFIG, ""), (TRAIN_CONFIG, "policy."))
          for field, key in (("chunk", "chunk_size"), ("euler_steps", "num_inference_steps"),
                             ("action_dim", "max_action_dim"), ("state_dim", "max_state_dim"),
                             ("layers", "qwen3_vl_variant"), ("layers", "action_expert_variant")))]
ADOPTED = ("chunk", "euler_steps", "action_mode")   # the rest is what a preset is
UNSAID = ("text_tokens", "m")   # what their form has no place for, and an export of ours says beside it
# How their run was made: reported, neither inherited nor followed.
THEIRS = ("resume", "steps", "batch_size", "scheduler.num_decay_steps", "policy.scheduler_decay_steps", "output_dir",
          "checkpoint_path", "policy.pretrained_path", "dataset.root", "dataset.external_stats_path")


def _at(tree, *keys):
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _present(path):
    return read_json(path) if path.exists() else {}


def _meant(field, value):
    """What a value of theirs is in our config; None: it says nothing. KeyError, ValueError: unknown."""
    if field == "action_mode" and isinstance(value, list):   # transforms, one of which may make the difference
        return "delta" if "delta_action" in [_at(row, "type") for row in value] else None
    if field in ("backbone", "action_mode"):
        return {"backbone": TYPES, "action_mode": MODES | {True: "delta", False: None}}[field][value]
    if field == "layers":   # qwen3_vl_28l; qwen3_vl_2b, their class's default, counts no layers
        return int(found[1]) if (found := re.fullmatch(r"\w{1,40}_(\d{1,4})l", value)) else None
    must(type(value) is int and 0 < value <= 10 ** 6, value)
    return value


def release_config(directory, flags, config=None):
    """What published weights are run with -> Config. Only what they are is taken over, not how they were trained. They
    are never of bytes: the backbone's tokenizer is named, not fetched. flags: {field: value} of what the user gave.
    config: default a preset's, by the type that they name. ValueError: a file contradicts a flag, the config or another
    file, or nothing says which the action mode is."""
    files, said = {name: _present(directory / name) for name in (CONFIG, TRAIN_CONFIG)}, {}
    for field, file, key in SAID:
        value, where = _at(files[file], *key.split(".")), f"{directory / file}: {key}"
        try:
            meant = None if value is None else _meant(field, value)
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{where} is {value!r:.60}, which is not known here: is it InternVLA-A1's?") from error
        if meant is not None and said.setdefault(field, (meant, where))[0] != meant:
            raise ValueError(f"{where} is {value!r:.60}, {said[field][1]} says {said[field][0]}: correct one of them")
    ours = _at(_present(directory / OURS), "config") or {}
    must(isinstance(ours, dict), f"{directory / OURS}: config is {ours!r:.60}, expected fields: export again")
    said |= {field: (value, f"{directory / OURS}: config") for field, value in ours.items() if field in UNSAID}
    theirs = [f"{key} = {json.dumps(value)[:80]}" for key in THEIRS
              if (value := _at(files[TRAIN_CONFIG], *key.split("."))) not in (None, "", False)]
    adopted = (*ADOPTED, *UNSAID) if config else (*ADOPTED, *UNSAID, "layers")
    config = config or get_config(PRESETS[said.get("backbone", ("qwen3vl",))[0]], flags)
    here = vars(config.model) | {"view_size": config.model.view_size}
    for field, (value, where) in said.items():
        if field in adopted and flags.get(field) not in (None, value):
            raise ValueError(f"--{field} {flags[field]} contradicts {where}, which says {value}: leave the flag out")
        if field not in adopted and here[field] != value:
            raise ValueError(f"{where} says {field} {value}, --config {config.name} has {here[field]}: give another")
    if "action_mode" not in said and not flags.get("action_mode"):
        raise ValueError(f"--action_mode absolute|delta is needed: no file of {directory} says how the weights act")
    taken = {field: said[field][0] for field in adopted if field in said}
    taken["tokenizer"] = TOKENIZERS.get(config.model.backbone, "")
    for part, own in (("data", config.data), ("model", config.model)):
        config = replace(config, **{part: replace(own, **{key: v for key, v in taken.items() if key in vars(own)})})
    print(f"action mode {config.data.action_mode}: {said.get('action_mode', (0, '--action_mode'))[1]}")
    if theirs:
        print(f"not taken over from {directory / TRAIN_CONFIG}: {', '.join(theirs)}")
    return config


def release_stats(directory, robot, action_mode, fps=None):
    """stats.json -> Statistics of one robot. robot: a name, a .json file, or None where there is but one.
    What an export of ours says beside it is taken over with it."""
    stored = read_json(directory / STATS, repair="take it from the release: without it actions have no units")
    if not robot and len(stored) != 1:
        raise ValueError(f"--robot is needed: {directory / STATS} is of {', '.join(stored)[:200] or 'no robot'}")
    robot = robot or next(iter(stored))
    ours = _at(_present(directory / OURS), "robots", robot)
    ours = ours if isinstance(ours, dict) else {}
    row = ROBOTS.get(robot) or Robot(robot) if ours else find_robot(robot)
    moments = release_statistics(directory / STATS, row)
    names = tuple(f"{key}[{i}]" if n > 1 else key for key, n in zip(row.action, row.widths) for i in range(n))
    found = {"windows": 0, "fps": 30.0, "relative": row.relative, "action_names": names}
    d = len(moments["action_mean"])
    kinds = (row.kinds,) * d if isinstance(row.kinds, str) else row.kinds   # one for all, or one a dimension
    found |= ({"kinds": kinds} if kinds else {}) | ours | moments
    found |= {"robot": row.name, "action_mode": action_mode} | ({} if fps is None else {"fps": fps})
    stats = Statistics.from_dict(found)
    if action_mode == "delta" and len(stats.relative) != d or len(kinds) not in (0, d):
        raise ValueError(f"robot {row.name} has a delta mask of {len(stats.relative)} dimensions and {len(kinds)} "
                         f"kinds, {directory / STATS} has {d} of action: give --robot FILE with the right ones")
    by = "--fps" if fps else OURS if ours else "assumed: no file says it"
    print(f"robot {row.name}, {stats.fps:g} frames/s ({by})")
    return stats


# ---- written ----------------------------------------------------------------------------------------------------

def stats_for_release(stats):
    """Statistics -> {feature: {"mean", "std"}} that their x * (std + 1e-6) + mean gives our actions by.
    An idle action dimension gets std 0: whatever the network says, their action is the training mean to 1e-6 of it,
    as ours is the mean. Idle state dimensions enter the network unscaled here, so there."""
    found, row = {}, ROBOTS.get(stats.robot) or Robot(stats.robot)
    for kind in ("state", "action"):
        mean, std = (np.float64(getattr(stats, f"{kind}_{moment}")) for moment in ("mean", "std"))
        idle = np.array([kind == "action" and f"action {d}" in stats.unscaled for d in range(len(std))], bool)
        std = np.where(idle, 0, std - RELEASE_EPSILON)
        names, widths = (getattr(row, kind), row.widths) if row.widths else (RELEASE_FEATURES[kind], (len(mean),))
        must(sum(widths) == len(mean), f"robot {row.name} has {len(mean)} dimensions of {kind}, the release's has "
             f"{sum(widths)}: it is another one; train with a --robot file of another name to export it")
        cuts = np.cumsum(widths)[:-1]
        found |= {name: {"mean": m.tolist(), "std": s.tolist()}
                  for name, m, s in zip(names, np.split(mean, cuts), np.split(std, cuts))}
    return found


def write_settings(out, config, by_robot, step):
    """Write all that stands beside the weights of a run -> lines on what the other side must know."""
    model, data = config.model, config.data
    kind, size = {ours: name for name, ours in TYPES.items()}[model.backbone], model.view_size
    policy = {"type": kind, "dtype": "bfloat16", "n_obs_steps": 1, "chunk_size": model.chunk,
              "n_action_steps": model.chunk, "max_state_dim": model.state_dim, "max_action_dim": model.action_dim,
              "num_inference_steps": model.euler_steps, "image_resolution": [size, size],
              "normalization_mapping": dict.fromkeys(("VISUAL", "STATE", "ACTION"), "IDENTITY"),   # stats.json does it
              "tokenizer_max_length": model.text_tokens, "lambda_gen": model.lambda_gen}
    if kind == "qwena1":
        policy |= {"qwen3_vl_variant": f"qwen3_vl_{model.layers}l", "action_expert_variant": f"qwen3_{model.layers}l"}
    mode = {"absolute": "abs", "delta": "delta"}[data.action_mode]
    train = {"dataset": {"type": kind, "repo_id": ",".join(by_robot), "action_mode": mode, "height": size,
                         "width": size, "max_state_dim": model.state_dim, "max_action_dim": model.action_dim},
             "policy": policy, "resume": False, "steps": step, "batch_size": config.train.batch_size,
             "seed": config.train.seed}
    ours = {robot: {key: value for key, value in asdict(stats).items()
                    if key not in ("robot", "action_mode") and not key.endswith(("_mean", "_std"))}
            for robot, stats in by_robot.items()}
    ours = {"robots": ours, "config": {"text_tokens": model.text_tokens, "m": data.m}}
    for name, content in ((CONFIG, policy), (TRAIN_CONFIG, train), (OURS, ours),
                          (STATS, {robot: stats_for_release(stats) for robot, stats in by_robot.items()})):
        (out / name).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    theirs = CONFIGS[PRESETS[model.backbone]].model
    differ = [f"{key} {getattr(model, key)} (theirs {getattr(theirs, key)})" for key in
              ("letterbox", "image_size", "gen_from_view", "rope_bf16", "vae_size", "text_tokens", "rope_theta",
               "gen_expert", "vit_layers") if getattr(model, key) != getattr(theirs, key)]
    differ += [f"m {data.m} (theirs 15)"] if data.m != 15 else []
    if differ:
        yield f"the released code computes another network: {', '.join(differ)}"
    for robot, stats in by_robot.items():
        known = robot in ROBOTS and ROBOTS[robot].widths and ROBOTS[robot].relative == stats.relative
        yield f"robot {robot}: statistics of {', '.join(stats_for_release(stats))}" + (
            "" if known else "; add it to the released code's tables" + (
                f", with the delta mask {list(stats.relative)}" if stats.relative else ""))
