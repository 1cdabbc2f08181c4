"""A choice of episodes, by the numbers that their dataset gives them; such numbers may have gaps.

Text: numbers and ranges, as 0-19,25. -1 is the last of those that are chosen from, -2 the one before. The empty
text is all, `none` is none."""

from bisect import bisect_left, bisect_right
from itertools import groupby

from support.bounds import must


def spans(numbers):
    """Numbers, for messages: 0 to 19, 25."""
    runs = [list(run) for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])]
    said = [f"{run[0][1]} to {run[-1][1]}" if len(run) > 1 else str(run[0][1]) for run in runs]
    return ", ".join(said[:12] + ["..."] * (len(said) > 12)) or "none"


def chosen(text, indices, among, flag, name):
    """A choice -> positions, in the order of the dataset. indices: the numbers of its episodes by position; among: the
    positions that are chosen from. flag, name of the dataset: for the ValueError, which says what there is."""
    if text in ("", "none"):
        return [] if text else list(among)
    places = {int(indices[e]): e for e in among}
    numbers, found = sorted(places), set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first:
            place = len(among) - int(last)
            those = [indices[e] for e in among[place:][:1] if place >= 0]
        else:   # a range may span gaps, but it ends before the dataset does
            low, high = int(first), int(last or first)
            must(low <= high, f"{flag} {part}: the range runs backwards; write {last}-{first}")
            inside = numbers and low <= high <= numbers[-1]
            those = numbers[bisect_left(numbers, low):bisect_right(numbers, high)] if inside else []
        if not those:
            raise ValueError(f"{flag} {part}: dataset {name} has episodes {spans(numbers)}")
        found.update(places[int(n)] for n in those)
    return sorted(found)
