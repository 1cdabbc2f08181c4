"""What --data names, and what of it this rank opens: "each worker materializes only a subset of datasets" (Sec. 3.4).

`Corpus.read` takes the metadata of all datasets, which is enough to deal them (lpt.deal). `open` then opens those that
this rank was dealt. Episodes, windows and statistics of the others never exist in its memory.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from support.data.mixture import read_mixture
from support.data.robots import find_robot
from support.data.source import glance, open_source
from support.data.statistics import Alone, gathered

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

    @classmethod
    def of(cls, folder, row):
        """A row of support.data.mixture. ValueError: no such dataset, or its metadata cannot be read."""
        path = folder / row["path"]
        name, robot, frames, has_action = glance(path, row["robot"])
        has_action = has_action and row.get("kind") != "human"   # Sec. 4.4: labels of human video are not used
        return cls(path, row.get("name") or name, float(row.get("weight", 1)),
                   row.get("kind") or ("robot" if has_action else "human"), row["robot"], robot, frames, has_action)

    def open(self):
        """-> Source."""
        source = open_source(self.path, self.given)
        source.name, source.has_action = self.name, self.has_action
        return source


@dataclass
class Corpus:
    """Training datasets, numbered as they are listed, and held-out data."""

    listed: list
    root: Path = None       # the folder that --data names; statistics are kept there
    validation: Listed = None   # held out whole; None: episode `hold_out` of the first dataset with actions is
    hold_out: int = -1
    sources: dict = field(default_factory=dict)     # {dataset: Source} of those that this rank has opened
    windows: dict = field(default_factory=dict)     # {dataset: (n, 2) int64 rows (episode, t)}
    counted: list = field(default_factory=list)     # those of them that no lower rank has opened too
    held_out: object = None                         # None on ranks that do not evaluate, as its windows
    held_out_windows: np.ndarray = None

    @classmethod
    def read(cls, path, robot=None, hold_out=-1):
        """A folder with mixture.json, such a file itself, or one dataset. robot: --robot. ValueError: one line."""
        path = Path(path)
        if not path.exists():
            raise ValueError(f"--data {path}: no such folder or mixture file")
        listing = path / "mixture.json" if path.is_dir() else path
        robot = find_robot(robot) if robot else None
        rows, validation = read_mixture(listing, robot) if listing.exists() else ([{"path": ".", "robot": robot}], None)
        return cls([Listed.of(listing.parent, row) for row in rows], listing.parent,
                   validation and Listed.of(listing.parent, validation), hold_out)

    @property
    def frames(self):
        return [row.frames for row in self.listed]

    @property
    def weights(self):
        return [row.weight for row in self.listed]

    @property
    def robots(self):
        """Names of the robots that act, in the order of their first dataset."""
        return list(dict.fromkeys(row.robot for row in self.listed if row.has_action))

    @property
    def split(self):
        """Number of the dataset of which one episode is held out; None with a validation dataset."""
        return None if self.validation else next((i for i, row in enumerate(self.listed) if row.has_action), 0)

    @property
    def held_out_robot(self):
        """The robot of the held-out data, known to every rank."""
        return (self.validation or self.listed[self.split]).robot

    def open(self, windows, dealt=None, counted=None, evaluates=True):
        """Open datasets -> self. windows(source, episodes=None): its tuples, as data.windows.

        dealt: numbers of the datasets; counted: those of them that no lower rank opens; None: all. evaluates: open what
        is held out, too. ValueError: one line.
        """
        dealt = range(len(self.listed)) if dealt is None else dealt
        self.counted = sorted(dealt if counted is None else counted)
        for i in sorted(dealt):
            self.sources[i] = self.listed[i].open()
            kept = self._held_out_episode(self.sources[i])[1] if i == self.split else None
            self.windows[i] = windows(self.sources[i], episodes=kept)
        if evaluates:
            self._open_held_out(windows)
        return self

    def _held_out_episode(self, source):
        """The dataset that is split -> the episode that is held out, those that are trained on."""
        episodes = len(source.lengths)
        if episodes == 1:
            raise ValueError(f"--data {self.root}: one episode cannot be both trained on and held out; "
                             "record a second one")
        if not -episodes <= self.hold_out < episodes:
            raise ValueError(f"--hold_out {self.hold_out}: dataset {source.name} has episodes 0 to {episodes - 1}")
        out = self.hold_out % episodes
        return out, [e for e in range(episodes) if e != out]

    def _open_held_out(self, windows):
        self.held_out = self.sources.get(self.split) or (self.validation or self.listed[self.split]).open()
        episodes = None if self.validation else [self._held_out_episode(self.held_out)[0]]
        self.held_out_windows = windows(self.held_out, episodes=episodes)
        if not len(self.held_out_windows):
            choose = "" if self.validation else ", --hold_out another episode"
            raise ValueError(f"dataset {self.held_out.name}: what is held out has no window, it is shorter than m "
                             f"needs: --full_windows false{choose}, or a smaller --m")
        if self.robots and not (self.held_out.has_action and self.held_out.robot in self.robots):
            what = f"of robot '{self.held_out.robot}'" if self.held_out.has_action else "human video, without actions"
            raise ValueError(f"dataset {self.held_out.name}: what is held out is {what}, trained is "
                             f"{', '.join(sorted(self.robots))}: hold out data of such a robot")

    def extent(self, ranks=Alone()):
        """Of every dataset, opened here or elsewhere: (windows, frames of its longest episode). All ranks call it."""
        own = {i: (len(self.windows[i]), int(max(self.sources[i].lengths))) for i in self.counted}
        return list(gathered(ranks, own).values())

    def preflight(self, m):
        """Read what statistics() does not: the numbers of held-out episodes, and of PREFLIGHT episodes, at least one a
        dataset, instructions and the last pictures, where a torn video is seen. Yields (line that says what is wrong,
        whether it is held out).
        """
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
            print('every instruction that was looked at is empty, and the policy will obey none; the column that holds '
                  'them, if one does, is "instruction" in a --robot file', file=sys.stderr)
