"""What --data names, and what of it this rank opens: "each worker materializes only a subset of datasets" (Sec. 3.4).

`Corpus.read` takes the metadata of all datasets, which is enough to deal them (lpt.deal). `open` then opens those that
this rank was dealt. Episodes, windows and statistics of the others never exist in its memory."""

import os
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from support.data.episodes import chosen, spans
from support.data.file_hashes import contents_digest
from support.data.mixture import read_mixture
from support.data.robots import find_robot
from support.data.source import glance, is_lerobot, open_source, recording
from support.data.statistics import Alone, gathered
from support.files import must

PREFLIGHT = 16   # episodes


@dataclass(frozen=True)
class Listed:
    """One dataset as --data names it, not opened."""

    path: Path
    name: str           # for messages
    weight: float       # as it is given
    kind: str           # robot, sim, real or human
    given: object       # the Robot that --data or --robot gives it, or None
    robot: str          # the name under which its statistics are taken
    frames: int         # of all its episodes, from metadata alone
    has_action: bool
    same: str           # what is the same for one dataset and its copies, by whatever path they are listed
    lists: str          # a digest of what it says of itself, which a resumed run compares
    timestamps: str     # how those of its rows are taken: check or index
    only: str = ""      # the episodes that are used, as support.data.episodes reads it
    hold_out: str = ""  # those of them that are held out, where a mixture says so of this dataset

    @classmethod
    def of(cls, folder, row):
        """A row of support.data.mixture. ValueError: no such dataset, or its metadata cannot be read."""
        path = folder / row["path"]
        name, robot, frames, has_action = glance(path, row["robot"])
        has_action = has_action and row.get("kind") != "human"   # Sec. 4.4: labels of human video are not used
        name = os.fsencode(row.get("name") or name).decode(errors="replace")   # a folder may be called anything
        lists = contents_digest(path)
        return cls(path, name, float(row.get("weight") or 1),
                   row.get("kind") or ("robot" if has_action else "human"), row["robot"], robot, frames, has_action,
                   lists, lists, row["timestamps"],
                   row.get("only_episodes") or "", row.get("hold_out") or "")

    def open(self):
        """-> Source."""
        source = open_source(self.path, self.given)
        source.name, source.has_action, source.timestamps = self.name, self.has_action, self.timestamps
        return source

    def used(self, source):
        """The positions of its episodes that are used."""
        found = chosen(self.only, source.indices, range(len(source.lengths)), "--only_episodes", source.name)
        must(found, f"--only_episodes {self.only}: no episode of dataset {source.name} is used; name some")
        return found


@dataclass
class Corpus:
    """Training datasets, numbered as they are listed, and held-out data."""

    listed: list
    root: Path = None       # the folder that --data names; statistics are kept there
    validation: Listed = None   # held out whole; None: episodes `hold_out` of a listed one are
    hold_out: str = "-1"        # or none
    used: dict = field(default_factory=dict)        # {dataset: positions of the episodes that are trained on}
    sources: dict = field(default_factory=dict)     # {dataset: Source} of those that this rank has opened
    windows: dict = field(default_factory=dict)     # {dataset: (n, 2) int64 rows (episode, t)}
    counted: list = field(default_factory=list)     # those of them that no lower rank has opened too
    held_out: object = None                         # None on ranks that do not evaluate, as its windows
    held_out_windows: np.ndarray = None

    def __post_init__(self):
        """What every rank knows, whatever it opens."""
        total = sum(row.weight for row in self.listed)   # weights sum to 1
        self.frames, self.weights = [row.frames for row in self.listed], [row.weight / total for row in self.listed]
        self.lerobot = any(is_lerobot(row.path) for row in (*self.listed, self.validation) if row)
        self.robots = list(dict.fromkeys(row.robot for row in self.listed if row.has_action))   # those that act
        self.holds_out = bool(self.validation) or self.hold_out != "none"
        # Held out are, or would be, episodes of validation, of what says so, else of the first that acts.
        rows = [self.validation] if self.validation else [row for row in self.listed if row.hold_out] or self.listed
        self.held = next((row for row in rows if row.has_action), rows[0] if rows else None)
        self.held_out_robot = self.held and self.held.robot

    @classmethod
    def read(cls, path, robot=None, hold_out="-1", only_episodes="", timestamps="check"):
        """A folder with mixture.json, such a file itself, or one dataset. robot, hold_out, only_episodes: as the flags
        say, of one dataset; timestamps: of all. ValueError: one line."""
        path = Path(path)
        must(os.path.isdir(path) or os.path.isfile(path) and path.suffix != ".npz",
             f"--data {str(path)[:200]}: no folder or mixture file is there")
        listing = path / "mixture.json" if path.is_dir() else path
        robot = find_robot(robot) if robot else None
        rows, validation = read_mixture(listing, robot) if listing.exists() else ([{"path": ".", "robot": robot}], None)
        listed = [Listed.of(listing.parent, row | {"timestamps": timestamps}) for row in [*rows, validation] if row]
        often = Counter(row.frames for row in listed)   # copies have as many
        listed = [replace(row, same=recording(row.path, row.given)) if often[row.frames] > 1 else row for row in listed]
        validation = listed.pop() if validation else None
        if only_episodes:
            if len({row.same for row in listed}) > 1 or any(row.only for row in listed):
                raise ValueError("--only_episodes counts in one dataset: name them for each dataset in the mixture")
            listed = [replace(row, only=only_episodes) for row in listed]
        if any(row.same == validation.same for row in listed if validation):
            raise ValueError(f"{validation.name} is trained on and held out, by this or another path: hold out "
                             "other data, or no dataset")
        own, hold_out = [row for row in listed if row.hold_out], str(hold_out)
        if own and (validation or len({(row.same, row.hold_out) for row in own}) > 1):
            raise ValueError(f"the mixture names {len(own)} hold_out{' and a validation' * bool(validation)}: what is "
                             "held out is of one dataset, and the same wherever that is listed; leave one")
        if own and hold_out not in ("-1", own[0].hold_out):
            raise ValueError(f"--hold_out {hold_out}: the mixture holds out {own[0].hold_out} of {own[0].name}")
        return cls(listed, listing.parent, validation, own[0].hold_out if own else hold_out)

    def open(self, windows, dealt=None, counted=None, evaluates=True):
        """Open the datasets numbered `dealt` -> self. windows(source, episodes=None): its tuples, as data.windows.
        counted: those that no lower rank opens; None: all. evaluates: open what is held out, too."""
        dealt = range(len(self.listed)) if dealt is None else dealt
        self.counted = sorted(dealt if counted is None else counted)
        for i in sorted(dealt):
            self.sources[i] = self.listed[i].open()
            self.used[i] = self._trained_on(self.listed[i], self.sources[i])
            self.windows[i] = windows(self.sources[i], episodes=self.used[i])
        if not (evaluates and self.holds_out):
            return self
        opened = [source for i, source in self.sources.items() if self.listed[i] is self.held]
        self.held_out = opened[0] if opened else self.held.open()
        self.held_out_windows = windows(self.held_out, episodes=self._held_out(self.held_out))
        if not len(self.held_out_windows):
            choose = "" if self.validation else ", --hold_out another episode"
            raise ValueError(f"dataset {self.held_out.name}: what is held out has no window, it is shorter than m "
                             f"needs: --full_windows false{choose}, or a smaller --m")
        if self.robots and not (self.held_out.has_action and self.held_out.robot in self.robots):
            what = f"of robot '{self.held_out.robot}'" if self.held_out.has_action else "human video, without actions"
            raise ValueError(f"dataset {self.held_out.name}: what is held out is {what}, trained is "
                             f"{', '.join(sorted(self.robots))}: hold out data of such a robot")
        return self

    def _trained_on(self, row, source):
        """A dataset -> positions of its episodes that are trained on. It may be `held`, by another path."""
        used = row.used(source)
        kept = sorted(set(used).difference(self._held_out(source) if row.same == self.held.same else ()))
        must(kept or len(used) > 1, f"--data {self.root}: one episode cannot be both trained on and held out; record a "
             "second one, or train on it with --hold_out none")
        must(kept, f"dataset {source.name}: no episode is left to train on")
        return kept

    def _held_out(self, source):
        """The source of `held` -> positions of its episodes that are held out."""
        used = self.held.used(source)
        return used if self.validation else chosen(self.hold_out, source.indices, used, "--hold_out", source.name)

    def extent(self, ranks=Alone()):
        """Of every dataset, opened here or elsewhere: (windows, frames of its longest episode). All ranks call it."""
        longest = {i: int(max(self.sources[i].lengths[e] for e in self.used[i])) for i in self.counted}
        return list(gathered(ranks, {i: (len(self.windows[i]), n) for i, n in longest.items()}).values())

    def notes(self):
        """Lines for the start of a run: choices of episodes that this rank has opened, by their own numbers."""
        for i in self.counted:
            if self.listed[i].only:
                source, used = self.sources[i], self.used[i]
                yield (f"dataset {self.listed[i].name}: {len(used)} of {len(source.lengths)} episodes are trained on: "
                       f"{spans(source.indices[e] for e in used)}")
        paths = {}   # of each dataset the first one that is listed
        for row in self.listed:
            first = paths.setdefault(row.same, row.path)
            if first.resolve() != row.path.resolve():
                yield f"{first} and {row.path} are one dataset: what is held out of it is trained on in neither"
        if not self.holds_out:
            yield "nothing is held out: all episodes that are used are trained on"
        elif self.held_out and self.hold_out != "-1":
            numbers = {self.held_out.indices[e] for e in self.held_out_windows[:, 0]}
            yield f"held out of dataset {self.held_out.name}: episodes {spans(numbers)}"

    def preflight(self, m):
        """Read what statistics() does not: numbers of held-out episodes, and of PREFLIGHT episodes instructions and the
        last pictures, where a torn video is seen. Yields (line that says what is wrong, whether it is held out)."""
        texts = []
        pairs = [(self.sources[i], self.windows[i], False) for i in self.counted]
        pairs += [(self.held_out, self.held_out_windows, True)] if self.held_out else []
        for source, rows, held_out in pairs:
            last = np.flatnonzero(np.diff(rows[:, 0], append=-1))                  # the last window of each episode
            some = np.linspace(0, len(last) - 1, min(len(last), max(1, PREFLIGHT // len(pairs)))).astype(int)
            places = rows[last[some]].tolist()
            reads = [(source.numbers, e) for e in rows[last, 0].tolist()] if held_out else []
            reads += [(source.task, e, t) for e, t in places]
            reads += [(source.frame, view, e, min(t + m, int(source.lengths[e]) - 1))
                      for e, t in places for view in source.views_of(e)]
            for read, *where in reads:
                try:
                    found = read(*where)
                    texts += [found] if read == source.task else []
                except ValueError as error:
                    yield str(error), held_out
        if texts and not any(text.strip() for text in texts):
            print('every instruction that was looked at is empty, so the policy will obey none; a --robot file names '
                  'their column, if there is one, as "instruction"', file=sys.stderr)
