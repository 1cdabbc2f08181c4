"""How commands end: one line for an error, Ctrl-C, a lost terminal. The programs run as a user starts them."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from support import entry, files

ROOT = Path(__file__).parents[2]
PROGRAMS = (["train.py"], ["infer.py"], ["model.py"], ["lpt.py"], ["-m", "support.data"], ["-m", "support.weights"],
            ["-m", "bench"])


@pytest.fixture
def program(tmp_path):
    """(body of main, *arguments, **of Popen) -> a started program that begins and ends as the entry points do."""
    def start(body, *argv, lost="", **options):
        path = tmp_path / "program.py"
        path.write_text("from support.entry import command\nimport os, signal, sys, time\ndef main(argv):\n"
                        + textwrap.indent(textwrap.dedent(body), "    ") + f"\ncommand('program', main, {lost!r})\n")
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        return subprocess.Popen([sys.executable, str(path), *argv], env={"PYTHONPATH": str(ROOT)}, **options)
    return start


@pytest.mark.parametrize("text, line", [
    ("two\n  lines", "two\n  lines"), ("a\nb: no file", "a\\nb: no file"), ("one", "one"), ("", "ValueError"),
    ("Caught ValueError in DataLoader worker process 0.\nTraceback\n  frames\nValueError: torn", "torn")])
def test_what_is_said_is_one_line_and_a_list_stays_whole(text, line):
    """A strict load's refusal names each key on a line of its own."""
    assert entry.said(ValueError(text)) == line


@pytest.mark.parametrize("body, code, line", [
    ("raise ValueError('bad flag')", 2, "program: bad flag"),
    ("import nowhere", 2, "program: No module named 'nowhere'"),
    ("{}['a']", 1, "program: KeyError: 'a' (not expected: --debug shows where)"),
    ("os.kill(os.getpid(), signal.SIGINT)", 130, "program: interrupted"),
    ("try: os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException: raise ImportError('numpy is broken')", 130,
     "program: interrupted"),
    ("class A:\n    def __del__(self): os.kill(os.getpid(), signal.SIGINT)\na = A(); del a; time.sleep(9)", 130,
     "program: interrupted"),
    ("raise KeyboardInterrupt('the same command goes on')", 130, "program: interrupted; the same command goes on")])
def test_whatever_ends_a_program_is_one_line_and_debug_shows_where(program, body, code, line):
    """Also where a library makes another error of Ctrl-C, and where it comes while an object is destroyed."""
    short, long = program(body), program(body, "--debug")
    assert short.communicate(timeout=30) == ("", line + "\n") and short.returncode == code
    assert "__del__" in body or "Traceback" in long.communicate(timeout=30)[1]
    assert long.wait(30) == code


def test_ctrl_c_ends_the_processes_that_a_program_started(program):
    """At once and without a word of theirs, though they ignore it themselves."""
    running = program("""
        import torch
        batches = iter(torch.utils.data.DataLoader([0.0] * 99, num_workers=2, collate_fn=lambda x: time.sleep(20)))
        print([w.pid for w in batches._workers], flush=True)
        next(batches)""")
    children = eval(running.stdout.readline())
    began = time.time()
    for pid in (*children, running.pid):   # as a terminal does
        __import__("os").kill(pid, signal.SIGINT)
    assert running.communicate(timeout=30)[1] == "program: interrupted\n" and running.returncode == 130
    assert time.time() - began < 15 and not any(Path(f"/proc/{pid}").exists() for pid in children)


@pytest.mark.parametrize("command", PROGRAMS, ids=" ".join)
def test_ctrl_c_while_an_entry_point_imports_is_one_line(command):
    running = subprocess.Popen([sys.executable, *command, "--help"], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    time.sleep(0.4)   # a tenth of what the imports take
    running.send_signal(signal.SIGINT)
    _, line = running.communicate(timeout=60)
    if running.returncode:   # else it was through
        assert running.returncode == 130 and line.endswith(": interrupted\n") and line.count("\n") == 1


def test_a_file_is_whole_under_its_name_or_what_it_was(tmp_path):
    path = tmp_path / "new" / "report.json"
    with files.written(path) as file:
        file.write_text("first")
    with pytest.raises(KeyboardInterrupt), files.written(path) as file:
        file.write_text("hal")
        raise KeyboardInterrupt
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path] and file.suffix == ".json"


def test_every_command_explains_itself_with_the_packages_of_training_alone():
    """requirements.txt. What reads films, serves a policy or simulates is imported by the command that does so."""
    code = """
import importlib, sys
further = "pyarrow", "av", "websockets", "msgpack", "h5py", "gym_aloha", "mujoco"
sys.modules.update(dict.fromkeys(further, None))   # an import of one of them fails
from bench.__main__ import COMMANDS, run
import infer, train, support.lpt_cost
mains = {name: importlib.import_module(f"{name}.__main__").main
         for name in ("support.data", "support.weights", "worlds.aloha", "worlds.robotwin")}
starts = [(name, main, ["--help"]) for name, main in mains.items()]
for name, main, words in starts + [(name, run, [name, "--help"]) for name in COMMANDS]:
    try:
        main(words)
    except SystemExit as end:
        assert end.code == 0, name
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
