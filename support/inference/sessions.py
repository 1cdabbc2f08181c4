"""One client's episodes: which frame stands for o_{t-m}, its own noise, and what is answered.

This model looks at o_{t-m}, and most clients send one observation a chunk. docs/serving.md has the rule."""

import copy
import io
import time
import warnings
from collections import deque

import numpy as np
from PIL import Image

from config import VIEWS
from support.data.letterbox import letterbox
from support.files import must, numbers
from support.inference import protocol
from support.inference.control import Picture
from support.inference.handover import Rest, prepare

RULES = ("present", "exact", "age")   # the first is the default
TOLERANCE = 1.0   # frames, of "age"


class Session:
    """One connection. policy: all share its model. reader: observation_keys.Reader; rule: of RULES; task: the
    instruction where none is sent. hold: frames of the client in one of the checkpoint's; what is sent and answered
    counts the client's, all else here the checkpoint's."""

    def __init__(self, policy, reader, rule=RULES[0], task=None, hold=1):
        self.policy = copy.copy(policy)   # which counts its own noise
        self.reader, self.rule, self.hold, self.task, self.prompt = reader, rule, hold, task, task
        self.m, self.k, self.fps = policy.config.data.m, policy.config.model.chunk, policy.stats.fps
        self.frames = deque(maxlen={"present": 0, "exact": 2 * self.m + 1, "age": 1}[rule])   # (at, view -> square)
        self.episode, self.clock, self.at, self.answered = 0, None, 0.0, 0.0
        self.last = None   # the episode's last chunk as it was sent, (hold k, d_a)

    write = staticmethod(protocol.write)   # an answer -> what is sent
    refuse = staticmethod(str)             # one line of what is wrong -> what is sent: text

    def answer(self, message, arrived):
        """A binary message -> the answer, a dict. arrived: seconds of time.monotonic. ValueError: one line. This is a
        generator, as what it calls is: it yields a Wanted, if a chunk is, and is sent its part of `plan_together`."""
        return (yield from self.observe(protocol.read(message), arrived))

    def observe(self, sent, arrived):
        """An observation -> the answer. ValueError: one line; what cannot be used, or planned from, changes nothing."""
        before = vars(self) | {"frames": self.frames.copy()}, self.policy.calls
        try:
            return (yield from self._observe(sent, arrived))
        except Exception:
            vars(self).update(before[0])
            self.policy.calls = before[1]
            raise

    def _observe(self, sent, arrived):
        clock, at = self._time(sent, arrived)
        now = {view: Picture(of) for view, of in self.reader.pictures(sent).items()}
        flags = {key: sent.get(key, key == "plan") for key in ("plan", "reset", "z_hat")}
        for key, given in flags.items():
            must(type(given) is bool, f"{key} is {given!r:.60}, expected true or false")
        plan, reset, imagine = flags.values()
        state, prompt = self.reader.state(sent) if plan else None, self.reader.prompt(sent)
        if prompt is None:   # after a reset never that of the episode before
            prompt = self.task if reset else self.prompt
        must(not plan or prompt is not None,
             "prompt is missing, and the server has no --task: what shall the robot do?")
        since = at - (self.answered if clock == "server" else self.at)
        new = not self.episode or reset or clock != self.clock or at < self.at or since > self.k + 0.5
        rest = self._rest(sent, None if new else self.last) if plan else None
        pair = self._pair(sent, now) if "past" in sent else None
        must(pair or clock != "server" or self.rule != "exact", "past is missing, and the history is exact: send past, "
             "the pictures of m frames ago, or with every observation frame or time (s); or start the server with "
             "--history present")
        if new:   # an episode
            self.episode, self.last = self.episode + 1, None
            self.frames.clear()
        self.clock, self.at, self.answered = clock, at, at
        rule, age, past = pair or self._past(at, now)
        if self.frames and self.frames[-1][0] == at:   # the same frame, sent again
            self.frames.pop()
        size = self.policy.config.model.frame_size   # at which alone a past frame is read; what is sent may be large
        self.frames.append((at, {view: letterbox(of, size).permute(1, 2, 0).numpy() for view, of in now.items()}))
        self.prompt, age = prompt, round(age * self.hold, 3)
        answer = {"history": rule, "history_age": age, "episode": self.episode}
        if plan:
            seen = {view: [past[view], now[view]] for view in VIEWS if view in past and view in now}
            answer |= yield from self._planned(seen, state, prompt, rest, imagine)
        self.answered = time.monotonic() * self.fps
        return answer

    def _time(self, sent, arrived):
        """(which clock an observation has, its time there in frames)"""
        given = [key for key in ("frame", "time") if key in sent]
        must(len(given) < 2, "frame and time are both given: send one of them")
        if not given:
            return "server", arrived * self.fps
        clock, number = given[0], sent[given[0]]
        must(type(number) in (int, float) and abs(number) < 1e12,
             f"{clock} is {number!r:.60}, expected a number: of frames, or of seconds as time")
        return clock, number * self.fps if clock == "time" else number / self.hold

    def _pair(self, sent, now):
        """("pair", age, pictures) of a client that sends o_{t-m} itself."""
        must(isinstance(sent["past"], dict),
             f"past is a {type(sent['past']).__name__}, expected a map with the entries of pictures")
        past = self.reader.pictures(sent["past"], "past/")
        age = float(numbers(sent.get("past_age", self.m * self.hold), "past_age", 0, "correct what is sent"))
        must(past.keys() == now.keys() and age >= 0, f"past has the cameras {', '.join(past)} and past_age {age:g}; "
             f"expected those of now, {', '.join(now)}, and an age of 0 frames or more")
        return "pair", age / self.hold, past

    def _rest(self, sent, last):
        """handover.Rest of the episode's last chunk (hold k, d_a), as the client says; None: a cold start."""
        handover, k = sent.get("handover", "cold"), self.k * self.hold
        prepare(self.policy, handover)
        executed, delay = sent.get("executed", 0 if last is None else None), sent.get("delay", 0)
        if handover == "cold":
            return None
        must({type(executed), type(delay)} == {int} and min(executed, delay) >= 0 and executed + delay <= k,
             f"handover {handover}: executed is {executed!r:.60}, delay is {delay!r:.60}; expected how many of the "
             f"last chunk's {k} actions come before this frame, and how many more before the answer")
        if last is None or executed == k:
            return None
        return Rest(last[None, executed::self.hold], -(-delay // self.hold), handover)

    def _past(self, at, now):
        """(rule, age in frames, view -> picture) for o_{t-m}; the present frame where no other is right."""
        found = min([*self.frames, (at, now)], key=lambda frame: abs(at - frame[0] - self.m))
        age = at - found[0]
        if self.rule == "age" and abs(age - self.m) > TOLERANCE or not found[1].keys() & now.keys():
            found, age = (at, now), 0
        return "present" if found[1] is now else self.rule, age, found[1]

    def _planned(self, seen, state, prompt, rest, imagine):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")   # that an instruction is cut
            wanted = self.policy.wanted(seen, state, prompt, imagine, rest)
        actions, z_hat, took = yield wanted
        self.last, foreseen = np.repeat(actions, self.hold, axis=0), {}
        for view, picture in zip(VIEWS, () if z_hat is None else self.policy.to_pictures(z_hat)):
            if view in seen:   # no arrays: openpi's broker would take a row of each
                Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file := io.BytesIO(), "PNG")
                foreseen[view] = file.getvalue()
        notice = {"notice": "; ".join(str(warning.message) for warning in said)} if said else {}
        return {"actions": self.last, "views": list(seen), "handover": rest.handover if rest else "cold",
                "policy_timing": {"infer_ms": took}, **({"z_hat": foreseen} if foreseen else {}), **notice}
