"""A choice of episodes, by the numbers that their dataset gives them; such numbers may have gaps.

Text: numbers and ranges, as 0-19,25. -1 is the last of those that are chosen from, -2 the one before. @3 is a position,
as checkpoints of older versions count. The empty text is all, `none` is none.
"""

from bisect import bisect_left, bisect_right


def spans(numbers):
    """Numbers, for messages: 0 to 19, 25."""
    runs = []
    for n in sorted(numbers):
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    said = [f"{first} to {last}" if first < last else str(first) for first, last in runs]
    return ", ".join(said[:8] + ["..."] * (len(said) > 8)) or "none"


def chosen(text, indices, among, flag, name):
    """A choice -> positions, in the order of the dataset. indices: the numbers of its episodes by position; among: the
    positions that are chosen from. flag, name of the dataset: for the ValueError, which says what there is."""
    if text in ("", "none"):
        return [] if text else list(among)
    places = {int(indices[e]): e for e in among}
    numbers, found = sorted(places), set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not numbers:
            those = []
        elif part[0] == "@":
            those = [indices[e] for e in among if e == int(part[1:])]
        elif not first:
            those = [indices[e] for e in list(among)[-int(last):][:1] if int(last) <= len(among)]
        else:   # a range may span gaps, but it ends inside the dataset
            low, high = int(first), int(last or first)
            inside = numbers[0] <= low <= high <= numbers[-1]
            those = numbers[bisect_left(numbers, low):bisect_right(numbers, high)] if inside else []
        if not those:
            raise ValueError(f"{flag} {part}: dataset {name} has episodes {spans(numbers)}")
        found.update(places[int(n)] for n in those)
    return sorted(found)


def position(number, indices, flag, name):
    """The position of one episode. number: its own, or -1 for the last. ValueError: there is none."""
    return chosen(str(number), indices, range(len(indices)), flag, name)[0]
