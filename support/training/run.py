"""What keeps a training run from being lost, around the loop in train.py.

    Interruption   SIGTERM and SIGINT become a flag that the loop reads once a step
    Log            log.jsonl, which survives a full disk and is cut back on resume
    Keeper         saves and restores everything a run consists of, whatever the optimizer and the number of ranks
    impossible     combinations of flags and data that cannot work, refused before the model is built
    culprits       which samples make a loss that is not finite

A full disk or an unwritable directory is a message, not an end: training goes on, the older checkpoint stands and
the next save tries again.
"""

import json
import math
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from worlds import conveyor
from config import PAPER_BATCH, from_dict, to_dict
from data import collate_with_noise
from support import checkpoint
from support.training import memory
from support.checkpoint import CheckpointError
from support.training.ranks import load_state
from support.data.statistics import Alone, in_checkpoint, of_checkpoint
from support.weights.loading import empty_model

FREE = ("threads", "loaders", "checkpoint_layers", "save_every", "on_bad_sample")   # a resumed run may change these
KEEP = 2                                                           # checkpoints that stand
AGENT = "agent"   # file of a run: the process id of the agent that began it, until the run stops itself


class Interruption:
    """Context in which the first SIGTERM or SIGINT sets `signal` (0 until then) and a second one ends the process."""

    signal = 0

    def __enter__(self):
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        if self.signal:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number


def deaf(_):
    """A loader process leaves signals to the process it serves, which still wants its batches."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def finite(x):
    """JSON values with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(x, dict):
        return {key: finite(value) for key, value in x.items()}
    return None if isinstance(x, float) and not math.isfinite(x) else x


class Log:
    """One JSON object a line. What a full disk refuses is kept and written with the next line.

    path None: nothing is written (ranks other than the first). length: the bytes of it that stand.
    """

    def __init__(self, path, length=0):
        self.path, self.length, self.waiting = path, length, b""
        if path is not None:
            checkpoint.truncate_log(path, length)

    @classmethod
    def longer(cls, path):
        """A log that goes on where the file ends."""
        return cls(path, path.stat().st_size if path is not None and path.exists() else 0)

    def append(self, row):
        self.waiting += (json.dumps(finite(row), allow_nan=False) + "\n").encode()
        self.flush()

    def flush(self, sync=False):
        """Write what waits -> whether all of it is on disk."""
        if self.path is None:
            self.waiting = b""
            return True
        try:
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


class Keeper:
    """Saves and restores a run. by_robot: {robot: Statistics}, the robot of the held-out episode first; average: the
    AveragedModel of --ema or None; drawn: [name, weight, frames] of every dataset. log, timing: its two files."""

    def __init__(self, out, ranks, config, by_robot, model, optimizer, average=None, drawn=()):
        self.out, self.ranks, self.config, self.by_robot = Path(out), ranks, config, by_robot
        self.model, self.optimizer, self.average, self.drawn = model, optimizer, average, [list(row) for row in drawn]
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--out {out} cannot be made: {error.strerror}; give a folder that can be written") from error
        self.log_path, timing = (self.out / name if ranks.first else None for name in ("log.jsonl", "timing.jsonl"))
        self.log, self.timing = None, Log.longer(timing)

    def versions(self):
        """What an exact resume depends on."""
        return {"torch": torch.__version__, "numpy": np.__version__, "threads": torch.get_num_threads(),
                "ranks": self.ranks.world, "device": self.ranks.device.type} | \
            ({"sharded": True} if any(isinstance(p, DTensor) for p in self.model.parameters()) else {})

    def tensors(self):
        """(model, optimizer) as dicts of full tensors. With --ema the model is the average, which is what inference
        should read, and the weights in training stand among the optimizer's."""
        self.optimizer.finish()
        own, kept = self.ranks.state_dict(self.model), self.optimizer.tensors(keep=self.ranks.first)
        if self.average is None:
            return own, kept
        kept |= {f"trained.{name}": x for name, x in own.items()} | {"averaged": self.average.n_averaged}
        return self.average.module.state_dict(), kept

    def save(self, step, **progress):
        """Write checkpoint `step` -> "" or, on every rank, the one line that says why it could not be.

        progress: what else the loop counts, JSON values; `begin` gives it back.
        """
        model, optimizer = self.tensors()
        problem = ""
        if self.ranks.first:
            state = {"step": step, "config": to_dict(self.config), **in_checkpoint(self.by_robot),
                     "versions": self.versions(), "progress": progress, "drawn": self.drawn}
            try:
                if not self.log.flush(sync=True):
                    raise CheckpointError(f"step {step} was not saved: {self.log.path} cannot be written; older "
                                          "checkpoints are intact; free space there")
                checkpoint.save(self.out, step, model, optimizer, state | {"log_length": self.log.length}, KEEP)
            except CheckpointError as error:
                problem = f"{error}; training goes on and the next save tries again"
                print(f"train.py: {problem}", file=sys.stderr, flush=True)
        return self.ranks.agree(problem)

    def final(self):
        """The model that was trained, whole and ready for inference on this rank's device. All ranks call it; sharded,
        the first alone gets it."""
        self.optimizer.finish()
        if self.average is not None:
            return self.average.module
        if not any(isinstance(p, DTensor) for p in self.model.parameters()):
            return self.model
        tensors = self.ranks.state_dict(self.model)
        if not self.ranks.first:
            return None
        model = empty_model(self.config.model, self.ranks.device,
                            torch.float32 if self.config.train.optimizer == "fp32" else torch.bfloat16)
        load_state(model, tensors)
        return model

    def disk_need(self):
        """One line on the disk that this run needs. ValueError: not even one checkpoint fits."""
        size = memory.predict(self.config, memory.NO_ACTIVATIONS).disk
        stands = sum(path.stat().st_size for path in self.out.glob("step_*/*"))   # on --resume
        peak = max((KEEP + 1) * size - stands, 0)   # a new one is written before an old one goes
        free = shutil.disk_usage(self.out).free
        line = f"disk: a checkpoint takes {size / 1e9:.3f} GB, {KEEP} are kept, {peak / 1e9:.3f} GB more at the peak; " \
               f"{free / 1e9:.3f} GB are free in {self.out}"
        if size > free:
            raise ValueError(f"{line}: not even one fits; free space, or give --out DIR on another disk")
        return line + ("" if peak <= free else ": too little for the peak, a later save will fail until space is made")

    def begin(self, newest=None):
        """Start at step 0 or from a checkpoint that goes_on() found -> (step, progress, lines to print)."""
        if newest:
            return self._resume(newest)
        lines = []
        if self.log_path is not None and self.log_path.exists() and self.log_path.stat().st_size:
            old = self.log_path.replace(self.log_path.with_name("log.jsonl.old"))
            lines = [f"{self.out} holds a log and no checkpoint: it is kept as {old}"]
        if self.ranks.first and self.ranks.agent:
            (self.out / AGENT).write_text(self.ranks.agent)
        self.log = Log(self.log_path)
        return 0, {}, lines

    def _resume(self, path):
        """ValueError: it is another run's."""
        tensors, state = checkpoint.load(path)
        stored, lines = to_dict(from_dict(state["config"])), []
        changed = [key for title in ("model", "data", "train") for key, value in stored[title].items()
                   if value != to_dict(self.config)[title][key] and key not in FREE]
        if changed:
            raise ValueError(f"{path} was trained with another config (--{', --'.join(changed)}): give the same flags")
        if state.get("drawn", self.drawn) != self.drawn:
            raise ValueError(f"{path} was trained on other datasets or weights (name, weight, frames: {state['drawn']}, "
                             f"now {self.drawn}): give the same --data")
        lines += [f"--{key} is {new}, it was {stored[title][key]}" for title in ("data", "train")
                  for key, new in to_dict(self.config)[title].items() if key in FREE and new != stored[title][key]]
        if of_checkpoint(state) != self.by_robot:
            raise ValueError(f"{path} was trained with other statistics: the data have changed; give the same --data")
        if state["versions"] != self.versions():
            lines.append(f"resume is not exact because the checkpoint was made under {state['versions']}, "
                         f"this is {self.versions()}")
        kept = checkpoint.load_optimizer(path)
        if self.average is not None:
            self.average.module.load_state_dict(tensors)
            self.average.n_averaged.copy_(kept["averaged"])
            tensors = {name.removeprefix("trained."): x for name, x in kept.items() if name.startswith("trained.")}
        load_state(self.model, tensors)
        self.optimizer.load(kept)
        self.log = Log(self.log_path, state["log_length"])
        return state["step"], state.get("progress", {}), lines + [f"resuming {path} at step {state['step']}"]


def begun_here(out, ranks):
    """Whether the run in `out` was begun by the agent that has restarted these ranks. Without torchrun never.

    An agent restarts a group that refused, too: to overwrite a run that was there before, or to go on over NaN.
    """
    mark = out / AGENT
    return ranks.agree(ranks.restarted and mark.exists() and mark.read_text() == ranks.agent)


def goes_on(asked, out, ranks, verified=None):
    """The newest good checkpoint of the run in `out` if this one continues it, else None. asked: by --resume.

    verified: a checkpoint that was found good just now; if it is of this run it is not hashed again. A run that was
    stopped before its first checkpoint starts anew, and says so. ValueError: it is not there, or not asked for;
    CheckpointError: none is good.
    """
    asked_or_restarted = asked or begun_here(out, ranks)
    if any(out.glob("step_*")):
        if not asked_or_restarted:
            raise ValueError(f"{out} holds checkpoints already: --resume continues that run, --out DIR starts another")
        known = verified if verified and verified.parent == out else None
        return Path(ranks.agree(str(known or checkpoint.newest(out)) if ranks.first else None))
    if asked and not (out.is_dir() or ranks.restarted):
        raise ValueError(f"--resume: no good checkpoint, {out} does not exist; leave --resume out to start there")
    if asked:
        print(f"{out} holds no checkpoint: starting at step 0")
    return None


def own_count(counts, ranks):
    """What this rank had counted. counts: by rank, or a number; of a run of other ranks the first takes all."""
    counts = counts if isinstance(counts, list) else [counts]
    return counts[ranks.rank] if len(counts) == ranks.world else sum(counts) * ranks.first


def effective_batch(train, world):
    """One line: micro-batch x accumulation x ranks, beside the paper's (Table 2)."""
    batch = train.batch_size * train.accumulate * world
    line = f"batch: {train.batch_size} x {train.accumulate} accumulated x {world} ranks = {batch}"
    paper = PAPER_BATCH.get(train.stage)
    if paper is None:
        return line
    if batch == paper:
        return f"{line}, the paper's ({train.stage}, Table 2)"
    wanted = paper / (train.batch_size * world)
    hint = f": --accumulate {wanted:.0f} gives it" if wanted >= 1 and wanted == int(wanted) else ""
    return f"{line}; the paper's is {paper} ({train.stage}, Table 2){hint}"


def impossible(config, corpus, ranks=Alone()):
    """ValueError, one line, for flags that cannot work with these data. All ranks call it."""
    windows, lengths = zip(*corpus.extent(ranks))
    longest = max(lengths)
    for source in (*corpus.sources.values(), corpus.held_out):
        if source is not None and source.cache:
            source.cache.require({config.model.view_size, config.model.frame_size})
    world = all(row.robot == "conveyor" for row in corpus.listed)   # a smoke test of the a1 presets, by design
    if corpus.held_out_robot == "conveyor" and config.model.chunk < conveyor.CHUNK:
        raise ValueError(f"--chunk {config.model.chunk} is too short: in the embedded world {conveyor.CHUNK} actions "
                         "decide a scene")
    if config.model.chunk > longest and not (world and config.name != "conveyor"):
        raise ValueError(f"--chunk {config.model.chunk} is longer than every episode: the longest has {longest} frames")
    for flag, value in (("batch_size", config.train.batch_size), ("lpt_workers", config.data.lpt_workers)):
        if min(windows) > 0 and value > sum(windows):   # a dataset without windows has a message of its own
            raise ValueError(f"--{flag} {value} is more than the data have samples: {sum(windows)} windows")


@torch.no_grad()
def culprits(model, mixture, numbers, ranks):
    """Which of these samples give a loss that is not finite on their own -> a text for people. All ranks call it."""
    found = []
    for n in numbers:
        batch, eps, tau, faults = collate_with_noise([mixture[n]])
        losses = model(batch.to(ranks.device), eps.to(ranks.device), tau.to(ranks.device))
        if not bool(torch.isfinite(losses.act_sum + losses.gen_sum)):
            i, e, t = mixture.draw(n, len(faults)) if faults else mixture.draw(n)   # what stood in for bad ones
            source = mixture.sources[i]
            found.append(f"{source.name} episode {source.indices[e]} frame {t}")
    found = [name for names in ranks.gather(found) for name in names]
    if not found:
        return "each of its samples alone has a finite loss: the gradient is not"
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    return f"not finite: {'; '.join(found[:8])}{more}"
