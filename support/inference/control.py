"""One robot, frame by frame, as docs/realtime.md promises: history, queue, latents kept for coming plans."""

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, partial

import numpy as np
import torch

from config import VIEWS
from support.data.letterbox import letterbox
from support.data.picture import check_size
from support.files import must
from support.inference.handover import Rest, guide_of

ENDING = 600   # seconds that the end of an episode waits for a plan under way
RECENT = 8     # plans, of which the slowest says how long the next will take


def places_of(cameras, caller, trained=()):
    """Cameras' names -> their places among the model's views. trained: those of the checkpoint, where they are known.
    ValueError, one line: `caller` was given others, or none."""
    known = trained or VIEWS
    unknown = sorted(map(str, set(cameras) - set(known)))
    must(cameras and not unknown, f"{caller}: {f'camera {unknown[0]}' if unknown else 'no camera'} given; "
         f"{'the checkpoint was trained with' if trained else 'the model knows'} {', '.join(known)}")
    return tuple(v for v, view in enumerate(VIEWS) if view in cameras)


def check_pictures(pictures, caller, trained=()):
    """ValueError, one line, unless these are view -> (H, W, 3) uint8, of cameras as in `places_of`."""
    must(isinstance(pictures, dict), f"{caller}: pictures are a {type(pictures).__name__}; give view -> (H, W, 3)")
    places_of(pictures, caller, trained)
    for view, picture in pictures.items():
        picture = array_of(picture)
        found = picture if picture.dtype.kind == "U" and not picture.shape else f"{picture.dtype} {picture.shape}"
        must(picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3,
             f"{caller}: {view} is {found}; give uint8 (H, W, 3)")
        check_size(*picture.shape[:2], f"{caller}: {view}")


def array_of(given):
    """np.asarray; of what is none, ragged or a tensor with a gradient, text that says so: the caller refuses it."""
    try:
        return np.asarray(given)
    except (ValueError, TypeError, RuntimeError):
        return np.array(f"a {type(given).__name__} that is no array")


def checked_state(state, d, caller):
    """A state, None for a robot without one -> (d,) float32, a copy. ValueError, one line."""
    given = array_of(() if state is None else state)
    with np.errstate(over="ignore"):
        found = given.astype(np.float32) if given.dtype.kind in "biuf" else np.full(1, np.nan)
    if given.shape != (d,) or not np.isfinite(found).all():   # the line takes longer than a step may
        shown = np.array2string(given, threshold=8, max_line_width=10**6)
        raise ValueError(f"{caller}: the state is {shown} of shape {given.shape}; give {d} finite numbers in raw units")
    return found


def all_finite(actions, z=None):
    """Whether actions, an array, and latents, a tensor or None, are."""
    return np.isfinite(actions).all() and (z is None or bool(z.isfinite().all()))


class Picture:
    """A camera's picture (H, W, 3) uint8, letterboxed at most once per size."""

    def __init__(self, picture):
        self.letterboxed = cache(partial(letterbox, np.array(picture)))   # a copy: a driver may reuse its buffer


class ControlLoop:
    """One episode of `Policy.step`.

    `queue` is the chunk planned from frame `planned_at`: the action of step t is queue[t - planned_at], or the last one
    where the chunk is over (0 for a velocity or a torque). The next chunk is planned from frame `next_plan`, or later
    if the last one is still under way, and entered at its own place when it arrives. One that is not finite never is.
    """

    def __init__(self, policy, task, execute_steps, background, handover="cold"):
        self.policy, self.task, self.execute, self.m = policy, task, execute_steps, policy.config.data.m
        self.t, self.next_plan, self.planned_at, self.queue = -1, 0, 0, np.zeros((0, 0))
        self.launched, self.period = 0, execute_steps   # the last plan's frame; frames between two plans, late ones too
        self.history = deque(maxlen=self.m + 1)   # images of the frames t-m to t; the first stands for those before it
        self.latents, self.hits = {}, 0           # frame -> (views, z (1, V, 16, g, g)); frame 0 and those still needed
        self.pool = policy.pool if background else None
        self.handover, self.delays = handover, deque([int(background)], RECENT)   # frames that plans took to come
        self.pending, self.ahead = None, []       # in the background: (frame, plan), and latents being computed
        self.plans, self.starved, self.held, self.holding, self.seconds = 0, 0, 0, False, []
        self.last = None                          # the action returned last

    def step(self, images, state):
        began = time.perf_counter()
        stats = self.policy.stats   # while this is looked at nothing changes: after a refusal the next step goes on
        check_pictures(images, "step", stats.cameras())
        state = checked_state(state, len(stats.state_mean), "step")
        images = {view: Picture(picture) for view, picture in images.items()}
        self.t += 1
        self.history.append(images)
        busy = self.pending is not None and not self.pending[1].done()   # one plan is under way at a time
        if self.t >= self.next_plan and not busy:
            self._launch(state)
        elif self._wants_latents(self.t) and self.pool is None:
            self._encode_ahead(self.t, images)
        elif self._wants_latents(self.t):
            self.ahead.append(self.pool.submit(self._encode_ahead, self.t, images))
        while self.ahead and self.ahead[0].done():
            self.ahead.pop(0).result()   # which is None, unless it raises
        if self.pending is not None and self.pending[1].done():
            self._adopt()
        at = self.t - self.planned_at
        self.held += self.holding
        self.starved += at >= len(self.queue) and not self.holding
        self.last = self.queue[at] if at < len(self.queue) else stats.stopped(self.queue[-1])
        self.seconds.append(time.perf_counter() - began)
        return self.last.copy()   # the caller may change it: a row that is held, or goes into a hand-over, stays

    def _launch(self, state):
        """Plan from frame t, in the background if there is a chunk to go on with, else here."""
        if self.pending is not None:
            self._adopt()
        past, now = self.history[0], self.history[-1]
        seen = {view: [past[view], now[view]] for view in VIEWS if view in past and view in now}
        seen = seen or {view: [now[view]] * 2 for view in VIEWS if view in now}   # all cameras are new, as at the start
        left = self.queue[self.t - self.planned_at:]   # of the present chunk, perhaps nothing
        rest = Rest(left[None], min(max(self.delays), len(left)), self.handover) if self.handover != "cold" else None
        given = self.t, seen, state, self.policy.noise(1), rest
        here = self._plan(*given) if self.pool is None or not len(self.queue) else None
        # Only now: a plan that raises here is tried again at the next frame.
        self.next_plan, self.period = self.t + self.execute, max(self.execute, self.t - self.launched)
        self.launched = self.t
        if here is not None:
            self._enter(here, self.t)
        else:
            self.pending = self.t, self.pool.submit(self._plan, *given)

    def _adopt(self):
        (t, plan), self.pending = self.pending, None
        self.delays.append(self.t - t)
        if plan.exception() is not None:   # the present chunk goes on at its own place, and the next step plans
            self.next_plan = self.t
        self._enter(plan.result(), t)

    def _enter(self, actions, t):
        """Go on with actions planned from frame t, or hold the last one, now, if they are not finite."""
        self.holding = not len(actions)
        if self.holding:
            actions, t, self.next_plan = self.policy.stats.stopped(self.last)[None], self.t, self.t + 1
        self.queue, self.planned_at = actions, t

    def _plan(self, t, seen, state, eps, rest):
        """Actions (k, d_a) from frame t, none (0, d_a) if they are not finite. ValueError: nor is there one to hold."""
        policy = self.policy
        views, z_past = self.latents.get(max(t - self.m, 0), (None, None))
        hit = views == tuple(seen)
        if hit and policy.config.model.und_frames == 1:   # nobody reads the pictures of t-m: none is letterboxed
            seen = {view: [now, now] for view, (_, now) in seen.items()}
        batch = policy.batch([seen], state[None], [self.task])
        a, z, _ = policy.chunk(batch, eps, z_past if hit else None, guide=guide_of(policy, rest, state[None]))
        self.hits += hit
        self.plans += 1
        actions = policy.stats.actions(a.cpu().numpy(), state[None])
        if not all_finite(actions, z):
            self.latents.clear()   # a plan that was given bad latents must not leave them to the next
            if self.last is None:
                policy.finite(actions, z)   # which says why
            return actions[0, :0]
        if z is not None:   # frame 0 stays: it is the t-m of every plan up to frame m
            self.latents = {frame: kept for frame, kept in self.latents.items() if frame > t - self.m or frame == 0}
            self.latents[t] = tuple(seen), z
        return actions[0]

    def _wants_latents(self, t):
        """Will frame t be the t-m of a coming plan? Then its latents are computed now, off the critical path."""
        ahead = t + self.m - (self.launched + self.period)
        return ahead >= 0 and ahead % self.period == 0 and self.policy.engine is not None and \
            self.policy.config.model.gen_expert

    def _encode_ahead(self, t, images):
        engine, size = self.policy.engine, self.policy.config.model.frame_size
        views = tuple(view for view in VIEWS if view in images)
        frames = torch.stack([images[view].letterboxed(size) for view in views])[None, :, None]
        z = engine.to_latents(frames.to(self.policy.device))[:, :, 0]
        self.latents[t] = views, engine.all_views(z, [VIEWS.index(view) for view in views])

    def close(self):
        """Wait for the episode's jobs and raise what no step was told of. Those that have not begun are dropped."""
        jobs = [*(self.pending or ())[1:], *self.ahead]   # what went wrong with a plan is said first
        begun = [job for job in jobs if not job.cancel()]
        if wait(begun, ENDING).not_done:
            self.policy.pool = ThreadPoolExecutor(1, "policy")   # the old one is lost with its thread
            raise ValueError(f"the last plan has not come for {ENDING} s: this device does not answer; end the process")
        for job in begun:
            job.result()
