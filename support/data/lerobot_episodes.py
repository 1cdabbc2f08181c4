"""The episodes and instructions that meta/ of a LeRobot dataset lists, and where their rows and pictures lie.

v2.x has one parquet and one mp4 file an episode, v3.0 many episodes in each. From `read_episodes` on both are the same:
an episode has rows of a data file from `first_rows` on, and per camera a video file and the second where it begins.
"""

import re
from functools import cached_property
from pathlib import Path

from support.data.parquet import arrow, damage, read_table
from support.files import inside, lfs_pointer, read_jsonl, unreadable, whole

DAMAGED = "meta/ is damaged or not of this format"
AGAIN = "download the dataset again"
NO_FILM = "none"    # where an episode of v3.0 names none
LONGEST = 10 ** 7   # frames of an episode: four days at 30 frames/s


def instructions(tasks, where):
    """What a list of tasks holds, text, bytes, several of these or nothing -> tuple of those that are not empty."""
    texts = []
    for task in tasks if isinstance(tasks, (list, tuple)) else [tasks]:
        if not isinstance(task, (str, bytes, type(None))):
            raise ValueError(f"{where} is {tasks!r:.60}, expected text or a list of text; write it again")
        try:
            texts.append(task.decode("utf-8") if isinstance(task, bytes) else task or "")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where} is not UTF-8 ({error.reason}); write it again") from error
    return tuple(text for text in texts if text.strip())


class LeRobotEpisodes:
    """What LeRobotMetadata is of meta/'s lists; it gives root, where, info_path, info, version and views."""

    def fault(self, what, episode=None, frame=None):
        """The ValueError to raise. episode: the number that the dataset itself gives it."""
        at = "".join(f", {name} {n}" for name, n in (("episode", episode), ("frame", frame)) if n is not None)
        return ValueError(f"{self.where}{at}: {what}")

    def _try(self, read, *what, **limits):
        """read(*what), its ValueError as a line of this dataset."""
        try:
            return read(*what, **limits)
        except ValueError as error:
            raise self.fault(error) from error

    def _films(self):
        """{slot: camera} of those whose pictures are mp4, not PNG inside the data files."""
        return {slot: key for slot, key in self.views.items() if self.info["features"][key]["dtype"] == "video"}

    def frames_in_all(self):
        """Frames of all episodes: what info.json says, else their sum."""
        total = self.info.get("total_frames")
        if total:
            return int(total)
        self.read_episodes()
        return sum(self.lengths)

    def read_episodes(self):
        """Fill indices, lengths, tasks, files, first_rows, and videos: slot -> (files, seconds), all by episode."""
        with damage(self.where, DAMAGED):
            (self._read_v30 if self.version == "v3.0" else self._read_v2)()
            self._check_episodes()

    def _check_episodes(self):
        if not self.lengths:
            raise self.fault("it is empty, meta/ lists no episode; record or download one")
        seen = set()
        for index, length in zip(self.indices, self.lengths):
            if length < 1:
                raise self.fault(f"it has no frames, meta/ says {length}; drop the episode", index)
            if index in seen:
                raise self.fault(f"meta/ lists it twice; {AGAIN}", index)
            seen.add(index)
        if not self.instruction and "task_index" not in self.info["features"] and max(map(len, self.listed)) > 1:
            self.notes.append(f"{self.where}: episodes list several instructions, and no task_index chooses one of "
                              f"them: the first is taken")
        rows, frames = len(self.indices), sum(self.lengths)
        total, total_frames = self.info.get("total_episodes", rows), self.info.get("total_frames", frames)
        if rows != total:
            raise self.fault(f"meta/ lists {rows} episodes, meta/info.json says {total}; {AGAIN}")
        if frames != total_frames:
            raise self.fault(f"the episodes of meta/ have {frames} frames, meta/info.json says {total_frames}; {AGAIN}")

    def _paths(self, template, fields, numbers, key=""):
        """data_path or video_path of info.json, filled in: [Path] for numbers, of which the same are one file.

        fields: the numbers' names; key: the camera."""
        pattern, where = self.info.get(template), f"{self.info_path}: {template}"
        known = "|".join(fields)
        if not isinstance(pattern, str) or re.search("[{}]", re.sub(
                rf"{{({known})(:0?\d?\dd?)?}}|{{video_key}}", "", pattern)):
            raise self.fault(f"{where} is {pattern!r:.100}, expected a path with {{{'}, {'.join(fields)}}}; correct it")
        texts = {pair: pattern.format(**dict(zip(fields, pair)), video_key=key) for pair in set(numbers)}
        if len(set(texts.values())) < len(texts) or (key and "{video_key}" not in pattern and len(self._films()) > 1):
            raise self.fault(f"{where} is {pattern!r:.100}, which names one file for several; correct it")
        if Path(pattern).is_absolute():
            made = {pair: self._try(inside, self.root, text, where) for pair, text in texts.items()}
        else:   # numbers lead nowhere else
            self._try(inside, self.root, pattern.replace("{video_key}", key), where)
            made = {pair: self.root / text for pair, text in texts.items()}
        return [made[pair] for pair in numbers]

    def _whole(self, rows, name, where, high=10 ** 9):
        """A column of whole numbers, checked: rows {name: values}; where, the text that names each row."""
        values = rows[name]
        if set(map(type, values)) == {int} and min(values) >= 0 and max(values) <= high:
            return values
        return [self._try(whole, n, f"{at}: {name}", high=high) for n, at in zip(values, where)]

    def _list(self, rows, where):
        self.indices = self._whole(rows, "episode_index", where)
        self.lengths = self._whole(rows, "length", where, LONGEST)
        self.listed = [self._try(instructions, tasks, f"{at}: tasks") for tasks, at in zip(rows["tasks"], where)]
        self.tasks = [texts[0] if texts else "" for texts in self.listed]

    def _read_v2(self):
        listed = self._try(read_jsonl, self.root / "meta" / "episodes.jsonl")
        self._list({name: [row.get(name) for _, row in listed] for name in ("episode_index", "length", "tasks")},
                   [where for where, _ in listed])
        size = self._try(whole, self.info.get("chunks_size", 1000), f"{self.info_path}: chunks_size", low=1)
        fields, numbers = ("episode_chunk", "episode_index"), [(index // size, index) for index in self.indices]
        self.files, self.first_rows = self._paths("data_path", fields, numbers), [0] * len(numbers)
        self.videos = {slot: (self._paths("video_path", fields, numbers, key), [0.0] * len(numbers))
                       for slot, key in self._films().items()}

    def _read_v30(self):
        paths = sorted((self.root / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
        if not paths:
            raise self.fault(f"{self.root / 'meta' / 'episodes'} holds no parquet file; {AGAIN}")
        # Only these columns: per-episode statistics are most of the file.
        fields, films = ("chunk_index", "file_index"), self._films()
        columns = ["episode_index", "length", "data/chunk_index", "data/file_index", "dataset_from_index",
                   "dataset_to_index"]
        columns += [f"videos/{key}/{what}" for key in films.values() for what in (*fields, "from_timestamp")]
        for path in filter(lfs_pointer, paths):
            raise self.fault(unreadable(path, ""))
        with damage(self.where, f"{paths[0]} cannot be read"):
            told = ["tasks"] * ("tasks" in arrow().parquet.read_schema(paths[0]).names)
        tables = [read_table(path, columns + told, self.where) for path in paths]
        rows = {name: [value for table in tables for value in table[name].to_pylist()] for name in columns}
        where = [f"{path}, row {n}" for path, table in zip(paths, tables) for n in range(len(table))]
        rows["tasks"] = [] if told else [None] * len(where)
        try:
            for tasks in (row for table in tables for name in told for row in table[name]):
                rows["tasks"].append(tasks.as_py())
        except UnicodeDecodeError as error:
            raise self.fault(f"{where[len(rows['tasks'])]}: its task is not UTF-8 ({error.reason})") from error
        self._list(rows, where)
        begins, ends = (self._whole(rows, name, where) for name in columns[4:6])
        for index, length, low, high in zip(self.indices, self.lengths, begins, ends):
            if length != high - low:
                raise self.fault(f"meta/episodes gives it {length} frames and the rows {low} to {high}; {AGAIN}", index)
        order = sorted(range(len(begins)), key=begins.__getitem__)
        for e, following in zip(order, order[1:]):
            if ends[e] > begins[following]:
                raise self.fault(f"meta/episodes gives it rows of episode {self.indices[following]}; {AGAIN}",
                                 self.indices[e])
        place = [self._whole(rows, f"data/{name}", where) for name in fields]
        self.files, starts = self._paths("data_path", fields, list(zip(*place))), {}
        for file, row in zip(self.files, begins):   # rows are global; a file begins at its lowest
            starts[file] = min(row, starts.get(file, row))
        self.first_rows = [row - starts[file] for file, row in zip(self.files, begins)]
        self.videos = {slot: self._stretches(key, fields, rows, where) for slot, key in films.items()}

    def _stretches(self, key, fields, rows, where):
        """The films of a camera in v3.0, and the seconds at which the episodes begin there. Of an episode without one,
        all is null."""
        names = [f"videos/{key}/{name}" for name in (*fields, "from_timestamp")]
        without = {e for e, told in enumerate(zip(*(rows[name] for name in names))) if told == (None,) * 3}
        mine = {name: [0 if e in without else value for e, value in enumerate(rows[name])] if without else rows[name]
                for name in names}
        for second, row in zip(mine[names[2]], where):
            if type(second) not in (int, float) or not 0 <= second < 1e9:
                raise self.fault(f"{row}: {names[2]} is {second!r:.40}, expected seconds; {AGAIN}")
        numbers = list(zip(*(self._whole(mine, name, where) for name in names[:2])))
        files = self._paths("video_path", fields, numbers, key)
        for e in without:
            files[e] = self.root / "videos" / key / NO_FILM
        return files, mine[names[2]]

    def find_lacking(self, missing, cache):
        """Fill `lacking`: {view: episodes recorded without it} -> the films that are among `missing` for that reason.

        Of v3.0 the episodes that name no film; of v2.x those without one, where others have it and meta/info.json does
        not count it in total_videos. An episode without any picture, or a camera without any film, has lost them."""
        self.lacking = {}
        if not missing and not cache:
            return ()
        episodes, films = range(len(self.lengths)), {} if cache else {view: of[0] for view, of in self.videos.items()}
        cameras = sum(feature["dtype"] == "video" for feature in self.info["features"].values())
        counted = self.version == "v3.0" or self.info.get("total_videos") == len(episodes) * cameras
        lacking = {view: {e for e in episodes if files[e] in missing and (not counted or files[e].name == NO_FILM)}
                   for view, files in films.items()}
        if cache:
            lacking = {view: {e for e in episodes if not cache.holds(key, e)} for view, key in self.views.items()}
        self.lacking = {view: absent for view, absent in lacking.items() if 0 < len(absent) < len(episodes)}
        lost = {e for e in episodes if not self.views_of(e)}
        self.lacking = {view: absent - lost for view, absent in self.lacking.items() if absent - lost}
        for view, absent in self.lacking.items():
            self.notes.append(f"{self.where}: camera '{self.views[view]}' has no pictures of {len(absent)} of its "
                              f"{len(episodes)} episodes, first of episode {self.indices[min(absent)]}: masked there")
        return {films[view][e] for view, absent in self.lacking.items() for e in absent if films}

    def views_of(self, e):
        """The views of which episode e has pictures."""
        return [view for view in self.views if e not in self.lacking.get(view, ())]

    def instruction_from(self):
        """Where the instruction of a frame is read, text."""
        column = self.instruction or ("task_index" if self.by_row(0) else "")
        return f"column '{column}' of its row" if column else "meta/'s list of episodes"

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
        if path is None or path.suffix == ".jsonl":
            rows, text = self._try(read_jsonl, path or paths[0]), "task"
        else:   # a pandas frame whose index is the text, or one of its columns
            with damage(self.where, f"{path} cannot be read"):
                table = read_table(path, None, self.where).to_pylist()
                text = next((key for key in ("task", *(table[0] if table else ())) if any(
                    isinstance(row.get(key), (str, bytes)) for row in table)), "task")
            rows = [(f"{path}, row {n}", row) for n, row in enumerate(table)]
        found = {}
        for where, row in rows:
            index = self._try(whole, row.get("task_index"), f"{where}: task_index")
            if index in found or text not in row:
                what = f"task_index {index} is listed twice" if index in found else "it has no text of the task"
                raise self.fault(f"{where}: {what}; {AGAIN}")
            found[index] = next(iter(self._try(instructions, row.get(text), f"{where}: {text}")), "")
        return found
