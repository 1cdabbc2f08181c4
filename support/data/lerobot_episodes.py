"""The episodes and instructions that meta/ of a LeRobot dataset lists, and where their rows and pictures lie.

v2.x has one parquet and one mp4 file an episode, v3.0 many episodes in each. From `read_episodes` on both are the same:
an episode has rows of a data file from `first_rows` on, and per camera a video file and the second where it begins."""

import re
from collections import Counter
from contextlib import contextmanager
from functools import cached_property

from support.data.parquet import read_table
from support.files import damage, inside, must, read_jsonl, whole, without_nul

AGAIN = "download the dataset again"
NO_FILM = "none"    # where an episode of v3.0 names none
LONGEST = 10 ** 7   # frames of an episode: four days at 30 frames/s


def instructions(tasks, where):
    """What a list of tasks holds, text, bytes, several of these or nothing -> tuple of those that are not empty."""
    try:
        tasks = tasks if isinstance(tasks, (list, tuple)) else [tasks]
        must(all(isinstance(task, (str, bytes, type(None))) for task in tasks),
             f"{where} is {tasks!r:.60}, expected text or a list of text; write it again")
        texts = [without_nul(task.decode("utf-8") if isinstance(task, bytes) else task or "", where) for task in tasks]
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 ({error.reason}); write it again") from error
    return tuple(text for text in texts if text.strip())


def column(rows, name, low=0, high=10 ** 9):
    """Whole numbers, checked: what rows [(text that names it, {name: value})] hold under a name."""
    values = [row.get(name) for _, row in rows]
    if set(map(type, values)) == {int} and min(values) >= low and max(values) <= high:
        return values
    return [whole(n, f"{where}: {name}", low, high) for n, (where, _) in zip(values, rows)]


class LeRobotEpisodes:
    """What LeRobotMetadata is of meta/'s lists; it gives root, where, info_path, info, version and views."""

    def at(self, e, t=None, key=""):
        """What messages call episode e, by its own number, its frame t and a feature there."""
        return f"{self.where}, episode {self.indices[e]}" + f", frame {t}" * (t is not None) + f", '{key}'" * bool(key)

    @contextmanager
    def said(self):
        """Whatever is wrong with meta/ becomes a line of this dataset."""
        with damage(self.where, "meta/ is damaged or not of this format"):
            try:
                yield
            except ValueError as error:
                must(str(error).startswith(self.where), f"{self.where}: {error}")
                raise

    def read_episodes(self):
        """Fill indices, lengths, tasks, files, first_rows, and videos: slot -> (files, seconds), all by episode.
        file_rows: {data file: rows up to the end of the last episode that meta/ puts there}."""
        with self.said():
            (self._read_v30 if self.version == "v3.0" else self._read_v2)()
            must(self.lengths, "it is empty, meta/ lists no episode; record or download one")
            rows = sorted(zip(self.first_rows, self.lengths, self.files), key=lambda row: row[0])
            self.file_rows = {file: first + n for first, n, file in rows}
            for index, times in Counter(self.indices).items():
                must(times == 1, f"{self.where}, episode {index}: meta/ lists it twice; {AGAIN}")
            for what, found in (("episodes", len(self.lengths)), ("frames", sum(self.lengths))):
                total = self.info.get(f"total_{what}", found)
                must(found == total, f"meta/ lists {found} {what}, meta/info.json says {total}; {AGAIN}")
        if not self.instruction and "task_index" not in self.info["features"] and max(map(len, self.listed)) > 1:
            self.notes.append(f"{self.where}: episodes list several instructions, and no task_index chooses one of "
                              f"them: the first is taken")

    def _paths(self, template, fields, numbers, key=""):
        """data_path or video_path of info.json, filled in: [Path] for numbers, of which the same are one file.
        fields: the numbers' names; key: the camera."""
        pattern, where = self.info.get(template), f"{self.info_path}: {template}"
        known = rf"{{({'|'.join(fields)})(:0?\d?\dd?)?}}|{{video_key}}"
        must(isinstance(pattern, str) and not re.search("[{}]", re.sub(known, "", pattern)),
             f"{where} is {pattern!r:.100}, expected a path with {{{'}, {'.join(fields)}}}; correct it")
        files = {pair: inside(self.root, pattern.format(**dict(zip(fields, pair)), video_key=key), where)
                 for pair in set(numbers)}
        of_all = key and "{video_key}" not in pattern and len(self.films) > 1
        must(len({*files.values()}) == len(files) and not of_all,
             f"{where} is {pattern!r:.100}, which names one file for several; correct it")
        return [files[pair] for pair in numbers]

    def _list(self, rows):
        self.indices, self.lengths = column(rows, "episode_index"), column(rows, "length", 1, LONGEST)
        self.listed = [instructions(row.get("tasks"), f"{where}: tasks") for where, row in rows]
        self.tasks = [texts[0] if texts else "" for texts in self.listed]

    def _read_v2(self):
        self._list(read_jsonl(self.root / "meta" / "episodes.jsonl"))
        size = whole(self.info.get("chunks_size", 1000), f"{self.info_path}: chunks_size", low=1)
        fields, numbers = ("episode_chunk", "episode_index"), [(index // size, index) for index in self.indices]
        self.files, self.first_rows = self._paths("data_path", fields, numbers), [0] * len(numbers)
        self.videos = {slot: (self._paths("video_path", fields, numbers, key), [0.0] * len(numbers))
                       for slot, key in self.films.items()}

    def _read_v30(self):
        paths = sorted((self.root / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
        must(paths, f"{self.root / 'meta' / 'episodes'} holds no parquet file; {AGAIN}")
        # Only these columns: per-episode statistics are most of the file.
        fields = ("chunk_index", "file_index")
        columns = ["episode_index", "length", "dataset_from_index", "dataset_to_index"]
        columns += [f"data/{what}" for what in fields]
        columns += [f"videos/{key}/{what}" for key in self.films.values() for what in (*fields, "from_timestamp")]
        rows = [(f"{path}, row {n}", row) for path in paths
                for n, row in enumerate(read_table(path, columns, self.where, also=["tasks"]).to_pylist())]
        self._list(rows)
        begins, ends = (column(rows, name) for name in columns[2:4])
        for e, (length, low, high) in enumerate(zip(self.lengths, begins, ends)):
            must(length == high - low, f"{self.at(e)}: meta/ gives it {length} frames, rows {low} to {high}; {AGAIN}")
        order = sorted(range(len(begins)), key=begins.__getitem__)
        for e, following in zip(order, order[1:]):
            must(ends[e] <= begins[following],
                 f"{self.at(e)}: meta/episodes gives it rows of episode {self.indices[following]}; {AGAIN}")
        numbers = list(zip(*(column(rows, f"data/{name}") for name in fields)))
        self.files = self._paths("data_path", fields, numbers)
        starts = {self.files[e]: begins[e] for e in reversed(order)}   # rows are global; a file begins at its lowest
        self.first_rows = [row - starts[file] for file, row in zip(self.files, begins)]
        self.videos = {slot: self._stretches(key, fields, rows) for slot, key in self.films.items()}

    def _stretches(self, key, fields, rows):
        """The films of a camera in v3.0, and the seconds at which the episodes begin there. Of an episode without one,
        all is null."""
        *names, begin = (f"videos/{key}/{name}" for name in (*fields, "from_timestamp"))
        some = {e: row for e, row in enumerate(rows) if any(row[1][name] is not None for name in (*names, begin))}
        for where, row in some.values():
            must(type(row[begin]) in (int, float) and 0 <= row[begin] < 1e9,
                 f"{where}: {begin} is {row[begin]!r:.40}, expected seconds; {AGAIN}")
        numbers = list(zip(*(column(some.values(), name) for name in names)))
        files = dict(zip(some, self._paths("video_path", fields, numbers, key)))
        none = self.root / "videos" / key / NO_FILM
        return [files.get(e, none) for e in range(len(rows))], [row[begin] or 0.0 for _, row in rows]

    def views_of(self, e):
        """The views of which episode e has pictures."""
        return [view for view in self.views if e not in self.lacking.get(view, ())]

    def by_row(self, e):
        """Whether its rows say which task an episode has: unless the dataset, and the list of the episode, has one."""
        return "task_index" in self.info["features"] and not (
            self.info.get("total_tasks") == 1 == len(self.listed[e]) and len(self.task_texts) < 2)

    @cached_property
    def task_texts(self):
        """task_index -> text, from meta/tasks.jsonl or meta/tasks.parquet; {} without, where there is one task."""
        names = ("tasks.parquet", "tasks.jsonl") if self.version == "v3.0" else ("tasks.jsonl", "tasks.parquet")
        paths = [self.root / "meta" / name for name in names]
        path = next((path for path in paths if path.exists()), None)
        if path is None and self.info.get("total_tasks") == 1:
            return {}
        with self.said():
            if path is None or path.suffix == ".jsonl":
                rows, text = read_jsonl(path or paths[0]), "task"
            else:   # a pandas frame whose index is the text, or one of its columns
                with damage(self.where, f"{path} cannot be read"):
                    table = read_table(path, None, self.where).to_pylist()
                texts = [key for key in (table or [{}])[0] if any(isinstance(row[key], (str, bytes)) for row in table)]
                text = "task" if "task" in texts or not texts else texts[0]
                must(text == "task" or len(texts) == 1,
                     f"{path} has several columns of text ({', '.join(texts)[:200]}): call the task's 'task'")
                rows = [(f"{path}, row {n}", row) for n, row in enumerate(table)]
            found = {}
            for where, row in rows:
                index = whole(row.get("task_index"), f"{where}: task_index")
                must(index not in found, f"{where}: task_index {index} is listed twice; {AGAIN}")
                must(text in row, f"{where}: it has no text of the task; {AGAIN}")
                found[index] = next(iter(instructions(row[text], f"{where}: {text}")), "")
        return found
