"""Try to lose a training run: real runs of train.py, killed, interrupted, damaged and starved of disk.

    python tests/chaos.py --kills 200          everything: about four minutes on two cores
    python tests/chaos.py --parts kills,disk   some of it

Every run is the conveyor config made small (24 steps, a checkpoint every 2), forked from this process so that torch is
warm, and compared with an uninterrupted one: log.jsonl line by line, the final weights bit by bit. "lost" counts
checkpoints that stood before and could not be used after, "differing" the lines of log.jsonl that differ.

    kills    SIGKILL at a random moment, half of them while a checkpoint is being written; then --resume
    terms    SIGTERM at a random moment: everything logged is saved; then --resume
    hangups  the same with SIGHUP, as when an ssh connection is dropped
    twins    two runs are started in one folder at about the same moment: one of them refuses
    resumes  --resume of a run that is alive: it refuses
    screens  standard output and error go to a disk that is full after a few lines
    pipes    the reader of standard output and error goes away at a random moment
    damage   one file of the newest checkpoint: bits flipped, truncated, a block zeroed; named, the previous one used
    disk     the disk fills up at a random offset of a save, and is freed later
    ranks    one of two ranks under torchrun's agent is killed; the agent restarts both
    loaders  one of two loader processes is killed, or stopped and the run interrupted; then --resume
    shm      /dev/shm is too small from the start, or fills up at a random moment; then --resume with room
"""

import argparse
import contextlib
import ctypes
import io
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

sys.path.insert(0, str(Path(__file__).parents[1]))

from worlds import conveyor                                                                    # noqa: E402
import train                                                                       # noqa: E402
from support import checkpoint, entry                                              # noqa: E402

STEPS, TIMEOUT = 24, 600
RUN = (f"--steps {STEPS} --batch_size 2 --action_draws 1 --layers 1 --text_tokens 24 --threads 1 --episodes 1 "
       "--save_every 2 --log_every 1 --eval_every 12 --eval_windows 2").split()


def count(tally, part, problem=""):
    """One more try of a part in its tally, a Counter of tried, survived, lost, differing and what is worth a note."""
    tally["tried"] += 1
    tally["survived"] += not problem
    if problem:
        print(f"{part} {tally['tried']}: {problem}", flush=True)


# ---- running ----------------------------------------------------------------------------------------------------

def start(argv, printed, run=train.run):
    """Fork a training run that prints to a file -> its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        torch.set_num_threads(1)
        run(argv)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def typed(argv):
    """train.py as it is typed: errors and lost streams are its own affair."""
    sys.argv, entry.SCRIPT = ["train.py", *argv], True
    entry.command("train.py", train.run, lost="training goes on")


def ended(pid):
    """None while a child lives, else its exit status; killed by a signal: minus its number."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def wait(pid):
    """Exit status of a child, killed after TIMEOUT seconds."""
    deadline = time.time() + TIMEOUT
    while time.time() < deadline:
        code = ended(pid)
        if code is not None:
            return code
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hangs"


def ended_within(pid, seconds, condition=lambda: True):
    """Sleep, then until `condition` holds -> None, or the child's exit status if it ended before."""
    deadline = time.time() + seconds
    while time.time() < deadline or not condition():
        code = ended(pid)
        if code is not None:
            return code
        time.sleep(0.001)
    return None


def steps(out):
    """Steps of the checkpoints that stand in a run folder, in order."""
    return sorted(int(path.name[5:]) for path in out.glob("step_*"))


def newest(out):
    """(step of the newest good checkpoint, or -1; what was said about damaged ones)."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            return int(checkpoint.newest(out).name[5:]), said.getvalue()
        except checkpoint.CheckpointError as error:
            return -1, said.getvalue() + str(error)


def differences(out, reference):
    """Lines of log.jsonl that differ from an uninterrupted run's, plus one if the final weights do."""
    logs = (path / "log.jsonl" for path in (out, reference))
    ours, theirs = (log.read_bytes().splitlines() if log.exists() else [] for log in logs)
    lines = sum(a != b for a, b in itertools.zip_longest(ours, theirs))
    weights = (path / f"step_{STEPS:08d}" / checkpoint.MODEL for path in (out, reference))
    return lines + (len({path.read_bytes() if path.exists() else path for path in weights}) > 1)


def again(argv, out):
    """The arguments that go on with a run, or begin it."""
    return [*argv, "--out", str(out), *(["--resume"] if out.exists() else [])]


# ---- parts: each is (n, place, chance) -> Counter -----------------------------------------------------------------

class Place:
    """Where one job works: its own folder, the dataset, and uninterrupted runs to compare with."""

    def __init__(self, root, name):
        self.root, self.own = root, root / name
        self.own.mkdir()
        self.argv = ["--data", str(root / "data"), *RUN]
        self.reference, self.printed = root / "reference", self.own / "printed"


def interrupt(number, n, place, chance):
    """Interrupt a run by a signal again and again until it is through, then the next one."""
    tally, saved, out, part = Counter(), 0, place.own / "run", signal.Signals(number).name
    while True:
        pid = start(again(place.argv, out), place.printed)
        moment, in_save = chance.uniform(0, 1.5), chance.random() < 0.5 or not tally["tried"]

        def writing():   # this process: what earlier ones left behind does not count
            return any(out.glob(f"{checkpoint.TEMPORARY}*_{pid}*"))

        code = ended_within(pid, moment, writing if in_save else lambda: True) if tally["tried"] < n else wait(pid)
        if code is None:
            before, hit = max(steps(out), default=-1), writing()
            os.kill(pid, number)
            code = wait(pid)
            after, said = newest(out)
            problem = verdict(out, code, number, before, after, said)
            if code == 0:   # too late: it had finished
                continue
            tally["while saving"] += hit
            saved += code == 128 + number
            tally["lost"] += after < before
            count(tally, part, problem)
            continue
        wrong = differences(out, place.reference)
        tally["differing"] += wrong
        if code or wrong:
            count(tally, part, f"the resumed run ended with {code}, {wrong} lines differ")
        shutil.rmtree(out)
        if tally["tried"] >= n:
            if number != signal.SIGKILL and not saved:   # the first one came while saving, so behind the handler
                count(tally, part, f"no run ended with {128 + number}")
            return tally


def verdict(out, code, number, before, after, said):
    """What is wrong after an interruption, "" if nothing is."""
    if after < before:
        return f"checkpoint {before} stood before, {after} is the newest good one after: {said}"
    if number != signal.SIGKILL and code != 0:
        # -number: it came before the first step or during the closing report, where nothing logged can be lost
        if code not in (-number, 128 + number):
            return f"it ended with {code}"
        known = checkpoint.load(out / f"step_{after:08d}")[1]["log_length"] if after >= 0 else 0
        length = (out / "log.jsonl").stat().st_size if (out / "log.jsonl").exists() else 0
        if length != known:
            return f"it ended with {code}, the log has {length} bytes, the checkpoint knows of {known}"
    return ""


def rivals(resumes, n, place, chance):
    """A second process in the folder of a live run, with --resume once a checkpoint stands or else at about the same
    moment: one of the two trains as if it were alone, the other names it and ends with exit code 2."""
    tally, out, second = Counter(), place.own / "shared", place.own / "second"
    while tally["tried"] < n:
        for path in (place.printed, second):
            path.unlink(missing_ok=True)
        argv = [*place.argv, "--out", str(out)]
        pids = [start(argv, place.printed, typed)]
        code = ended_within(pids[0], chance.uniform(0, 0.5), lambda: not resumes or len(steps(out)) > 0)
        if code is None:
            pids.append(start([*argv, "--resume"] if resumes else argv, second, typed))
            codes = sorted(map(wait, pids))
            said = second.read_text() + place.printed.read_text()
            if f"at step {STEPS}\n" not in said:   # else the first one was through before
                wrong = differences(out, place.reference)
                tally["differing"] += wrong
                good = codes == [0, 2] and said.count(f"{out} is in use by process") == 1 and not wrong
                count(tally, "resumes" if resumes else "twins", "" if good else f"{codes}, {wrong} differ: {said}")
        shutil.rmtree(out, ignore_errors=True)
    return tally


def unheard(piped, n, place, chance):
    """Standard output and error go to a disk that holds a few more lines, or into a pipe whose reader leaves."""
    tally, out, pipe = Counter(), place.own / "run", place.own / "pipe"
    os.mkfifo(pipe)
    while tally["tried"] < n:
        with small_disk(place.own / "screen", "4k") as mounted:
            full = place.own / "screen" / "printed" if mounted else Path("/dev/full")
            if mounted:
                full.write_bytes(bytes(chance.randrange(3000, 4096)))
            pid = start([*place.argv, "--out", str(out)], pipe if piped else full, typed)
            reader = os.open(pipe if piped else os.devnull, os.O_RDONLY)   # after the fork: the run must not hold it
            code = ended_within(pid, chance.uniform(0, 1))
            os.close(reader)
            code = wait(pid) if code is None else code
        wrong = differences(out, place.reference)
        tally["differing"] += wrong
        count(tally, "pipes" if piped else "screens", f"ended with {code}, {wrong} differ" if code or wrong else "")
        shutil.rmtree(out, ignore_errors=True)
    return tally


def flip(raw, chance):
    raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    return raw


def cut(raw, chance):
    return raw[:chance.randrange(len(raw))]


def blank(raw, chance):
    """A block of up to 4 KiB zeroed, one that was not zero before."""
    while True:
        at = chance.randrange(len(raw)) // 4096 * 4096
        if any(raw[at:at + 4096]):
            raw[at:at + 4096] = bytes(len(raw[at:at + 4096]))
            return raw


def damage(n, place, chance):
    """n damaged checkpoints: 4/9 flipped bits (a quarter each in state.json and manifest.json, the rest in proportion to
    size), 4/9 truncated files, 1/9 zeroed blocks."""
    tally, out = Counter(), shutil.copytree(place.reference, place.own / "damage")
    last, path = steps(out)[-2:], out / f"step_{steps(out)[-1]:08d}"
    names = [*checkpoint.FILES, checkpoint.MANIFEST]
    sizes = [(path / name).stat().st_size for name in names]
    flips, blanks = round(n * 4 / 9), round(n / 9)
    plan = [(flip, name) for name in (checkpoint.STATE, checkpoint.MANIFEST) for _ in range(flips // 4)]
    plan += [(flip, name) for name in chance.choices(names, sizes, k=flips - len(plan))]
    plan += [(blank, name) for name in chance.choices(names, sizes, k=blanks)]
    plan += [(cut, names[i % len(names)]) for i in range(n - len(plan))]
    for change, name in plan:
        good = (path / name).read_bytes()
        (path / name).write_bytes(change(bytearray(good), chance))
        step, said = newest(out)
        named = str(path / name) in said
        tally["lost"] += step != last[0]
        count(tally, "damage", "" if named and step == last[0] else f"{change.__name__} in {name}: {said!r}, then step {step}")
        (path / name).write_bytes(good)
    return tally


@contextlib.contextmanager
def small_disk(folder, size):
    """A tmpfs of `size` bytes mounted at folder -> True, or False where mounting is not permitted."""
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],
                             capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True)


def disk(n, place, chance):
    """Fill the disk once a checkpoint stands, leaving room for a random part of the next one; free it after a failed
    save. Every second time the check of free space is off, so that the write itself fails, at a random offset. A run
    that ends while the disk is full says that its last step is not there; --resume makes it again."""
    tally = Counter()
    size = sum(path.stat().st_size for path in (place.reference / f"step_{STEPS:08d}").iterdir())
    while tally["tried"] < n:
        with small_disk(place.own / "disk", 4 * size) as mounted:
            out = place.own / "disk" / "run"
            blind = tally["tried"] % 2 == 0
            place.printed.unlink(missing_ok=True)
            pid = start(again(place.argv, out), place.printed, unchecked if blind else train.run)
            before, after, said = -1, -1, ""
            code = ended_within(pid, chance.uniform(0, 0.5), lambda: len(steps(out)) > 0)
            if code is None:
                free = fill(mounted, place.own / "disk", pid, chance.randrange(size))
                code = ended_within(pid, 0, lambda: "was not saved" in place.printed.read_text())
                before = max(steps(out))
                after, said = newest(out)
                free()
                code = wait(pid) if code is None else code
                if code and "the last step is not on disk" in place.printed.read_text():   # it ended too early
                    code = wait(start(again(place.argv, out), place.printed))
            messages = place.printed.read_text().count("was not saved")
            if code or messages:   # or else it was through before the disk was full
                wrong = differences(out, place.reference)
                tally["differing"] += wrong
                tally["lost"] += after < before
                count(tally, "disk", "" if code == 0 and not wrong and after >= before and messages else
                            f"ended with {code}, {wrong} lines differ, {after} after {before}: {said}")
            tally["on a small tmpfs" if mounted else "by RLIMIT_FSIZE: no tmpfs may be mounted here"] += 1
            shutil.rmtree(out, ignore_errors=True)
    return tally


def unchecked(argv):
    checkpoint._require_space = lambda run, groups: None
    train.run(argv)


def fill(mounted, folder, pid, left):
    """Leave `left` bytes -> a function that undoes it. Without a disk of its own: a limit on the size of any file."""
    if not mounted:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (max(left, 1 << 16), resource.RLIM_INFINITY))
        return lambda: resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    with open(folder / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, max(shutil.disk_usage(folder).free - left, 1))
    return (folder / "ballast").unlink


def worker(argv, folder):
    """One rank: says its process id, then trains."""
    (folder / f"pid_{os.environ['RANK']}_{os.environ['TORCHELASTIC_RESTART_COUNT']}").write_text(str(os.getpid()))
    torch.set_num_threads(1)
    train.run(argv)


def launch(folder, argv):
    """Two ranks under torchrun's own agent, which restarts them once."""
    settings = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=1, start_method="fork",
                            rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id=str(os.getpid()),
                            monitor_interval=0.1)
    elastic_launch(settings, worker)(argv, folder)


def ranks(n, place, chance):
    """Kill one of two ranks, at any moment from the first line of its process on."""
    tally, reference, run = Counter(), place.own / "reference", partial(launch, place.own)
    began = time.time()
    code = wait(start([*place.argv, "--out", str(reference)], place.printed, run))
    assert code == 0, place.printed.read_text()
    seconds = time.time() - began
    while tally["tried"] < n:
        for path in place.own.glob("pid_*"):
            path.unlink()
        out, victim = place.own / "ranks", place.own / f"pid_{chance.randrange(2)}_0"
        pid = start([*place.argv, "--out", str(out)], place.printed, run)
        code, before = ended_within(pid, 0, lambda: victim.exists() and victim.read_text() != ""), -1
        if code is None:
            code = ended_within(pid, chance.uniform(0, seconds))
        if code is None:
            before = max(steps(out), default=-1)
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(victim.read_text()), signal.SIGKILL)
            code = wait(pid)
        if code or (place.own / "pid_0_1").exists():   # the agent saw it and started both again, or should have
            after, said = newest(out)
            wrong = differences(out, reference)
            tally["differing"] += wrong
            tally["lost"] += after < before
            count(tally, "ranks", "" if code == 0 and not wrong and after >= before else
                        f"ended with {code}, {wrong} lines differ, {after} after {before}: {said}")
        shutil.rmtree(out, ignore_errors=True)
    return tally


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resumed(part, tally, place, out, code, before, problem):
    """Count a run with loaders that ended, and one that goes on with it, or begins it."""
    after, found = newest(out) if out.exists() else (-1, "")
    tally["lost"] += after < before
    again_code = wait(start(again(place.argv, out), place.printed)) if code else 0
    wrong = differences(out, place.reference)
    tally["differing"] += wrong
    problem = problem or (again_code or wrong or after < before) and \
        f"{after} after {before} {found}, the resumed run ended with {again_code}, {wrong} lines differ"
    count(tally, part, problem or "")
    shutil.rmtree(out)


def loaders(n, place, chance):
    """Kill one of two loader processes; every fourth time stop both instead, and interrupt the run that waits for them."""
    tally, out = Counter(), place.own / "run"
    while tally["tried"] < n:
        place.printed.unlink(missing_ok=True)
        pid = start([*again(place.argv, out), "--loaders", "2"], place.printed, typed)
        code = ended_within(pid, chance.uniform(0, 1), lambda: len(children(pid)) == 2 and len(steps(out)) > 0)
        stop, before = tally["tried"] % 4 == 1, max(steps(out), default=-1)
        if code is None and len(hit := children(pid)) == 2:
            for child in hit if stop else [chance.choice(hit)]:
                os.kill(child, signal.SIGSTOP if stop else signal.SIGKILL)
            began = time.time()
            if stop:
                code = ended_within(pid, 2)
                if code is None:
                    os.kill(pid, signal.SIGTERM)
            code = wait(pid) if code is None else code
            late, text = time.time() - began > LATE, place.printed.read_text()
            named = "interrupted: saved" if stop else "was killed by SIGKILL"
            good = code == 0 or code == (143 if stop else 2) and named in text and "Traceback" not in text
            if code == 0:   # too late: it needed no more batches
                shutil.rmtree(out)
                continue
            tally["stopped" if stop else "killed"] += 1
            resumed("loaders", tally, place, out, code, before,
                    "" if good and not late else f"it ended with {code}{' late' if late else ''}: {text[-300:]}")
        else:
            code = wait(pid) if code is None else code
            shutil.rmtree(out)
    return tally


def in_small_shm(size, argv):
    """typed with a /dev/shm of its own, of `size` bytes; 3 where mounting is not permitted."""
    if ctypes.CDLL(None).unshare(0x20000):   # CLONE_NEWNS
        sys.exit(3)
    for command in (["mount", "--make-rprivate", "/"], ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"]):
        if subprocess.run(command, capture_output=True).returncode:
            sys.exit(3)
    typed(argv)


def shm(n, place, chance):
    """A /dev/shm of 64 KB, as every fourth time, is refused at the start; another one is filled up while it trains."""
    tally, out = Counter(), place.own / "run"
    while tally["tried"] < n:
        small, before = tally["tried"] % 4 == 0, -1
        place.printed.unlink(missing_ok=True)
        pid = start([*again(place.argv, out), "--loaders", "2"], place.printed,
                    partial(in_small_shm, (1 << 16) if small else (32 << 20)))
        code = None if small else ended_within(pid, chance.uniform(0, 0.5), lambda: len(steps(out)) > 0)
        if code is None and not small:
            before = max(steps(out))
            with contextlib.suppress(OSError), open(f"/proc/{pid}/root/dev/shm/ballast", "wb", buffering=0) as file:
                while file.write(bytes(1 << 14)):
                    pass
        code = wait(pid) if code is None else code
        if code == 3:
            return Counter({"tried": 1, "survived": 1, "no tmpfs may be mounted here": 1})
        if code == 0:   # too late: it needed no more batches
            shutil.rmtree(out)
            continue
        out.mkdir(exist_ok=True)
        text = place.printed.read_text()
        good = code == 2 and "/dev/shm" in text and "--shm-size" in text and "Traceback" not in text
        tally["refused at the start" if small else "filled up"] += 1
        resumed("shm", tally, place, out, code, before, "" if good else f"it ended with {code}: {text[-300:]}")
    return tally


# ---- all of it --------------------------------------------------------------------------------------------------

PARTS = {"kills": partial(interrupt, signal.SIGKILL), "terms": partial(interrupt, signal.SIGTERM), "damage": damage,
         "disk": disk, "ranks": ranks, "hangups": partial(interrupt, signal.SIGHUP), "twins": partial(rivals, False),
         "resumes": partial(rivals, True), "screens": partial(unheard, False), "pipes": partial(unheard, True),
         "loaders": loaders, "shm": shm}
LATE = 10   # seconds in which a run whose loader process is gone says so
NUMBERS = {"kills": 200, "terms": 50, "damage": 450}   # the others: 20


def job(part, n, root, seed):
    return PARTS[part](n, Place(root, f"{part}_{seed}"), random.Random(f"{part} {seed}"))


def main(argv=None):
    """Run the parts -> {part: Counter}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part in PARTS:
        parser.add_argument(f"--{part}", type=int, default=NUMBERS.get(part, 20), help="how often, default %(default)s")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, separated by commas")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and places")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    began, chosen = time.time(), [part for part in PARTS if part in args.parts.split(",")]
    with tempfile.TemporaryDirectory() as root, ProcessPoolExecutor(args.jobs, get_context("fork")) as pool:
        root = Path(root)
        conveyor.write_dataset(root / "data", episodes=60)
        place = Place(root, "whole")
        assert wait(start([*place.argv, "--out", str(place.reference)], place.printed)) == 0, place.printed.read_text()
        waiting = []
        for part in chosen:
            n = getattr(args, part)
            shares = [n // args.jobs + (i < n % args.jobs) for i in range(args.jobs)] if n >= 2 * args.jobs else [n]
            waiting += [(part, pool.submit(job, part, share, root, args.seed * args.jobs + i))
                        for i, share in enumerate(shares) if share]
        found = {part: Counter() for part in chosen}
        for part, future in waiting:
            found[part].update(future.result())
    columns = ("tried", "survived", "lost", "differing")
    print("part      " + "".join(f"{column:>10}" for column in columns))
    for part, tally in found.items():
        notes = ", ".join(f"{n} {note}" for note, n in tally.items() if note not in columns)
        print(f"{part:<10}" + "".join(f"{tally[column]:>10}" for column in columns) + f"  {notes}")
    print(f"{time.time() - began:.0f} s")
    return found


if __name__ == "__main__":
    failed = any(tally["survived"] < tally["tried"] or tally["lost"] or tally["differing"] for tally in main().values())
    sys.exit(failed)
