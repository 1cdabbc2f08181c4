"""support/weights: every load is strict, and the way to the release's form and back loses nothing."""

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import model as model_module
from config import CONFIGS, Config, DataConfig, ModelConfig, TrainConfig, to_dict
from cosmos_vae import CosmosVAE
from support import checkpoint
from support.inference.policy import Policy
from support.data.robots import ROBOTS
from support.weights import start as weights
from support.weights.__main__ import parse
from support.weights.key_maps import RELEASE
from support.weights.loading import Source, empty_model, find, load_cosmos, plan
from support.weights.release import export_release, import_release, load_release, release_settings

from test_parity_release import CONFIGS as SMALL
from test_parity_release import Fixture

KEYS = {"a1_2b": "keys_2b.tsv", "a1_3b_release": "keys_3b.tsv"}


@pytest.fixture(autouse=True)
def small_vae(monkeypatch):
    monkeypatch.setattr(model_module, "CosmosVAE", partial(CosmosVAE, 32, (1, 1), 1))


@pytest.fixture
def published(tmp_path):
    """The small 3B in the published form: bfloat16 where the release has it, one of the tied pair, statistics; and a
    tokenizer of three merges, in Qwen's files."""
    tensors = {key: x if "norm" in key or key.split(".")[1].endswith(("proj", "conv")) else x.bfloat16()
               for key, x in Fixture("3b_small").sd.items() if not key.endswith("embed_tokens.weight")}
    for side, name in (("_enc_model.encoder.patcher", "wavelets"), ("_dec_model.decoder.unpatcher", "_arange")):
        tensors[f"model.cosmos.{side}.{name}"] = torch.arange(2)
    folder = tmp_path / "published"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    moments = {feature: {"mean": [0.5] * width, "std": [2.0] * width}
               for keys in (ROBOTS["genie1"].state, ROBOTS["genie1"].action)
               for feature, width in zip(keys, ROBOTS["genie1"].widths)}
    (folder / "stats.json").write_text(json.dumps({"genie1": moments}))
    pieces = ["p", "i", "c", "k", "u", "Ġ", "pi", "ck", "pick"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\np i\nc k\npi ck\n")
    return folder


@pytest.fixture
def small(monkeypatch):
    """The preset that fits `published`: as in the products, nothing unread is built."""
    model = ModelConfig(**{**vars(SMALL["3b"]), "und_tail": False})
    monkeypatch.setitem(CONFIGS, "small", Config("small", model, DataConfig(), TrainConfig()))
    return model


def test_a_load_names_what_it_left_out_and_why(published, small):
    _, (report,) = load_release(small, published)
    text = str(report)
    assert "DeepStack" in text and "the last understanding layer gives keys and values alone" in text
    assert "constants of the Haar transform" in text and "converted: model.action_out_proj.bias" in text
    left = {key for keys in report.left_out.values() for key in keys}
    assert report.matched + len(left) == len(load_file(published / "model.safetensors"))


def test_a_refusal_lists_every_missing_unexpected_and_misshapen_key(published, small):
    path = published / "model.safetensors"
    tensors = load_file(path)
    for layer in (0, 1):
        del tensors[f"model.qwen3_vl_with_expert.gen_expert.layers.{layer}.mlp.up_proj.weight"]
    tensors["model.gen_in_proj.bias"] = tensors["model.cosmos_in_proj.bias"].clone()   # the 2B's name beside the 3B's
    tensors["model.state_proj.bias"] = torch.zeros(7)
    tensors["model.surprise.weight"] = torch.zeros(3)
    save_file(tensors, path)
    with pytest.raises(ValueError) as refusal:
        load_release(small, published)
    for part in ("2 missing, 2 unexpected, 1 of another shape", "missing for layers.{0,1}.gen.mlp.up_proj.weight",
                 "unexpected model.gen_in_proj.bias", "unexpected model.surprise.weight",
                 "model.state_proj.bias is [7], act.state_proj.bias is [48]"):
        assert part in str(refusal.value)


def test_a_key_in_two_files_is_refused_and_an_index_says_which_files_count(published, small):
    path, index = published / "model.safetensors", published / "model.safetensors.index.json"
    key, tensors = "model.state_proj.bias", load_file(path)
    save_file({key: tensors[key] + 7}, published / "model_old.safetensors")
    with pytest.raises(ValueError, match=f"model_old.safetensors holds {key}, and so does a file before it"):
        load_release(small, published)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, path.name)}))
    model, _ = load_release(small, published)
    assert torch.equal(model.act.state_proj.bias, tensors[key].float())
    for named, words in ((["x.safetensors"], "x.safetensors is missing, and .*index.json names it"),
                         (["../x.safetensors"], "names no files of this directory"), ([3], "/3 is missing")):
        index.write_text(json.dumps({"weight_map": dict(zip(tensors, named))}))
        with pytest.raises(ValueError, match=words):
            load_release(small, published)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn])
def test_quantised_weights_are_refused_by_key_before_anything_is_written(published, small, run, tmp_path, dtype):
    path, key = published / "model.safetensors", "model.state_proj.weight"
    tensors = load_file(path)
    save_file(tensors | {key: tensors[key].to(dtype)}, path)
    for start in (lambda: load_release(small, published),
                  lambda: import_release(SimpleNamespace(dir=published, config="small", robot="genie1", fps=None, vae=None,
                                                         action_mode="delta", tokenizer=None, revision=None,
                                                         out=tmp_path / "made"))):
        with pytest.raises(ValueError, match=f"1 of another dtype(.|\n)*dtype: {key} is "):
            start()
    assert not (tmp_path / "made").exists()


def test_a_robots_json_whose_config_is_none_is_one_line(published, small):
    (published / "robots.json").write_text('{"config": 3}')
    with pytest.raises(ValueError, match="robots.json: config is 3, expected fields"):
        release_settings(published, "small", "genie1", "delta")


def test_a_model_without_the_generation_expert_leaves_it_out_by_name(published, small):
    """Fig. 9."""
    _, (report,) = load_release(ModelConfig(**{**vars(small), "gen_expert": False}), published)
    assert len(report.left_out["built without the generation expert"]) > 50


@pytest.fixture
def run(published, small, tmp_path):
    """The published files, imported."""
    arguments = parse(["import", str(published), str(tmp_path / "run"), "--robot", "genie1", "--action_mode", "delta"])
    arguments.config = "small"
    import_release(arguments)
    return tmp_path / "run"


def test_import_then_export_is_exact_to_the_bit_over_all_keys(published, small, run, tmp_path):
    imported, _ = checkpoint.load(checkpoint.resolve(run))
    loaded = load_release(small, published)[0].state_dict()
    for name, tensors in ("checkpoint", imported), ("float32 model", loaded):
        path = export_release(small, tensors, tmp_path / name, base=published)
        before, after = load_file(published / "model.safetensors"), load_file(path)
        assert set(before) == set(after)
        for key, x in before.items():
            assert x.dtype == after[key].dtype and torch.equal(x, after[key]), key


def test_export_writes_what_was_trained(published, small, tmp_path):
    model, _ = load_release(small, published)
    with torch.no_grad():
        model.act.action_out_proj.bias += 1
        model.layers[1].und.self_attn.k_proj.weight.zero_()
    stored, after = (load_file(path) for path in (published / "model.safetensors",
                                                  export_release(small, model.state_dict(), tmp_path / "out",
                                                                 base=published)))
    changed = {key for key, x in stored.items() if not torch.equal(x, after[key])}
    assert changed == {"model.action_out_proj.bias", "model.qwen3_vl_with_expert.und_expert.model.language_model."
                                                     "layers.1.self_attn.k_proj.weight"}
    again, _ = load_release(small, tmp_path / "out")
    torch.testing.assert_close(again.act.action_out_proj.bias, model.act.action_out_proj.bias)


def test_the_release_becomes_an_ordinary_checkpoint(published, small, run):
    """Import, load as a policy: the same weights, config and statistics as from the release's directory in memory."""
    policy = Policy.load(run)
    assert policy.stats.action_mode == "delta" and policy.stats.action_std == (2.000001,) * 16
    assert policy.model.layers[0].und.mlp.up_proj.weight.dtype == torch.bfloat16
    _, config, stats = release_settings(published, "small", "genie1", "delta")
    assert config.model.tokenizer == str(published) and policy.config.model.tokenizer == str(checkpoint.resolve(run))
    assert replace(config.model, tokenizer="") == replace(policy.config.model, tokenizer="")
    assert config.data == policy.config.data and stats == policy.stats
    model, _ = load_release(config.model, published, dtype=torch.bfloat16)
    ours, theirs = policy.model.state_dict(), model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("robot, mode, message", [
    ("genie1", None, "--action_mode absolute.delta is needed: no file of .*published says"),
    ("aloha", "delta", "no statistics of robot 'aloha', only of genie1")])
def test_a_robot_or_mode_that_cannot_be_derived_is_refused(published, small, robot, mode, message):
    with pytest.raises(ValueError, match=message):
        release_settings(published, "small", robot, mode)


@pytest.mark.filterwarnings("ignore")
def test_a_run_starts_from_anothers_weights_or_from_published_ones(published, small, tmp_path):
    """Sec. 3.4: post-training goes on from pre-trained weights."""
    model, _ = load_release(small, published)
    other = replace(small, tokenizer="words", tau_density="paper")
    stored = to_dict(Config("small", other, DataConfig(), TrainConfig()))
    run = checkpoint.save(tmp_path / "run", 3, model.state_dict(), {}, {"step": 3, "config": stored})
    assert weights.origin_config(run).tokenizer == "words"   # train.py takes it over
    fresh = model_module.InternVLA_A1(small)
    (line,) = weights.start(fresh, origin=run)
    assert "step_00000003" in line
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), model.state_dict().values()))

    save_cosmos(model.vae, tmp_path)
    (report,) = weights.start(fresh, vae=tmp_path)
    assert report.matched == len(model.vae.state_dict())
    with pytest.raises(ValueError, match="--init_und DIR, which is missing"):
        weights.start(fresh, experts="und")
    for change, message in (({"layers": 1}, "--layers 2 there, 1 here"),
                            ({"rope_bf16": True}, "--rope_bf16 False there")):
        with pytest.raises(ValueError, match=f"is another network: {message}"):   # the second has equal shapes
            weights.start(model_module.InternVLA_A1(replace(small, **change)), origin=run)


def test_an_absent_hub_id_says_what_to_fetch_and_where_to_put_it(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")
    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ValueError, match=r"download config.json, \*.safetensors of huggingface.co/Qwen/Qwen3-VL-2B"):
        find("Qwen/Qwen3-VL-2B-Instruct", ("config.json", "*.safetensors"))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="/nowhere/at/all is no directory here"):
        find("/nowhere/at/all", ("config.json",))


def save_torchscript(path, tensors):
    """A file of NVIDIA's kind, with these names."""
    root = nn.Module()
    for key, tensor in tensors.items():
        *parents, name = key.split(".")
        for depth in range(len(parents)):
            above = root.get_submodule(".".join(parents[:depth]))
            if not hasattr(above, parents[depth]):
                above.add_module(parents[depth], nn.Module())
        root.get_submodule(".".join(parents)).register_buffer(name, tensor)
    torch.jit.script(root).save(path)


def save_cosmos(vae, folder):
    """encoder.jit and decoder.jit of a VAE."""
    for side, quant, patcher in ("encoder", "quant", "patcher"), ("decoder", "post", "unpatcher"):
        half = {key: p for key, p in vae.state_dict().items() if key.startswith((side, quant))}
        save_torchscript(folder / f"{side}.jit", half | {f"{side}.{patcher}.wavelets": torch.ones(2)})


@pytest.mark.filterwarnings("ignore")
def test_cosmos_loads_from_torchscript(small, tmp_path):
    """Sec. 3.2: NVIDIA publishes encoder.jit and decoder.jit."""
    vae = CosmosVAE(32, (1, 1), 1).requires_grad_(False)
    wanted = vae.state_dict()
    save_cosmos(vae, tmp_path)
    model = empty_model(small)
    report = load_cosmos(model, tmp_path)
    assert report.matched == len(wanted) and len(report.left_out["constants of the Haar transform"]) == 2
    assert all(torch.equal(p, wanted[key]) for key, p in model.vae.state_dict().items())
    (tmp_path / "decoder.jit").write_bytes(b"not TorchScript")
    with pytest.raises(ValueError, match=r"decoder.jit cannot be read \(.*\): download this TorchScript file again"):
        load_cosmos(model, tmp_path)


@pytest.mark.parametrize("name", KEYS)
def test_every_published_key_has_its_place_at_full_size(name, monkeypatch, request):
    """The release's key lists at real size: each key is loaded, or left out for a reason that is written down."""
    monkeypatch.undo()   # the full-size VAE
    config = CONFIGS[name].model
    with torch.device("meta"):
        own = model_module.InternVLA_A1(config).state_dict()

    lines = (request.path.parents[1] / "data" / KEYS[name]).read_text().splitlines()
    shapes = {key: tuple(json.loads(shape)) for key, shape, *_ in (line.split("\t") for line in lines)}
    if name == "a1_2b":   # the biases that the release's 2B drops
        shapes |= {key.replace("weight", "bias"): shape[:1] for key, shape in shapes.items()
                   if key.endswith(("attention.q_proj.weight", "attention.k_proj.weight", "attention.v_proj.weight"))}
    copies, report = plan(Source(name, shapes, None, dict.fromkeys(shapes, "F32")), RELEASE, config, own)
    assert len(copies) == len(own)
    assert len(copies) + sum(map(len, report.left_out.values())) == len(shapes)


# ---- --weights DIR ----------------------------------------------------------------------------------------------

def test_a_directory_of_published_files_is_told_apart_by_what_it_holds(tmp_path):
    """--weights: a run, the release's directory, or a backbone and Cosmos in folders of one directory."""
    def make(name, **files):
        for path, text in files.items():
            target = tmp_path / name / path.replace("__", "/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        return tmp_path / name

    three = make("three", **{"eyes__config.json": '{"model_type": "qwen3_vl"}', "words__config.json":
                             '{"model_type": "qwen3"}', "cosmos__encoder.jit": "", "notes__README": ""})
    assert weights.identify(three) == {"und": str(three / "eyes"), "vae": str(three / "cosmos")}   # experts: random
    one = make("one", **{"config.json": '{"model_type": "internvl"}', "encoder.jit": ""})
    assert weights.identify(one) == {"und": str(one), "vae": str(one)}
    release = make("release", **{"config.json": "{}", "stats.json": "{}", "model.safetensors": ""})
    assert weights.identify(release) == {"release": release}
    run = make("run", **{"step_00000003__manifest.json": "{}"})
    assert weights.identify(run) == {"origin": run}
    with pytest.raises(ValueError, match="found neither a run.*nor the release's files.*nor a backbone"):
        weights.identify(make("nothing", README=""))
    with pytest.raises(ValueError, match="two backbones, .*eyes and .*more"):
        weights.identify(make("three", **{"more__config.json": '{"model_type": "internvl"}'}))
    with pytest.raises(ValueError, match="torn/config.json is no JSON"):
        weights.identify(make("torn", **{"config.json": "{"}))


@pytest.mark.parametrize("flags", ["--weights W --from X", "--weights W --init scratch", "--weights W --init_und X",
                                   "--weights W --init_vae X", "--weights W --init_experts X", "--from W --init_vae X"])
def test_two_sources_of_all_weights_are_refused(flags):
    """One would win without a word."""
    import train
    with pytest.raises(ValueError, match="W says where all weights come from"):
        train.run(flags.split())
