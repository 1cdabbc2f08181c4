"""What is typed wrong is refused in one line: unknown flags, numbers out of bounds, flags that a job would ignore."""

import itertools
import json
import re

import numpy as np
import pytest

import infer
import support.data.__main__ as data_main
import train
from config import DataConfig, ModelConfig, TrainConfig, from_dict, get_config, to_dict
from support import files
from support.flags import READ_BY, Parser
from support.training import preflight

from test_bad_input import RUN, save_checkpoint, write_folder


@pytest.mark.parametrize("typed, hint", [
    ("--batch_sizes", "did you mean --batch_size?"), ("--warmpu_steps", "did you mean --warmup_steps?"),
    ("--checkpoint_layer", "did you mean --checkpoint_layers?"), ("--dry_run", "did you mean --dry-run?"),
    ("--lamda_gen", "did you mean --lambda_gen?"), ("--xyzzy", "--help lists all flags")])
def test_a_typo_is_refused_with_the_flag_that_was_meant(capsys, typed, hint):
    with pytest.raises(SystemExit) as end:
        train.parse([typed, "1"])
    assert end.value.code == 2 and capsys.readouterr().err == f"train.py: unknown flag {typed}: {hint}\n"
    with pytest.raises(SystemExit):
        train.parse(["--data", "a", "--mixture", "b"])
    assert "--data and --mixture are one flag" in capsys.readouterr().err


# ---- which flag belongs to which job ------------------------------------------------------------------------

EVERYWHERE = {"train.py": "config fit dry_run", "infer.py": "robot cut closed_loop open_loop serve",
              "python -m support.data": "inspect verify cache"}   # beside the network and its optimizer
JOB_FLAGS = {"cut", "closed_loop", "open_loop", "serve", "inspect", "verify", "cache", "dry_run"}
RUNS = {"a training run", "a robot that a world simulates", "data that hold out nothing themselves",
        "a run that holds out data", "LeRobot data", "--decay_steps above 0"}
TINY = {"--gen_expert true", "--decay_steps above 0"}
LARGE = TINY | {"a published backbone", "--learned_positions false"}
JOBS = [   # program, how a job is asked for, what it is in the words of READ_BY
    ("train.py", "", RUNS | TINY), ("train.py", "--dry-run", {"--dry-run"} | TINY),
    ("train.py", "--fit", RUNS | TINY | {"--fit"}), ("train.py", "--config a1_2b", RUNS | LARGE),
    ("train.py", "--dry-run --config a1_3b", {"--dry-run"} | LARGE),
    ("train.py", "--hold_out none", RUNS - {"a run that holds out data"} | TINY),
    ("train.py", "--gen_expert false", RUNS),
    ("train.py", "--decay_steps 0", RUNS - {"--decay_steps above 0"} | {"--gen_expert true"}),
    *(("infer.py", f"{job} {weights}", {job.split()[0], weights[:9] or "a policy without --weights", *more})
      for weights in ("", "--weights w") for job, *more in (
          ["--image-dir d"], ["--closed-loop"], ["--open-loop"], ["--serve", "--protocol openpi"],
          ["--serve --protocol xpolicylab", "--protocol xpolicylab"])),
    ("infer.py", "--cut c", {"--cut"}),
    ("python -m support.data", "--inspect {lerobot}", {"--inspect of LeRobot"}),
    ("python -m support.data", "--inspect {folder}", set()), ("python -m support.data", "--verify {folder}", set()),
    ("python -m support.data", "--cache {lerobot} out", {"--cache"})]


class Read(Exception):
    """Raised where a program has accepted its flags."""


def flags_of(program, monkeypatch):
    """The actions of a program's parser."""
    with monkeypatch.context() as patch:
        patch.setattr(Parser, "parse_args", lambda self, argv=None: (_ for _ in ()).throw(Read(self)))
        with pytest.raises(Read) as found:
            {"train.py": train.parse, "infer.py": infer.parse, "python -m support.data": data_main.main}[program]([])
    return [action for action in found.value.args[0]._actions if action.dest != "help"]


def ask(program, argv):
    """Read the flags of a program as it does before it begins."""
    if program == "infer.py":
        infer.check_flags(infer.parse(argv), "cpu")
    elif program == "train.py":
        args = preflight.parse(argv)
        facts = {key: getattr(args, key) for key in ("gen_expert", "hold_out", "decay_steps")}
        preflight.check_flags(args, get_config(args.config, facts))
    else:
        with pytest.raises((Read, ValueError)) as end:
            data_main.main(argv)
        if end.type is ValueError and "would be ignored" in str(end.value):
            raise end.value


@pytest.mark.parametrize("program", sorted(READ_BY.keys() & EVERYWHERE.keys()))
def test_every_flag_is_in_the_table_or_read_by_every_job(program, monkeypatch):
    listed = list(itertools.chain(*(names.split() for names in READ_BY[program])))
    fields = {*vars(ModelConfig()), *vars(TrainConfig()), *vars(DataConfig())} if program == "train.py" else set()
    flags = {action.dest for action in flags_of(program, monkeypatch)}
    assert len(listed) == len(set(listed)) and set(listed) <= flags
    assert flags - fields - set(listed) - {"debug"} == set(EVERYWHERE[program].split())
    assert set(vars(DataConfig())) <= set(listed) or not fields   # nothing of the data is read without data


@pytest.mark.parametrize("program, asked, jobs", JOBS, ids=lambda x: x if isinstance(x, str) else "")
def test_every_flag_beside_every_job_is_read_or_refused(program, asked, jobs, monkeypatch, tmp_path):
    """The whole table: a flag that the job does not read is refused by name, in one line, with the job it is for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    (tmp_path / "lerobot").mkdir()
    write_folder(tmp_path / "folder")
    monkeypatch.setattr(data_main, "find_robot", lambda name: None)
    for where, name in ((data_main, "LeRobotSource"), (data_main.file_hashes, "record"), (data_main.file_hashes, "verify")):
        monkeypatch.setattr(where, name, lambda *args, **more: (_ for _ in ()).throw(Read()))
    asked = asked.format(folder=tmp_path / "folder", lerobot=tmp_path / "lerobot").split()
    readers = {name: set(of) for names, of in READ_BY[program].items() for name in names.split()}
    for action in flags_of(program, monkeypatch):
        flag, value = action.option_strings[0], [] if action.nargs == 0 else [(action.choices or ["1"])[0]]
        chosen_by_fit = "--fit" in jobs and flag in ("--checkpoint_layers", "--optimizer", "--shard")
        another = action.dest in JOB_FLAGS or (program, action.dest) == ("train.py", "config")
        if another or {*action.option_strings} & {*asked} or chosen_by_fit:
            continue
        expected = readers.get(action.dest, jobs) & jobs or not jobs and action.dest not in readers
        try:
            ask(program, [*asked, flag, *value])
            assert expected, flag
        except ValueError as error:
            assert not expected and re.match(f"{flag}\\b.* would be ignored: it is for .*; drop it$", str(error)), error


@pytest.mark.parametrize("argv, words", [
    ("", "give one of --image-dir DIR"), ("--closed-loop --open-loop", "give one of"),
    ("--cut d --closed-loop", "give one of")])
def test_infer_has_one_job(refuses, argv, words):
    assert words in refuses("infer.py", *argv.split())


def test_what_data_decide_is_refused_once_their_metadata_are_read(refuses, tmp_path):
    """A robot without a world has no closed loop; a mixture may say itself what is held out."""
    for name in ("a", "b"):
        write_folder(tmp_path / name, robot=np.array("tiny"), task=np.array([name] * 2))
    for flag in ("--episodes", "--eval_seed"):
        assert f"{flag} would be ignored: it is for a robot that a world simulates" in \
            refuses("train.py", "--data", tmp_path / "a", *RUN, flag, 3)
    assert "--timestamps would be ignored: it is for LeRobot data" in \
        refuses("train.py", "--data", tmp_path / "a", *RUN, "--timestamps", "index")
    (tmp_path / "mixture.json").write_text(json.dumps({"datasets": [{"path": "a"}], "validation": "b"}))
    assert "--hold_out would be ignored: it is for data that hold out nothing" in \
        refuses("train.py", "--data", tmp_path, *RUN, "--hold_out", 0)
    assert "--shard would be ignored: it is for a run under torchrun" in refuses("train.py", *RUN, "--shard")
    assert "--fit chooses --optimizer itself" in refuses("train.py", *RUN, "--fit", "--optimizer", "split")


# ---- numbers and paths --------------------------------------------------------------------------------------

WHOLE = ("m", "chunk", "batch_size", "steps", "layers", "und_width", "loaders", "threads", "seed", "stretch",
         "lpt_workers", "eval_windows", "episodes", "eval_seed", "text_tokens", "accumulate")
REAL = ("lr", "min_lr", "beta1", "adam_eps", "clip", "lambda_gen", "weight_decay", "memory_gb")


@pytest.mark.parametrize("flag, value", [
    *itertools.product(WHOLE, ("-1", "1000000000000", "9" * 400, "9" * 5000, "nan", "1.5", "")),
    *itertools.product(REAL, ("-1", "nan", "inf", "1e300", "1e400", "9" * 400, "x"))])
def test_every_number_has_bounds_that_are_known_before_anything_is_made(refuses, monkeypatch, flag, value):
    monkeypatch.setattr(preflight, "check_flags", None)   # never reached
    line = refuses("train.py", f"--{flag}", value)
    assert f"--{flag}" in line and re.search("must be|expected", line) and len(line) < 300


@pytest.mark.parametrize("out", ["", " ", "/dev/null", "{}/file", "{}/file/run", "/proc/nowhere", "x" * 300])
def test_an_out_that_cannot_be_made_is_refused_before_data_are_read(refuses, tmp_path, out):
    (tmp_path / "file").write_text("")
    for script, more in (("train.py", ["--data", "x"]), ("infer.py", ["--closed-loop", "--checkpoint", "x"])):
        assert re.search("--out .*(cannot be made|must be more)", refuses(script, *more, "--out", out.format(tmp_path)))
    assert "--json" in refuses("infer.py", "--closed-loop", "--json", tmp_path)
    files.require_writable(tmp_path / "new/run", "--out")
    assert not (tmp_path / "new").exists()


def test_a_network_that_this_machine_cannot_hold_is_refused_before_it_is_made(refuses, tmp_path):
    large = ["--und_mlp", 2**20, "--layers", 9, "--und_width", 2**16]
    line = refuses("train.py", "--data", write_folder(tmp_path / "good"), *RUN, *large)
    assert re.search("the weights of this network take .* GiB, this machine has", line)


# ---- a checkpoint of a stranger -----------------------------------------------------------------------------

@pytest.mark.parametrize("section, change, words", [
    ("train", {"lr": float("inf")}, None), ("model", {"layers": 1.0}, "--layers must be a whole"),
    ("model", {"layers": True}, "--layers must be a whole"), ("data", {"m": "15"}, "--m must be a whole"),
    ("model", {"chunk": 10**12}, "--chunk must be at most"), ("model", {"vae": "vq"}, "--vae must be one of"),
    ("model", {"view_tokens": ["a", "b"]}, "--view_tokens must be whole"), ("data", {"hold_out": [1]}, "must be text"),
    ("train", {"x" * 9999: 1}, "does not fit this version"), ("model", {"und_width": 96}, "does not fit this config"),
    ("data", None, "no config of this program"), ("model", [], "no config of this program")])
def test_the_config_of_a_strangers_checkpoint_is_checked_as_flags_are(refuses, tmp_path, section, change, words):
    stored = to_dict(get_config("conveyor", {"layers": 1}))
    stored[section] = stored[section] | change if isinstance(change, dict) else change
    if words is None:   # JSON of ours holds no infinity
        with pytest.raises(ValueError, match="--lr must be at most 10, got inf"):
            from_dict(stored)
        return
    save_checkpoint(tmp_path / "run", get_config("conveyor", {"layers": 1}).model, stored)
    line = refuses("infer.py", "--closed-loop", "--checkpoint", tmp_path / "run", "--episodes", 1)
    assert words in line and len(line) < 600
