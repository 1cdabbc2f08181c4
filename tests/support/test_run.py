"""A run in train.py is not lost and not silently wrong: support/training/, in this process."""

import errno
import json
import multiprocessing
import os
import resource
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import data
import train
from config import CONFIGS, STAGES, from_dict, get_config
from support import checkpoint
from support.data.statistics import of_checkpoint
from support.training import checkpointer, journal, memory, preflight
from support.training.ranks import Ranks
from support.training.signals import Interruption
from test_bad_input import write_folder

FLAGS = ("--layers 1 --image_size 32 --vae_size 32 --chunk 4 --text_tokens 8 --batch_size 4 --action_draws 1 --steps 8 "
         "--warmup_steps 1 --full_windows false --threads 1 --log_every 1 --eval_every 100 --eval_windows 2 "
         "--save_every 2 --m 2").split()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "arm", T=20, ends=np.array([12, 20]))


@pytest.fixture
def go(dataset, tmp_path, capsys):
    """(out, *flags) -> (rows of log.jsonl, what was printed)."""
    def start(name, *flags):
        out = tmp_path / name
        train.run(["--data", str(dataset), "--out", str(out), *FLAGS, *flags])
        return rows(out), capsys.readouterr()
    return start


def rows(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_loader_processes_begin_before_the_model_and_hold_nothing_of_it(go, monkeypatch):
    """A process forked later would keep what training overwrites: weights and optimizer states, twice in host memory."""
    seen, build = [], train.InternVLA_A1

    def built(config):
        seen.append(len(multiprocessing.active_children()))
        return build(config)
    monkeypatch.setattr(train, "InternVLA_A1", built)
    go("forked", "--loaders", "2")
    assert set(seen) == {2}


@pytest.mark.parametrize("bad, full, saved", [(16, False, [2, 4]), (20, False, [2, 4, 5]), (16, True, [2, 4, 4])])
def test_a_run_that_its_data_end_saves_what_is_not_on_disk_and_nothing_twice(go, monkeypatch, capsys, bad, full, saved):
    """Every second step is saved, of four samples each. full: the disk, when step 4 is saved for the first time."""
    steps, clean, save = [], data.Mixture.arrays, checkpoint.save

    def arrays(self, n, attempt=0):
        if n == bad:
            raise ValueError("no picture")
        return clean(self, n, attempt)
    monkeypatch.setattr(data.Mixture, "arrays", arrays)

    def saves(out, step, *rest):
        steps.append(step)
        if full and steps == [2, 4]:
            raise checkpoint.CheckpointError("no space left")
        save(out, step, *rest)
    monkeypatch.setattr(checkpoint, "save", saves)
    with pytest.raises(ValueError, match="no picture"):
        go("ended")
    assert steps == saved and f"ended by its data: saved at step {saved[-1]}" in capsys.readouterr().out


# ---- numbers that are not finite --------------------------------------------------------------------------------

@pytest.fixture
def poison(monkeypatch):
    """(sample numbers) -> from now on these samples hold a NaN action."""
    def spoil(numbers):
        clean = data.Mixture.__getitem__

        def spoilt(self, n):
            arrays, *rest = clean(self, n)
            if n in numbers:
                arrays["action"][:] = float("nan")
            return arrays, *rest
        monkeypatch.setattr(data.Mixture, "__getitem__", spoilt)
    return spoil


def test_a_step_with_a_nan_changes_no_tensor_and_training_goes_on_behind_it(go, poison, tmp_path, monkeypatch):
    """A NaN in one sample of step 3: the checkpoints of steps 2 and 3 are equal, weights and optimizer."""
    poison({9})
    monkeypatch.setattr(checkpointer, "KEEP", 8)
    log, printed = go("kept", "--save_every", "1")
    assert [row["step"] for row in log if row.get("skipped")] == [3] and "step 3: loss or gradient" in printed.out
    assert [row["step"] for row in log if "loss" in row and np.isfinite(row["loss"])] == [1, 2, 4, 5, 6, 7, 8]
    two, three = (tmp_path / "kept" / f"step_{n:08d}" for n in (2, 3))
    for load in (lambda path: checkpoint.load(path)[0], checkpoint.load_optimizer):
        a, b = load(two), load(three)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    four = checkpoint.load(tmp_path / "kept" / "step_00000004")[0]
    assert any(not torch.equal(four[name], checkpoint.load(three)[0][name]) for name in four)


def test_three_skipped_steps_in_a_row_stop_the_run_and_name_the_samples(go, attempt, poison):
    """One line with dataset, episode and frame; the run is saved. --resume goes on behind them, and an agent does not."""
    poison({9, 12, 17})
    with pytest.raises(ValueError) as end:
        attempt(0, "stopped")
    line = str(end.value)
    assert len(line.splitlines()) == 1 and "steps 3 to 5 were skipped" in line
    assert line.count("arm episode 0 frame") == 3 and "not finite" in line
    with pytest.raises(ValueError, match="holds checkpoints already"):
        attempt(1, "stopped")
    log, printed = go("stopped", "--resume")
    assert "step_00000005 at step 5" in printed.out and [row["step"] for row in log if "loss" in row][-1] == 8


@pytest.mark.parametrize("kind", ["fp32", "split", "offload"])
def test_a_run_saved_before_its_first_update_goes_on(go, poison, tmp_path, kind):
    """The first three steps are not finite: AdamW has no state yet, and the fourth step is its first."""
    poison({0, 4, 8})
    flags = "--optimizer", kind
    with pytest.raises(ValueError, match="steps 1 to 3 were skipped"):
        go("early", *flags)
    log, printed = go("early", *flags, "--resume")
    assert "at step 3" in printed.out and [row["step"] for row in log if "loss" in row] == [4, 5, 6, 7, 8]
    kept = checkpoint.load_optimizer(tmp_path / "early" / "step_00000008")
    assert {float(x) for name, x in kept.items() if name.endswith(".step")} == {5.0}


# ---- an agent that restarts -------------------------------------------------------------------------------------

@pytest.fixture
def attempt(go, monkeypatch):
    """(number, *arguments of go) -> the same under this process's parent as torchrun's agent."""
    def start(number, *args):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(number))
        return go(*args)
    return start


def test_a_restarted_group_goes_on_with_the_run_that_its_agent_began(attempt, tmp_path):
    whole, _ = attempt(0, "lost")
    shutil.rmtree(tmp_path / "lost" / "step_00000008")
    log, printed = attempt(1, "lost")
    assert log == whole and "step_00000006 at step 6" in printed.out


def test_a_restarted_group_does_not_go_on_with_a_run_that_was_there_before(go, attempt, tmp_path):
    """The first attempt refuses; the agent starts it again, and that one refuses too."""
    before, _ = go("there")
    for number in (0, 1):
        with pytest.raises(ValueError, match="holds checkpoints already"):   # one line and exit code 2 by the script
            attempt(number, "there", "--steps", "9")
    assert rows(tmp_path / "there") == before


def test_a_resumed_run_is_the_same_run_or_refuses_and_says_what_it_changes(go, tmp_path):
    """Each changed flag is named, and none that did not change."""
    for _ in range(2):   # the first refusal leaves nothing behind that the second could take for a run
        with pytest.raises(ValueError, match="no good checkpoint"):
            go("first", "--resume")
    log, _ = go("first", "--steps", "2")
    with pytest.raises(ValueError, match=r"was trained with another config \(--chunk, --lr\): give the same flags"):
        go("first", "--steps", "2", "--resume", "--lr", "1e-2", "--chunk", "5")
    assert rows(tmp_path / "first") == log
    _, printed = go("first", "--steps", "2", "--resume", "--save_every", "7")
    assert "--save_every is 7, it was" in printed.out
    (tmp_path / "killed_at_once").mkdir()
    _, printed = go("killed_at_once", "--steps", "2", "--resume")
    assert "holds no checkpoint: starting at step 0" in printed.out


def test_a_changed_mixture_is_not_resumed(go, tmp_path):
    """Weights of datasets are not flags, and change every sample behind."""
    for name in ("one", "two"):
        write_folder(tmp_path / name, T=20, ends=np.array([12, 20]), robot=np.array("arm"))
    for weight in (1, 3):
        listing = {"datasets": [{"path": "one"}, {"path": "two", "weight": weight}]}
        (tmp_path / "mixture.json").write_text(json.dumps(listing))
        if weight == 1:
            go("mixed", "--data", str(tmp_path / "mixture.json"), "--steps", "2")
        else:
            with pytest.raises(ValueError, match="was trained on other datasets or weights"):
                go("mixed", "--data", str(tmp_path / "mixture.json"), "--steps", "2", "--resume")


def test_a_log_without_a_checkpoint_is_kept(go, tmp_path):
    """A run that could never save, started anew."""
    go("first", "--steps", "2")
    shutil.rmtree(tmp_path / "first" / "step_00000002")
    log = (tmp_path / "first" / "log.jsonl").read_bytes()
    _, printed = go("first", "--resume", "--steps", "2")
    assert (tmp_path / "first" / "log.jsonl.old").read_bytes() == log and "log.jsonl.old" in printed.out


# ---- disks and signals ------------------------------------------------------------------------------------------

def test_a_log_that_a_full_disk_refuses_is_whole_once_there_is_room(tmp_path):
    """Nothing is lost, nothing is torn, and a checkpoint is not written beside a log that is behind."""
    log, path = checkpointer.Log(tmp_path / "log.jsonl"), tmp_path / "log.jsonl"
    log.append({"step": 1})
    limits, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.length + 4, limits[1]))   # four bytes of the next line: torn
        log.append({"step": 2})
        assert not log.flush() and path.stat().st_size > log.length
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    log.append({"step": 3, "held_out": {"loss_act": float("nan"), "loss_gen": float("inf")}})   # JSON has no NaN
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "held_out": {"loss_act": null, "loss_gen": null}}\n'


def test_a_run_whose_timing_a_full_disk_tore_goes_on(go, tmp_path):
    """Of what it holds beside log.jsonl only whole lines count."""
    go("torn")
    path, last = tmp_path / "torn" / "timing.jsonl", max((tmp_path / "torn").glob("step_*"))
    whole = path.read_text()
    path.write_text(whole + '{"step": 9, "sec')
    shutil.rmtree(last)
    go("torn", "--resume")
    again = path.read_text().removeprefix(whole).splitlines()
    assert again and [json.loads(line)["step"] for line in again][-1] == 8


def test_a_picture_that_cannot_be_drawn_is_one_message_and_training_goes_on(go, monkeypatch):
    """A full disk, twice."""
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")
    undisturbed, _ = go("good", "--eval_every", "4")
    monkeypatch.setattr(journal.pictures, "curves", full)
    log, printed = go("full", "--eval_every", "4")
    assert log == undisturbed and printed.err.count("\n") == 1 and "no picture at step 4: " in printed.err


def test_a_last_step_that_cannot_be_saved_ends_with_an_error(go, monkeypatch):
    """The report is written, and the exit code says that the weights are not."""
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(checkpoint, "_require_space", full)
    with pytest.raises(ValueError, match="the last step is not on disk"):
        go("never")


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(go, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file/run cannot be made: Not a directory"):
        go("file/run")


def test_a_run_too_large_for_the_disk_is_refused_before_it_begins(go, monkeypatch):
    """Disk need is estimated: not even one checkpoint fits."""
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match="not even one fits; free space"):
        go("large")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process(number):
    """The first one is noted and the loop goes on, the second one does not wait for it."""
    pid = os.fork()
    if not pid:
        with Interruption() as interruption:
            os.kill(os.getpid(), number)
            if interruption.signal != number:
                os._exit(3)
            os.kill(os.getpid(), number)
            os._exit(4)   # not reached
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -number


@pytest.mark.parametrize("before, noted", [(signal.SIG_DFL, signal.SIGHUP), (signal.SIG_IGN, 0)])
def test_a_lost_terminal_ends_a_run_in_order_and_one_under_nohup_not_at_all(before, noted):
    """Also when it is told twice, by the terminal and by the shell."""
    old = signal.signal(signal.SIGHUP, before)
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        assert interruption.signal == noted
    assert signal.signal(signal.SIGHUP, old) == before


# ---- stages, batches, combinations ------------------------------------------------------------------------------

def test_the_stages_are_table_2():
    """Pre-training: constant 5e-5, 700K steps, 512. Post-training: 5e-5 to 5e-6, 2,000 and 60,000 steps, 128."""
    pre, post = (get_config("a1_2b", {"stage": name}).train for name in ("pretrain", "posttrain"))
    for stage in (pre, post):
        assert (stage.beta1, stage.beta2, stage.adam_eps, stage.weight_decay, stage.clip) == (0.9, 0.95, 1e-8, 0.01, 1.0)
    assert pre.batch_size * pre.accumulate == 512 and post.batch_size * post.accumulate == 128
    assert pre.steps == 700_000 and {train.lr_at(step, pre) for step in (0, 1, 5_000, 699_999)} == {5e-5}
    assert post == CONFIGS["a1_2b"].train and (post.steps, post.warmup_steps, post.decay_steps) == (60_000, 2_000, 60_000)
    assert get_config("a1_2b").data.m == 15 and get_config("a1_2b").model.lambda_gen == 0.01
    assert get_config("a1_3b", {"stage": "pretrain", "lr": 1e-5, "min_lr": 0.0}).train.lr == 1e-5   # a flag wins
    assert set(STAGES) == {"pretrain", "posttrain"}


def test_the_effective_batch_is_compared_with_the_papers():
    """micro-batch x accumulation x ranks, and what would give Table 2's."""
    post = get_config("a1_2b").train
    one, eight, fewer = (SimpleNamespace(world=world, dealt=dealt) for world, dealt in ((1, 1), (8, 8), (2, 8)))
    assert preflight.effective_batch(post, one).endswith("= 128, the paper's (posttrain, Table 2)")
    assert "8 x 16 accumulated x 8 ranks = 1024; the paper's is 128" in preflight.effective_batch(post, eight)
    assert preflight.effective_batch(post, eight).endswith("--accumulate 2 gives it")
    conveyor = get_config("conveyor").train
    assert preflight.effective_batch(conveyor, one) == "batch: 32 x 1 accumulated x 1 ranks = 32"
    assert preflight.effective_batch(conveyor, fewer) == ("batch: 32 x 1 accumulated x 8 ranks = 256, the samples of "
                                                          "which 2 ranks draw: the run began with 8")


@pytest.mark.parametrize("flags, words", [
    (["--batch_size", "500"], "--batch_size 500 is more than the data have samples: 12 windows"),
    (["--chunk", "13"], "--chunk 13 is longer than every episode: the longest has 12 frames"),
    (["--lpt_workers", "400"], "--lpt_workers 400 is more than the data have samples: 12 windows"),
    (["--ema", "0.99", "--optimizer", "split"], "--ema 0.99 needs --optimizer fp32"),
    (["--ema", "0.99", "--shard"], "--ema averages whole weights and --shard cuts them"),
    (["--freeze", "vison"], "--freeze knows und, vision and embed, not vison"),
    (["--fit", "--shard"], "--fit counts for a card that holds everything")])
def test_impossible_combinations_are_refused_before_the_model_is_built(go, monkeypatch, flags, words):
    monkeypatch.setattr(train, "InternVLA_A1", None)   # never reached
    with pytest.raises(ValueError) as error:
        go("impossible", *flags)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("where", ["prepare", "Checkpointer.begin"])
def test_out_of_memory_before_the_first_step_is_one_line(go, monkeypatch, where):
    """A card that is too small for weights, masters or a checkpoint's tensors."""
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(f"train.{where}", full)
    with pytest.raises(ValueError, match="^out of memory at a peak of .*--batch_size 4"):
        go("full")


def test_out_of_memory_is_one_line_with_the_peak_the_batch_and_three_flags():
    settings = get_config("a1_2b").train
    with pytest.raises(ValueError) as error, memory.explained(settings, torch.device("cpu")):
        torch.empty(2 ** 60, dtype=torch.uint8)
    line = str(error.value)
    assert "GB with --batch_size 8" in line and "\n" not in line
    assert line.endswith("What helps: a smaller --batch_size and a larger --accumulate, --optimizer offload, --freeze und, "
                         "several cards with --shard; --dry-run prints what fits")   # nothing that is set already
    with pytest.raises(RuntimeError, match="shape"), memory.explained(settings, torch.device("cpu")):
        torch.zeros(2).view(3)   # any other error stays what it is


# ---- settings that change memory or the average -----------------------------------------------------------------

@pytest.mark.parametrize("kind", ["fp32", "split", "offload"])
def test_a_run_resumes_exactly_and_stays_near_float32(go, tmp_path, kind):
    """Log, weights and every tensor of the optimizer's state of a resumed run are the uninterrupted one's."""
    exact, _ = go("exact")
    whole, _ = go("whole", "--optimizer", kind)
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "step_00000008")
    resumed, printed = go("half", "--optimizer", kind, "--resume")
    assert resumed == whole and "at step 6" in printed.out
    assert whole[7]["loss"] == pytest.approx(exact[7]["loss"], rel=0.05)
    one, two = ([checkpoint.load(path)[0], checkpoint.load_optimizer(path)] for path in tmp_path.glob("[wh]*/step_00000008"))
    for a, b in zip(one, two):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert {x.dtype for x in one[0].values()} == {torch.float32} | ({torch.bfloat16} if kind != "fp32" else set())


def test_the_average_of_ema_is_what_is_saved_and_goes_on_after_resume(go, tmp_path):
    """model.safetensors holds the average; the weights in training stand beside the optimizer, and nothing drifts."""
    whole, _ = go("whole", "--ema", "0.5")
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "step_00000008")
    assert go("half", "--ema", "0.5", "--resume")[0] == whole
    one, two = (checkpoint.load(tmp_path / name / "step_00000008")[0] for name in ("whole", "half"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    kept = checkpoint.load_optimizer(tmp_path / "whole" / "step_00000008")
    trained = {name: kept[f"trained.{name}"] for name in one}
    assert any(not torch.equal(one[name], trained[name]) for name in one)
    plain, _ = go("plain")
    weights = checkpoint.load(tmp_path / "plain" / "step_00000008")[0]
    assert all(torch.equal(weights[name], trained[name]) for name in one)   # averaging does not touch the training
    assert [row for row in plain if "loss" in row] == [row for row in whole if "loss" in row]


@pytest.mark.parametrize("freeze, still", [("und", ("und.", ".und.")), ("vision", ("und.visual.",)),
                                           ("vision,embed", ("und.visual.", "und.embed_tokens."))])
def test_what_is_frozen_does_not_move_and_all_else_does(go, tmp_path, freeze, still):
    """--freeze, by parameter name, on weights before and after."""
    go("frozen", "--freeze", freeze, "--steps", "2")
    config = from_dict(json.loads((tmp_path / "frozen/step_00000002/state.json").read_text())["config"])
    torch.manual_seed(config.train.seed)
    start = train.InternVLA_A1(config.model).state_dict()
    after = checkpoint.load(tmp_path / "frozen" / "step_00000002")[0]
    names = {name for name in after if any(name.startswith(s) or s in name and s[0] == "." for s in still)}
    assert names and {name for name in after if torch.equal(after[name], start[name])} == names


def test_posttraining_from_a_run_keeps_weights_and_starts_all_else_afresh(go, tmp_path):
    """--stage posttrain --from RUN: its weights; optimizer, schedule and statistics are new."""
    go("first")
    other = write_folder(tmp_path / "arm", T=20, ends=np.array([12, 20]), state=np.random.default_rng(1).normal(size=(20, 6)))
    log, printed = go("second", "--stage", "posttrain", "--from", str(tmp_path / "first"), "--steps", "2",
                      "--warmup_steps", "2000", "--accumulate", "1", "--data", str(other))
    old, new = (of_checkpoint(json.loads((tmp_path / path / "state.json").read_text()))
                for path in ("first/step_00000008", "second/step_00000002"))
    (first, before), (second, after) = *old.items(), *new.items()
    assert first == second and before.state_mean != after.state_mean   # nobody named it: one robot in two folders
    assert "optimizer, schedule and statistics start afresh" in printed.out
    assert log[0]["lr"] == train.lr_at(0, STAGE) < 1e-7 and log[0]["step"] == 1
    kept = checkpoint.load_optimizer(tmp_path / "second" / "step_00000002")
    assert {float(x) for name, x in kept.items() if name.endswith(".step")} == {2.0}
    one, two = (checkpoint.load(tmp_path / path)[0] for path in ("first/step_00000008", "second/step_00000002"))
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)   # two tiny steps away


STAGE = replace(get_config("conveyor").train, **STAGES["posttrain"])


def test_compiled_and_recomputed_layers_change_no_bit_of_a_run(dataset, tmp_path):
    """--compile wraps each joint layer, and each is one graph; traced but not built, so that no C++ is needed here."""
    calls = []

    def stand_in(function, dynamic):
        assert dynamic is False
        calls.append(function)
        return compiler(function, dynamic=False, fullgraph=True, backend="eager")
    compiler = torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", stand_in)
        train.run(["--data", str(dataset), "--out", str(tmp_path / "compiled"), *FLAGS, "--compile", "true",
                   "--checkpoint_layers", "true", "--steps", "2"])
    train.run(["--data", str(dataset), "--out", str(tmp_path / "plain"), *FLAGS, "--steps", "2"])
    assert len(calls) == 1 and rows(tmp_path / "compiled") == rows(tmp_path / "plain")


def ranks_of(world, began):
    """Ranks, of `world`, which go on with a run that began with `began`."""
    every = [Ranks() for _ in range(world)]
    for n, ranks in enumerate(every):
        ranks.rank, ranks.world = n, world
        ranks.take_over(began)
    return every


@pytest.mark.parametrize("began, world, draws_for", [
    (1, 1, [[0]]), (3, 3, [[0], [1], [2]]), (4, 2, [[0, 2], [1, 3]]), (4, 1, [[0, 1, 2, 3]]),
    (4, 3, [[0], [1], [2]]), (2, 4, [[0], [1], [2], [3]])])   # these deal anew
def test_fewer_ranks_draw_for_those_that_a_run_began_with_where_each_can_take_as_many(began, world, draws_for):
    every = ranks_of(world, began)
    assert [list(ranks.draws_for) for ranks in every] == draws_for
    assert {ranks.dealt for ranks in every} == {len(sum(draws_for, []))}
    values = [[f"of {n}" for n in ranks.draws_for] for ranks in every]
    every[0].gather = lambda own: values
    assert every[0].by_dealt(values[0]) == [f"of {n}" for n in range(every[0].dealt)]


@pytest.mark.parametrize("change, line", [
    ({"versions": None, "drawn": 5}, "no checkpoint of a training run, it has no drawn, versions: .* --from"),
    ({"versions": {}}, "the number of ranks must be a whole number, got None"),
    ({"versions": {"ranks": 2, "dealt": 0}}, "the number of ranks must be at least 1, got 0")])
def test_a_checkpoint_that_no_run_can_go_on_from_is_refused_before_data_are_read(tmp_path, change, line):
    state = {"config": {}, "drawn": [], "log_length": 0, "progress": {}, "step": 4, "versions": {"ranks": 4}}
    checkpoint.save(tmp_path / "good", 4, {}, {}, state)
    ranks = Ranks()
    assert checkpointer.checkpoint_to_resume(True, tmp_path / "good", ranks).name == "step_00000004" and ranks.dealt == 4
    checkpoint.save(tmp_path / "bad", 4, {}, {}, state | change)
    with pytest.raises(ValueError, match=line):
        checkpointer.checkpoint_to_resume(True, tmp_path / "bad", Ranks())


@pytest.mark.parametrize("counts, world, own", [
    ([3, 4], 2, [[3], [4]]), ([3, 4], 1, [[3, 4]]), ([1, 2, 3, 4], 2, [[1, 3], [2, 4]]), ([7], 2, [[7], [7]]),
    ([1, 2, 3], 2, [[2], [2]]), ([], 2, [[0], [0]])])
def test_bad_samples_are_counted_by_rank_and_other_ranks_go_on_from_the_mean(counts, world, own):
    for ranks, expected in zip(ranks_of(world, len(counts) or world), own):
        mixtures = [SimpleNamespace() for _ in ranks.draws_for]
        assert checkpointer.restore_bad_samples(mixtures, counts, ranks) == expected
        assert [mixture.bad_samples for mixture in mixtures] == expected
