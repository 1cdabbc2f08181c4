"""What is in a LeRobot dataset, and all that is wrong with it, so that it is repaired in one go: `--inspect`."""

from contextlib import suppress

import numpy as np

from config import VIEWS
from support.data.kept_statistics import Moments, moments_of
from support.progress import each


def refuse(lines, line, shown=20):
    """Print the first `shown` of what is wrong, if anything is, and end with `line`."""
    if lines:
        print("\n".join(lines[:shown] + ([f"... and {len(lines) - shown} more"] if len(lines) > shown else [])))
        raise ValueError(f"{line} ({len(lines)} {'fault' if len(lines) == 1 else 'faults'})")


def faults(source):
    """Every file, every row and the last picture of every video -> lines that say what is wrong, and the episodes whose
    numbers can be read."""
    lines, readable, looked_at = dict.fromkeys(filter(None, source.missing.values())), [], {}

    def tried(read, *where):
        try:
            read(*where)
            return True
        except ValueError as error:
            lines[str(error)] = None   # once: episodes share what is wrong with their film
    for e in each(range(len(source.lengths) - 1, -1, -1), "episode"):   # the last one of a file is where it is torn
        whole = source.files[e] not in source.missing and tried(source.numbers, e)
        if whole:
            readable.append(e)
            tried(source.task, e, source.lengths[e] - 1)
        for view in source.views_of(e):
            film = view in source.videos and not source.cache
            path = source.videos[view][0][e] if film else (source.files[e], view)
            if path in source.missing or not (film or whole):
                continue
            if path not in looked_at:
                looked_at[path] = tried(source.frame, view, e, source.lengths[e] - 1)
            elif film and looked_at[path]:
                tried(source.place, view, e)
    return [*lines], readable[::-1]


def inspect(source, episodes):
    """Lines that say what the reader makes of a dataset; ranges of its dimensions are over `episodes`."""
    yield (f"{source.root}: LeRobot {source.version}, robot '{source.robot}', {source.fps:g} frames/s, "
           f"{len(source.lengths)} episodes of {min(source.lengths)} to {max(source.lengths)} frames, "
           f"{sum(source.lengths):,} in all")
    yield f"m = 15 frames = {15 / source.fps:.2f} s, a chunk of 50 = {50 / source.fps:.2f} s"
    for slot in VIEWS:
        height, width = source.size(slot) if slot in source.views else (0, 0)
        yield f"{slot:<12} " + (f"{source.views[slot]} ({width} x {height})" if width else "missing: masked")
    if others := [f"{key} ({source.not_colour[key]})" if key in source.not_colour else key
                  for key in source.cameras if key not in source.views.values()]:
        yield f"cameras not read: {', '.join(others)}"
    if longer := {source.videos[view][0][e] for (view, e), (*_, counted) in source.placed.items() if not counted}:
        yield f"films with more pictures than rows, taken at the rows' times: {len(longer)}, such as {min(longer)}"
    if not source.has_action:
        yield "no actions: human video, trains L_gen alone"
    yield from source.notes
    state, action, tasks = Moments(), Moments(), {}   # episode by episode: a dataset may be larger than memory
    for e in episodes:
        for sums, values in zip((state, action), source.numbers(e)):
            if values is not None and values.size:
                sums.merge(moments_of(values.astype(np.float64)))
        with suppress(ValueError):   # `faults` has said it
            tasks |= {source.task(e, t): None for t in (0, source.lengths[e] - 1)}
    told = [task for task in tasks if task.strip()]
    column = source.instruction or ("task_index" if source.by_row(0) else "")
    read = f"column '{column}' of its row" if column else "meta/'s list of episodes"
    yield (f"instruction  {read}: {len(told)} different"
           + (f", such as {told[0]!r:.80}" if told else "") + ("; some are empty" if len(told) < len(tasks) else ""))
    texts = [key for key, feature in source.info["features"].items() if feature["dtype"] == "string"]
    if set(texts) - {source.instruction}:
        yield f"text that \"instruction\" in a --robot file may name: {', '.join(texts)}"
    for kind, keys, names, sums in (("state", source.state_keys, source.state_names, state),
                                    ("action", source.action_keys, source.action_names, action)):
        yield f"{kind:<12} {' + '.join(keys) or 'none'}, {len(names)} dimensions" + \
            (": more than the model's 32, choose some in a --robot file" if len(names) > 32 else "")
        for d, name in enumerate(names if sums.n else ()):
            mode = f"  {source.kinds[d]}{'?' * source.guessed}" if kind == "action" else ""
            if kind == "action" and source.relative:
                mode += f"  relative to state {d}" if source.relative[d] else "  absolute"
            constant = "  constant" if sums.std()[d] < 1e-3 else ""
            yield f"{kind} {d:>2}  {name:<32}{sums.low[d]:+9.3f} .. {sums.high[d]:+9.3f}{mode}{constant}"
    if source.has_action and not source.relative:
        yield "no delta mask: --action_mode delta needs \"delta\" in a --robot file; absolute actions do not"
