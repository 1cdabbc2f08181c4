"""Every setting of InternVLA-A1 in one place: Table 1 (model), Sections 3.3 and 3.4 (data), Table 2 (training).

A preset is one row of `CONFIGS`. What a row leaves out is the field's default. Each field below is a command-line flag
(support/flags.py). The resolved config is stored in every checkpoint, and inference reads it there.

Letters used for shapes in the whole project
    B batch   V = 3 views (head, left wrist, right wrist)   C, H, W image   L frames of an episode
    T times of a frame: 3 (t-m, t, t+m) in training, 2 (t-m, t) at inference
    N tokens: N_und of understanding, N_gen = 96 of generation, N_act = R (1 + k) of the action expert
    D width   A heads   G key/value heads   d head dimension   k chunk   R action draws   g latent grid (32 at 256 px)
    S, s pixels of a view (und, gen)   d_a, d_q dimensions: 32, padded, in the model; else the robot's
    q_t the robot's state in raw units; standardised as `state` in a Batch

Tags: [release] follows the authors' code where the paper is silent or differs. [ours] is our own choice. Each has its
reason. What has no tag is the paper's, or a plain setting of the program."""

import difflib
import json
from dataclasses import asdict, dataclass, field, fields, replace

from support.bounds import EPISODES, check, must

VIEWS = ("head", "left_wrist", "right_wrist")   # V: the slots that cameras fill, in this order


def _f(default, help, **metadata):
    """A field: what its flag's help says, and what support/bounds.py holds its value to."""
    return field(default=default, metadata={"help": help, **metadata})


class Checked:
    """A section of the config: a value that does not fit its field is refused by ValueError."""

    def __post_init__(self):
        for item in fields(self):
            check(f"--{item.name}", getattr(self, item.name), item.type, item.metadata)


@dataclass(frozen=True)
class ModelConfig(Checked):
    """The network; defaults are a small one's [ours]. The experts share layers, heads, kv_heads and head_dim."""

    backbone: str = _f("tiny", "understanding backbone; tiny is [ours]", choices=("tiny", "internvl3", "qwen3vl"))
    layers: int = _f(3, "joint layers", at_least=1, at_most=100)
    heads: int = _f(2, "query heads", at_least=1, at_most=1024)
    kv_heads: int = _f(2, "key/value heads", at_least=1, at_most=1024)
    head_dim: int = _f(32, "dimensions of one head", a_multiple_of=2, at_least=2, at_most=4096)
    und_width: int = _f(64, "width of the understanding expert", a_multiple_of=4, at_least=4, at_most=65536)
    und_mlp: int = _f(192, "MLP width of the understanding expert", at_least=1, at_most=2**20)
    gen_width: int = _f(64, "width of the generation expert", a_multiple_of=4, at_least=4, at_most=65536)
    gen_mlp: int = _f(192, "MLP width of the generation expert", at_least=1, at_most=2**20)
    act_width: int = _f(64, "width of the action expert", a_multiple_of=4, at_least=4, at_most=65536)
    act_mlp: int = _f(192, "MLP width of the action expert", at_least=1, at_most=2**20)
    qkv_bias: bool = _f(False, "bias in q, k, v (Qwen2.5)")
    qk_norm: bool = _f(True, "RMSNorm on q and k (Qwen3)")
    rope_theta: float = _f(1e4, "rotary base", above=0)
    mrope_sections: tuple = _f((), "interleaved M-RoPE sections (t, h, w); empty: one axis")
    rope_bf16: bool = _f(False, "[release] rotary frequencies rounded through bfloat16, as its .to(bfloat16) does")
    norm_eps: float = _f(1e-6, "epsilon of every RMSNorm", above=0, below=1)
    learned_positions: bool = _f(False, "[ours] learned position tables instead of rotary positions")
    init_std: float = _f(0.02, "[release] initial deviation of the blocks' weights and of word embeddings", at_most=10)

    image_size: int = _f(64, "pixels of a view as the understanding expert sees it", at_least=1, at_most=4096)
    letterbox: int = _f(0, "[release] letterbox to this, then enlarge to image_size; 0: to image_size", at_most=4096)
    vocab: int = _f(256, "text embeddings", at_least=1, at_most=2**22)
    text_tokens: int = _f(32, "text budget, padded on the right; the release's is 48", at_least=1, at_most=4096)
    tokenizer: str = _f("", "directory or hub id of the text's tokenizer; empty: one token a byte")
    view_tokens: tuple = _f((), "ids before and after a view's tokens; empty: none")
    vit_layers: int = _f(0, "layers of the vision tower", at_most=100)
    vit_width: int = _f(0, "width of the vision tower", at_most=65536)
    vit_mlp: int = _f(0, "MLP width of the vision tower", at_most=2**20)
    vit_heads: int = _f(0, "heads of the vision tower", at_most=1024)
    vit_patch: int = _f(16, "pixels of a patch; two by two patches make a token", at_least=1, at_most=4096)
    vit_grid: int = _f(0, "side of the vision tower's learned position table", at_most=4096)
    und_tail: bool = _f(False, "build the parts of the last understanding layer that nothing reads (parity tests)")
    und_frames: int = _f(1, "[ours] 2: the understanding expert sees o_{t-m} too", at_least=1, at_most=2)

    gen_expert: bool = _f(True, "build the generation expert (false: the ablation of Fig. 9)")
    vae: str = _f("dct", "image tokenizer of the generation expert; dct is [ours]", choices=("dct", "cosmos"))
    vae_size: int = _f(64, "pixels of an image for the generation expert", a_multiple_of=32, at_least=32, at_most=4096)
    gen_from_view: bool = _f(False, "[release] cut generation images from the letterboxed view, not from the source")
    gen_target: str = _f("future", "target of z_hat; present is an ablation [ours]", choices=("future", "present"))
    lambda_gen: float = _f(0.01, "lambda of Eq. (4), between means [release]", at_least=0)

    chunk: int = _f(16, "k, actions of one chunk; the paper gives no number, the release 50", at_least=1, at_most=10000)
    action_dim: int = _f(32, "[release] width that actions are padded to", at_least=1, at_most=4096)
    state_dim: int = _f(32, "[release] width that the state is padded to", at_least=1, at_most=4096)
    action_draws: int = _f(1, "[ours] R draws of (tau, eps) that share one prefix", at_least=1, at_most=1024)
    tau_density: str = _f("paper", "Beta(1.5, 1) of tau; release: of 1 - tau", choices=("paper", "release"))
    noise_on_padding: bool = _f(False, "[release] noise and train the padded action dimensions too")
    euler_steps: int = _f(10, "[release] Euler steps of Eq. (3); the paper gives no number", at_least=1, at_most=10000)

    def __post_init__(self):
        super().__post_init__()
        must(self.heads % self.kv_heads == 0, f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        must(not self.mrope_sections or sum(self.mrope_sections) == self.head_dim // 2,
             f"--mrope_sections {self.mrope_sections} must sum to head_dim / 2 = {self.head_dim // 2}")
        fit = self.vit_heads and self.vit_width % self.vit_heads == 0 and self.image_size % (2 * self.vit_patch) == 0
        must(self.backbone == "tiny" or fit, "vit_width must be a multiple of vit_heads, image_size of 2 vit_patch")
        must(self.backbone != "internvl3" or self.image_size == self.vit_grid * self.vit_patch,
             f"--image_size {self.image_size}: internvl3's position table has {self.vit_grid} x {self.vit_grid} places")
        must(self.und_frames == 1 or self.backbone == "tiny" and self.view_size == self.frame_size,
             "--und_frames 2 needs --backbone tiny, and --vae_size as large as --image_size")
        must(self.backbone == "tiny" or not self.learned_positions, "--learned_positions needs --backbone tiny")
        must(len(self.view_tokens) in (0, 2), f"--view_tokens {self.view_tokens} must be empty or (before, after)")

    @property
    def view_size(self):
        return self.letterbox or self.image_size    # pixels of the letterboxed view that the data delivers

    @property
    def frame_size(self):
        return self.view_size if self.gen_from_view else self.vae_size    # the same, for the generation expert

    @property
    def latent_grid(self):
        return self.vae_size // 8           # g: CI8x8 compresses 8 x 8 pixels into one latent

    @property
    def compress_kernel(self):
        return self.latent_grid // 4        # what turns the grid into 4 x 4: 8 for the paper's grid of 32 x 32

    @property
    def view_side(self):
        return 4 if self.backbone == "tiny" else self.image_size // (2 * self.vit_patch)   # of a view's token grid


@dataclass(frozen=True)
class DataConfig(Checked):
    """Sections 3.3 and 3.4: what a training tuple is, and how LPT spreads the datasets."""

    m: int = _f(15, "frames between t-m, t and t+m", at_least=1, at_most=10000)
    action_mode: str = _f("absolute", "delta: joints relative to q_t, grippers not", choices=("absolute", "delta"))
    full_windows: bool = _f(False, "[ours] only windows whose t-m and t+m lie inside the episode")
    only_episodes: str = _f("", "numbers of episodes to use, as 0-19,25, or a file; empty: all", form=f"({EPISODES})?")
    hold_out: str = _f("-1", "numbers of episodes to hold out, as 3,7-9 or -1, the last used; or none", form=EPISODES)
    stretch: int = _f(1, "[ours] windows decoded at once; 8 if key frames are rare", at_least=1, at_most=1024)
    lpt_workers: int = _f(4, "LPT's workers of each rank: lists of datasets, no processes", at_least=1, at_most=65536)
    balance: str = _f("greedy", "the paper's greedy rule, or datasets split exactly", choices=("greedy", "exact"))
    loaders: int = _f(0, "loader processes (0: in the training process); changes nothing but speed", at_most=256)
    std_floor: float = _f(1e-4, "[ours] actions that deviate by less than this part of their magnitude are idle")
    on_bad_sample: str = _f("stop", "stop, or skip: draw another, up to one in a thousand", choices=("stop", "skip"))
    timestamps: str = _f("check", "check those of LeRobot; index: row t is frame t", choices=("check", "index"))


@dataclass(frozen=True)
class TrainConfig(Checked):
    """Table 2. Defaults are the paper's post-training column. Its bfloat16 comes with optimizer split or offload."""

    steps: int = _f(60_000, "optimizer steps", at_least=1)
    batch_size: int = _f(8, "samples of one forward pass", at_least=1, at_most=65536)
    accumulate: int = _f(16, "forward passes of a step; batch_size times it is the batch", at_least=1, at_most=65536)
    lr: float = _f(5e-5, "peak learning rate", above=0, at_most=10)
    min_lr: float = _f(5e-6, "learning rate after the decay", at_least=0, at_most=10)
    warmup_steps: int = _f(2_000, "linear warm-up", at_least=0)
    decay_steps: int = _f(60_000, "length of the cosine, counted from step 0; 0: constant", at_least=0)
    beta1: float = _f(0.9, "AdamW", at_least=0, below=1)
    beta2: float = _f(0.95, "AdamW", at_least=0, below=1)
    adam_eps: float = _f(1e-8, "AdamW", above=0)
    weight_decay: float = _f(0.01, "AdamW", at_least=0)
    clip: float = _f(1.0, "gradient clipping by global norm", above=0)
    stage: str = _f("", "the column of Table 2 to train by; empty: our own", choices=("", "pretrain", "posttrain"))
    optimizer: str = _f("fp32", "AdamW in 16, 10 or 4 device bytes a parameter", choices=("fp32", "split", "offload"))
    checkpoint_layers: bool = _f(False, "recompute layers in the backward pass: less memory, a third more time")
    freeze: str = _f("", "what is not trained: und, or vision and embed (parts of it), separated by commas")
    ema: float = _f(0.0, "decay of an average of the weights, which is what is saved; 0: none", at_least=0, below=1)
    compile: bool = _f(False, "torch.compile each joint layer")
    rtc_delay: int = _f(0, "[ours] at most so many first actions of a chunk are given, not learned", at_most=9999)
    seed: int = _f(0, "seed of weights, data order and noise", at_least=0, at_most=2**32 - 1)
    threads: int = _f(0, "torch threads (0: torch's own choice)", at_least=0, at_most=1024)
    log_every: int = _f(10, "steps between lines of log.jsonl", at_least=1)
    eval_every: int = _f(500, "steps between validations on held-out episodes", at_least=1)
    eval_windows: int = _f(64, "held-out windows of a validation, at most", at_least=1)
    save_every: int = _f(500, "steps between checkpoints", at_least=1)

    def __post_init__(self):
        super().__post_init__()
        must(self.min_lr <= self.lr, f"--min_lr must be at most --lr, got {self.min_lr} and {self.lr}")
        unknown = ", ".join(sorted(self.frozen - {"und", "vision", "embed"}))
        must(not unknown, f"--freeze knows und, vision and embed, not {unknown}")
        must(not self.ema or self.optimizer == "fp32",
             f"--ema {self.ema} needs --optimizer fp32: an average of bfloat16 weights stands still")

    @property
    def frozen(self):
        return set(self.freeze.split(",")) - {""}


# What differs between Table 2's columns. `accumulate` gives the paper's batch on one device at a batch_size of 8.
STAGES = {
    "pretrain": {"steps": 700_000, "lr": 5e-5, "min_lr": 5e-5, "warmup_steps": 0, "decay_steps": 0, "accumulate": 64},
    "posttrain": {"steps": 60_000, "lr": 5e-5, "min_lr": 5e-6, "warmup_steps": 2_000, "decay_steps": 60_000,
                  "accumulate": 16},
}
PAPER_BATCH = {"pretrain": 512, "posttrain": 128}


@dataclass(frozen=True)
class Config:
    """One complete preset."""

    name: str
    model: ModelConfig
    data: DataConfig
    train: TrainConfig


_A1_2B = ModelConfig(
    backbone="internvl3", layers=24, heads=14, kv_heads=2, head_dim=64,
    und_width=896, und_mlp=4864, gen_width=896, gen_mlp=4864, act_width=896, act_mlp=4864,
    qkv_bias=True, qk_norm=False, rope_theta=1e6,
    image_size=448, vocab=151674, text_tokens=48, view_tokens=(151665, 151666),
    vit_layers=24, vit_width=1024, vit_mlp=4096, vit_heads=16, vit_patch=14, vit_grid=32,
    vae="cosmos", vae_size=256, chunk=50,
)
_A1_3B = ModelConfig(
    backbone="qwen3vl", layers=28, heads=16, kv_heads=8, head_dim=128,
    und_width=2048, und_mlp=6144, gen_width=1024, gen_mlp=3072, act_width=1024, act_mlp=3072,
    qkv_bias=False, qk_norm=True, rope_theta=5e6, mrope_sections=(24, 20, 20),
    image_size=224, vocab=151936, text_tokens=48, view_tokens=(151652, 151653),
    vit_layers=24, vit_width=1024, vit_mlp=4096, vit_heads=16, vit_patch=16, vit_grid=48,
    vae="cosmos", vae_size=256, chunk=50,
)
_REAL_DATA = DataConfig(lpt_workers=8, loaders=4)
# Full fine-tuning on one card of 24 GB: what `python train.py --config a1_2b --dry-run` predicts to fit.
_TRAIN_2B = TrainConfig(stage="posttrain", optimizer="split", checkpoint_layers=True)
_TRAIN_3B = TrainConfig(stage="posttrain", optimizer="offload", checkpoint_layers=True)

CONFIGS = {
    # The embedded world [ours]: 64 px, the paper's 96 generation tokens and 3 views. Width 64, but 128 in the
    # generation expert: others were not tried. docs/conveyor.md has the tables behind lambda, tau and Euler steps.
    "conveyor": Config("conveyor", ModelConfig(
        heads=4, kv_heads=4, head_dim=16, qk_norm=False, gen_width=128, gen_mlp=384, text_tokens=24,
        learned_positions=True, init_std=0.1, lambda_gen=0.3, action_draws=2, tau_density="release", euler_steps=2,
    ), DataConfig(full_windows=True), TrainConfig(
        steps=1500, batch_size=32, accumulate=1, lr=4e-3, min_lr=1e-4, warmup_steps=100, decay_steps=1500,
        eval_every=500, eval_windows=256, save_every=500,
    )),
    # gym-aloha's two tasks [ours], docs/aloha.md. The network of conveyor; what is different has its reason.
    "aloha": Config("aloha", ModelConfig(
        heads=4, kv_heads=4, head_dim=16, qk_norm=False, gen_width=128, gen_mlp=384, text_tokens=24,
        learned_positions=True, init_std=0.1, lambda_gen=0.3, tau_density="release",
        action_draws=4,            # conveyor's 2 doubled, for 14 dimensions; they share one pass over the pictures
        euler_steps=2,             # the cube: 89 % with two, 66 with one, 77 with ten (medians of three seeds)
    ), DataConfig(
        action_mode="delta",       # the joints move little in a chunk, and much in an episode
        full_windows=False,        # the policy starts from rest, where no frame t - m is
    ), TrainConfig(
        steps=6000, decay_steps=6000,   # two tasks, each with twice conveyor's: its episode has phases, not one reach
        batch_size=32, accumulate=1, lr=4e-3, min_lr=1e-4, warmup_steps=100,
        eval_every=500, eval_windows=256, save_every=500,
    )),
    "a1_2b": Config("a1_2b", _A1_2B, _REAL_DATA, _TRAIN_2B),
    "a1_3b": Config("a1_3b", _A1_3B, _REAL_DATA, _TRAIN_3B),
    # The same network as the published weights expect it: this row is the list of differences.
    "a1_3b_release": Config("a1_3b_release", replace(
        _A1_3B,
        letterbox=224, image_size=256,   # [release] its image processor enlarges the letterboxed 224 px view
        gen_from_view=True,        # [release] generation images are that 224 px view, enlarged
        rope_bf16=True,            # [release] its .to(bfloat16) rounds the rotary buffers; the weights live with it
        tau_density="release",     # [release] 1 - tau ~ Beta(1.5, 1)
        noise_on_padding=True,     # [release] padded action dimensions are noised and trained
    ), _REAL_DATA, _TRAIN_3B),
}

WORLDS = ("conveyor", "aloha")   # presets that start from scratch, on data that their world makes

SECTIONS = {"model": ModelConfig, "data": DataConfig, "train": TrainConfig}


def get_config(name, flags=None):
    """Preset `name` with overrides. flags: field name -> value; None: the preset's. ValueError: one line."""
    hint = "".join(f"; did you mean {near}?" for near in difflib.get_close_matches(name, CONFIGS, 1))
    must(name in CONFIGS, f"unknown config {name!r}: choose from {', '.join(CONFIGS)}{hint}")
    config = CONFIGS[name]
    for title in SECTIONS:
        section = getattr(config, title)
        chosen = {key: value for key, value in (flags or {}).items() if value is not None and key in vars(section)}
        chosen = STAGES.get(chosen.get("stage"), {}) | chosen
        config = replace(config, **{title: replace(section, **chosen)})
    return config


def to_dict(config):
    """Plain JSON values of a Config; tuples become lists."""
    return json.loads(json.dumps(asdict(config)))


def from_dict(stored):
    """The Config that a checkpoint holds. ValueError unless its fields are exactly those of this version."""
    sections = {}
    for title, section in SECTIONS.items():
        names, given = {item.name for item in fields(section)}, stored.get(title) if isinstance(stored, dict) else 0
        must(isinstance(given, dict), "the checkpoint holds no config of this program: copy it again")
        odd = f"missing {sorted(names - set(given))}, unknown {sorted(set(given) - names)}"[:400]
        must(names == set(given), f"the checkpoint's {title} config does not fit this version: {odd}; use the version "
             "that wrote it, or train again")
        sections[title] = section(**{key: tuple(v) if isinstance(v, list) else v for key, v in given.items()})
    return Config(str(stored.get("name")), **sections)
