"""What a run consists of, saved and found again: checkpoints, and a log that survives a full disk."""

import contextlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from config import from_dict, to_dict
from support import checkpoint
from support.bounds import check
from support.checkpoint import CheckpointError
from support.data.prompts import tokenizer_files
from support.data.statistics import in_checkpoint, of_checkpoint
from support.files import read_json
from support.owner import own
from support.training.ranks import share
from support.weights.loading import empty_model, load_state

# A resumed run may change these. std_floor shows in the statistics, which are compared.
FREE = ("threads", "loaders", "checkpoint_layers", "save_every", "on_bad_sample", "std_floor")
KINDS = {"config": dict, "drawn": list, "log_length": int, "progress": dict, "step": int, "versions": dict}   # of state
KEEP = 2                                                           # checkpoints that stand
AGENT = "agent"   # file of a run: the process id of torchrun's agent that began it, until the run stops itself


class Log:
    """One JSON object a line. What a full disk refuses is kept and written with the next line. path None: nothing is
    written (ranks other than the first). length: the bytes of it that stand; what was logged after a checkpoint is cut
    off, so that a resumed run continues it. CheckpointError: the file is not that log."""

    def __init__(self, path, length=0):
        self.path, self.length, self.waiting = path, length, b""
        if path is None or not (length or path.exists()):
            return
        try:
            with open(path, "r+b") as file:
                file.seek(max(length - 1, 0))
                if length and file.read(1) != b"\n":
                    raise OSError("no line ends there, where the checkpoint was saved")
                file.truncate(length)
                os.fsync(file.fileno())
        except OSError as error:
            raise CheckpointError(f"cannot cut {path} back to {length} bytes: {error.strerror or error}; put the run's "
                                  "own log back, check its permissions, or start a new run directory") from error

    def append(self, row):
        """Null stands for NaN and infinity, which JSON does not have."""
        row = json.loads(json.dumps(row), parse_constant=lambda _: None)
        self.waiting += (json.dumps(row) + "\n").encode()
        self.flush()

    def flush(self, sync=False):
        """Write what waits -> whether all of it is on disk."""
        try:
            if self.path is not None:
                with open(self.path, "ab") as file:
                    file.truncate(self.length)   # a torn line of an earlier attempt
                    file.write(self.waiting)
                    file.flush()
                    if sync:
                        os.fsync(file.fileno())
        except OSError:
            return False
        self.length, self.waiting = self.length + len(self.waiting), b""
        return True


class Checkpointer:
    """Saves and restores a run. by_robot: {robot: Statistics}, the robot of the held-out episode first; average: the
    AveragedModel of --ema or None; drawn: [name, weight, frames, digest] of each dataset."""

    def __init__(self, out, ranks, config, by_robot, model, optimizer, average=None, drawn=()):
        self.out, self.ranks, self.config, self.by_robot = Path(out), ranks, config, by_robot
        self.model, self.optimizer, self.average, self.drawn = model, optimizer, average, list(drawn)
        self.words, self.stored = {}, to_dict(config)
        if config.model.tokenizer:   # its files stand in every checkpoint: the directory may be gone when it is read
            self.words = tokenizer_files(config.model.tokenizer)
            self.stored["model"]["tokenizer"] = checkpoint.OWN_TOKENIZER
        self.out.mkdir(parents=True, exist_ok=True)
        self.log_path, timing = (self.out / name if ranks.first else None for name in ("log.jsonl", "timing.jsonl"))
        # Its whole lines: a full disk tears the last one.
        self.timing = Log(timing, timing.read_bytes().rfind(b"\n") + 1 if timing and timing.exists() else 0)
        self.sharded = any(isinstance(p, DTensor) for p in model.parameters())
        self.log, self.problem, self.on_disk = None, "", 0   # on_disk: the step of the newest checkpoint

    def versions(self):
        """What an exact resume depends on."""
        dealt = {"dealt": self.ranks.dealt} if self.ranks.dealt != self.ranks.world else {}
        sharded = {"sharded": True} if self.sharded else {}
        return {"torch": torch.__version__, "numpy": np.__version__, "threads": torch.get_num_threads(),
                "ranks": self.ranks.world, "device": self.ranks.device.type, **dealt, **sharded}

    def save(self, step, **progress):
        """Write checkpoint `step`; `problem` is then "" or, on every rank, the one line that says why it could not be:
        training goes on. progress: what else the loop counts, JSON values; `begin` gives it back."""
        self.optimizer.finish()
        model, kept, problem = self.ranks.state_dict(self.model), self.optimizer.tensors(keep=self.ranks.first), ""
        if self.average:   # is what inference should read; the weights in training stand among the optimizer's
            kept |= {f"trained.{name}": x for name, x in model.items()} | {"averaged": self.average.n_averaged}
            model = self.average.module.state_dict()
        if self.ranks.first:
            state = {"step": step, "config": self.stored, **in_checkpoint(self.by_robot),
                     "versions": self.versions(), "progress": progress, "drawn": self.drawn}
            try:
                if not self.log.flush(sync=True):
                    raise CheckpointError(f"step {step} was not saved: {self.log.path} cannot be written; older "
                                          "checkpoints are intact; free space there")
                checkpoint.save(self.out, step, model, kept, state | {"log_length": self.log.length}, KEEP, self.words)
            except CheckpointError as error:
                problem = f"{error}; training goes on and the next save tries again"
                print(f"train.py: {problem}", file=sys.stderr, flush=True)
        self.problem = self.ranks.agree(problem)
        self.on_disk = self.on_disk if self.problem else step

    @contextlib.contextmanager
    def kept_if_data_fail(self, step, **progress):
        """A bad sample, a loader process that died or a signal while waiting for data (SystemExit) ends a run that is
        alone only after it has saved what it learned; --resume begins with it."""
        try:
            yield
        except (Exception, SystemExit) as error:
            if self.ranks.world == 1:
                if step > self.on_disk:
                    self.save(step, **progress)
                ended = "interrupted" if isinstance(error, SystemExit) else "ended by its data"
                print(f"{ended}{f': {self.outcome(step)}' if step else ' before the first step'}; --resume goes on",
                      flush=True)
            raise

    def outcome(self, step):
        """Whether the last save went well, in words."""
        return f"{'not ' if self.problem else ''}saved at step {step}"

    def given_up(self, step):
        """The run stops itself, so that an agent that restarts it does not go on -> the beginning of a message."""
        (self.out / AGENT).unlink(missing_ok=True)
        return f"steps {step - 2} to {step} were skipped, the run is {self.outcome(step)} and stopped"

    def final(self):
        """The trained model, whole, on this rank's device. All ranks call it; sharded, the first alone gets it."""
        self.optimizer.finish()
        if not self.sharded:
            return self.average.module if self.average else self.model
        tensors = self.ranks.state_dict(self.model)
        if not self.ranks.first:
            return None
        model = empty_model(self.config.model, self.ranks.device,
                            torch.float32 if self.config.train.optimizer == "fp32" else torch.bfloat16)
        load_state(model, tensors, "the run")
        return model

    def begin(self, newest=None):
        """Start at step 0, or from what checkpoint_to_resume() found, and say so -> (step, progress)."""
        if newest:
            return self._resume(newest)
        if self.log_path is not None and self.log_path.exists() and self.log_path.stat().st_size:
            old = self.log_path.replace(self.log_path.with_name("log.jsonl.old"))
            print(f"{self.out} holds a log and no checkpoint: it is kept as {old}")
        if self.ranks.first and self.ranks.agent:
            (self.out / AGENT).write_text(self.ranks.agent)
        self.log = Log(self.log_path)
        return 0, {}

    def _resume(self, path):
        """ValueError: it is another run's."""
        tensors, state = checkpoint.load(path)
        stored = to_dict(from_dict(state["config"]))
        if checkpoint.load_tokenizer(path) != self.words:
            raise ValueError(f"{path} was trained with another tokenizer: give the same --tokenizer, or leave it out "
                             "where its files stand in the checkpoint")
        changes = {key: (was, self.stored[part][key]) for part in ("model", "data", "train")
                   for key, was in stored[part].items() if was != self.stored[part][key]}
        if refused := [key for key in changes if key not in FREE]:
            raise ValueError(f"{path} was trained with another config (--{', --'.join(refused)}): give the same flags")
        if [row[1:3] for row in state["drawn"]] != [row[1:3] for row in self.drawn]:   # a name may have changed
            raise ValueError(f"{path} was trained on other datasets or weights (name, weight, frames: "
                             f"{state['drawn']}, now {self.drawn}): give the same --data")
        if of_checkpoint(state) != self.by_robot:
            raise ValueError(f"{path} was trained with other statistics: the data have changed; give the same --data")
        lines = [f"--{key} is {now}, it was {was}" for key, (was, now) in changes.items()]
        changed = [row[0] for was, row in zip(state["drawn"], self.drawn) if was[3:] not in ([], row[3:])]
        if changed:
            lines.append(f"resume is not exact because the lists or numbers of {', '.join(changed)} have changed")
        if state["versions"] != self.versions():
            lines.append(f"resume is not exact because the checkpoint was made under {state['versions']}, "
                         f"this is {self.versions()}")
        kept = checkpoint.load_optimizer(path)
        if self.average is not None:
            self.average.module.load_state_dict(tensors)
            self.average.n_averaged.copy_(kept["averaged"])
            tensors = {name.removeprefix("trained."): x for name, x in kept.items() if name.startswith("trained.")}
        parts = self.model.state_dict()
        load_state(self.model, {name: share(x, parts.get(name)) for name, x in tensors.items()}, path)
        self.optimizer.load(kept)
        self.log, self.on_disk = Log(self.log_path, state["log_length"]), state["step"]
        print(*lines, f"resuming {path} at step {state['step']}", sep="\n")
        return state["step"], state["progress"]


def checkpoint_to_resume(asked, out, ranks, verified=None):
    """The newest good checkpoint of the run in `out` if this one continues it, else None; `out` is this run's from now
    on, and `ranks` take over from those that it began with. asked: by --resume. verified: a checkpoint that was found
    good just now; if it is of this run it is not hashed again. ValueError: the run is not there, or not asked for, or
    none; CheckpointError: no checkpoint is good."""
    # An agent restarts a group that refused, too: it goes on with what it began itself alone.
    mark = out / AGENT
    same_agent = ranks.agree(ranks.restarted and mark.exists() and mark.read_text() == ranks.agent)
    if asked and not (out.is_dir() or ranks.restarted):
        raise ValueError(f"--resume: no good checkpoint, {out} does not exist; leave --resume out to start there")
    own(out, ranks)
    if any(out.glob("step_*")):
        if not (asked or same_agent):
            raise ValueError(f"{out} holds checkpoints already: --resume continues that run, --out DIR starts another")
        known = verified if verified and verified.parent == out else None
        path = Path(ranks.agree(str(known or checkpoint.newest(out)) if ranks.first else None))
        state = read_json(path / checkpoint.STATE)
        if wrong := [key for key, kind in KINDS.items() if not isinstance(state.get(key), kind)]:
            raise ValueError(f"{path} is no checkpoint of a training run, it has no {', '.join(wrong)}: to start from "
                             "its weights give --from and another --out")
        began = state["versions"].get("dealt", state["versions"].get("ranks"))
        check(f"{path}: the number of ranks", began, int, {"at_least": 1, "at_most": 10**5})
        ranks.take_over(began)
        return path
    if asked:
        print(f"{out} holds no checkpoint: starting at step 0")
    return None


def restore_bad_samples(mixtures, counts, ranks):
    """Each Mixture of this rank counts on from what the run had counted for it -> these numbers. counts: by rank; of a
    run that was dealt to another number of ranks each takes the mean, because that is held against its own samples."""
    mean = round(sum(counts) / max(len(counts), 1))
    for n, mixture in zip(ranks.draws_for, mixtures):
        mixture.bad_samples = counts[n] if len(counts) == ranks.dealt else mean
    return [mixture.bad_samples for mixture in mixtures]
