"""What a run writes and shows: log.jsonl, timing.jsonl, the bar, curves.png, foresight_<step>.png, report.json."""

import json
import math
import sys
import time
from itertools import product

import torch
from tqdm import tqdm

from config import VIEWS
from data import collate_with_noise
from support import pictures
from support.files import must, save_json
from support.progress import bar
from support.training import memory

SKIPS = 3   # so many steps in a row that are not finite stop a run


class Journal:
    """The record of one run. checkpointer: begun, of the run; first: its next step; skipped: steps in a row, up to now,
    whose loss or gradient was not finite; validate: () -> (held-out dict, Foresight or None)."""

    def __init__(self, checkpointer, first, skipped, validate):
        self.out, self.ranks, self.config = checkpointer.out, checkpointer.ranks, checkpointer.config
        self.log, self.timing, self.validate = checkpointer.log, checkpointer.timing, validate
        self.skipped, self.held_out, self.complained = skipped, None, False
        self.bar = bar(self.config.train.steps, first, silent=not (self.ranks.first and sys.stdout.isatty()))
        self.clock, self.since = time.time(), first

    def record(self, done, finite, loss, act, gen, lr, norm, counts, bad_samples):
        """After step `done`: a line of log.jsonl, if due, of pure functions of the run. bad_samples: of all ranks."""
        train, lambda_gen = self.config.train, self.config.model.lambda_gen
        self.bar.update()
        self.skipped = 0 if finite else self.skipped + 1
        n = {"n_act": counts[0], "n_gen": counts[1]}
        if not finite:
            self.log.append({"step": done, "skipped": True, "lr": lr, **n})
            tqdm.write(f"step {done}: loss or gradient is not finite, the step is skipped")
        elif done % train.log_every == 0 or done == train.steps:
            bad = {"bad_samples": int(bad_samples)} if bad_samples else {}
            self.log.append({"step": done, "loss": loss, "loss_act": act, "loss_gen": gen, "lr": lr,
                             "grad_norm": float(norm), **n, **bad})
            seconds = (time.time() - self.clock) / (done - self.since)
            self.timing.append({"step": done, "seconds": seconds, "peak_gb": round(memory.peak(self.ranks.device), 3)})
            self.clock, self.since = time.time(), done
            line = f"loss {loss:.4f} = act {act:.4f} + {lambda_gen} gen {gen:.4f}"
            self.bar.set_description_str(line)
            if self.bar.disable and done % (10 * train.log_every) == 0:
                print(f"step {done}/{train.steps} | {line} | lr {lr:.1e} | {seconds * 1e3:.0f} ms", flush=True)

    def evaluate(self, done):
        """Held-out losses, where anything is held out, into log.jsonl; the two pictures. All ranks call it."""
        self.held_out, foresight = self.validate()
        if self.held_out:
            self.log.append({"step": done, "held_out": self.held_out})
            found = "  ".join(f"{name} {value:.3f}" for name, value in self.held_out.items())
            tqdm.write(f"step {done}/{self.config.train.steps} held out: {found}")
        if self.ranks.first:
            self._draw(done, foresight)
        self.clock, self.since = time.time(), done

    def _draw(self, done, foresight):
        try:
            rows = [json.loads(line) for line in (self.out / "log.jsonl").read_text().splitlines()]
            pictures.curves(rows, self.out / "curves.png")
            if foresight is not None:
                m, columns = self.config.data.m, [column.permute(0, 2, 3, 1).numpy() for column in foresight[:4]]
                captions = (f"t - {m}", "t", f"imagined t + {m}", f"true t + {m}")
                grid = [(view.replace("_", " "), [(caption, column[v]) for caption, column in zip(captions, columns)])
                        for v, view in enumerate(VIEWS) if foresight.view_mask[v]]
                pictures.foresight(grid, self.out / f"foresight_{done:08d}.png")
        except (OSError, ValueError) as error:
            if not self.complained:
                print(f"train.py: no picture at step {done}: {error}; training goes on", file=sys.stderr, flush=True)
            self.complained = True

    def report(self, checkpointer, evaluate, began):
        """Write report.json: the last thing that a run does. All ranks call it. evaluate: () -> what it says beyond the
        last held-out dict; began: time.time() when the run did."""
        self.bar.close()
        if self.held_out is None:   # a run that was killed after its last checkpoint
            self.held_out = self.validate()[0]
        evaluated, config = evaluate(), self.config
        if not self.ranks.first:
            return
        seconds, path = round(time.time() - began, 1), self.out / "report.json"
        found = {"config": config.name, "steps": config.train.steps, "seed": config.train.seed,
                 "held_out": self.held_out or None, "seconds": seconds}
        save_json(path, found | evaluated)
        print(f"{seconds:.0f} s in all; report in {path}")
        must(not checkpointer.problem, f"the last step is not on disk: {checkpointer.problem}")


@torch.no_grad()
def nonfinite_samples(model, mixtures, done, ranks):
    """Which samples of the last SKIPS steps give a loss that is not finite on their own -> a text for people. All ranks
    call it. mixtures: this rank's; done: steps."""
    found, train = [], mixtures[0].config.train
    size = train.accumulate * train.batch_size
    for mixture, n in product(mixtures, range((done - SKIPS) * size, done * size)):
        batch, eps, tau, faults = collate_with_noise([mixture[n]])
        losses = model(batch.to(ranks.device), eps.to(ranks.device), tau.to(ranks.device))
        if not math.isfinite(losses.act_sum + losses.gen_sum):
            i, e, t = mixture.pick(n, len(faults))   # what stood in for bad ones
            source = mixture.sources[i]
            found.append(f"{source.name} episode {source.indices[e]} frame {t}")
    found = sum(ranks.gather(found), [])
    if not found:
        return "each of its samples alone has a finite loss: the gradient is not"
    return f"not finite: {'; '.join(found[:8])}" + f" and {len(found) - 8} more" * (len(found) > 8)
