"""What is in a LeRobot dataset, and all that is wrong with it, so that it is repaired in one go: `--inspect`."""

import numpy as np

from config import VIEWS
from support.data.moments import Moments, moments_of
from support.progress import each


def refuse(lines, line, shown=20):
    """Print the first `shown` of what is wrong, if anything is, and end with `line`."""
    if lines:
        print("\n".join(lines[:shown] + ([f"... and {len(lines) - shown} more"] if len(lines) > shown else [])))
        raise ValueError(f"{line} ({len(lines)} {'fault' if len(lines) == 1 else 'faults'})")


def faults(source):
    """Every file, every row and the last picture of every video -> lines that say what is wrong, and the episodes whose
    numbers can be read."""
    missing = source.missing_files()
    lines = [f"{source.where}, episode {index}: {path} is missing" for path, index in missing.items()]
    readable, looked_at = [], set()

    def tried(read, *where):
        try:
            read(*where)
            return True
        except ValueError as error:
            lines.append(str(error))
    backwards = range(len(source.lengths) - 1, -1, -1)     # the last episode of a file is where it is torn
    for e in each(backwards, "episode"):
        if source.files[e] in missing or not tried(source.numbers, e):
            continue                                       # its pictures may lie in the same file
        readable.append(e)
        tried(source.task, e, source.lengths[e] - 1)
        for view in source.views:
            path = source.videos[view][0][e] if view in source.videos else (source.files[e], view)
            if path not in missing and path not in looked_at:
                looked_at.add(path)
                tried(source.frame, view, e, source.lengths[e] - 1)
    return lines, readable[::-1]


def inspect(source, episodes):
    """Lines that say what the reader makes of a dataset; ranges of its dimensions are over `episodes`."""
    tasks = source.info.get("total_tasks") or len(set(source.tasks))
    yield (f"{source.root}: LeRobot {source.version}, robot '{source.robot}', {source.fps:g} frames/s, "
           f"{len(source.lengths)} episodes of {min(source.lengths)} to {max(source.lengths)} frames, "
           f"{sum(source.lengths):,} in all, {tasks} different tasks")
    yield f"m = 15 frames = {15 / source.fps:.2f} s, a chunk of 50 = {50 / source.fps:.2f} s"
    for slot in VIEWS:
        height, width = source.size(slot) if slot in source.views else (0, 0)
        yield f"{slot:<12} " + (f"{source.views[slot]} ({width} x {height})" if width else "missing: masked")
    others = [key for key, feature in source.info["features"].items()
              if feature["dtype"] in ("video", "image") and key not in source.views.values()]
    if others:
        yield f"cameras not read: {', '.join(others)}"
    if not source.has_action:
        yield "no actions: human video, trains L_gen alone"
    state, action = Moments(), Moments()   # episode by episode: a dataset may be larger than memory
    for e in episodes:
        for sums, values in zip((state, action), source.numbers(e)):
            if values is not None:
                sums.merge(moments_of(values.astype(np.float64)))
    for kind, names, sums in (("state", source.state_names, state), ("action", source.action_names, action)):
        for d, name in enumerate(names if sums.n else ()):
            known = len(source.relative) == len(names)
            mode = "" if not known else "  relative" if source.relative[d] else "  absolute"
            constant = "  constant" if sums.std()[d] < 1e-3 else ""
            yield f"{kind} {d:>2}  {name:<32}{sums.low[d]:+9.3f} .. {sums.high[d]:+9.3f}{mode}{constant}"
    if source.has_action and not source.relative:
        yield "no delta mask: --action_mode delta needs a --robot file; absolute actions do not"
