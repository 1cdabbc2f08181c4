"""README.md and docs/: what they point at exists, their commands are understood, their sentences are short."""

import ast
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import flags
from worlds import conveyor

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {path: path.read_text(encoding="utf-8") for path in PAGES}
EVERYTHING = "\n".join(TEXT.values())
each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


def section(path, title):
    """What stands under a heading of level two."""
    return TEXT[path].split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(text):
    """Cells of every table row, without headings."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")]
            for i, line in enumerate(lines) if "---" not in "".join(lines[i:i + 2])]


def definitions(where):
    """Functions, classes, Class.methods and constants of a file, or of all files of a package."""
    path, names = ROOT / where, set()
    files = [path] if path.is_file() else [*path.parent.glob(f"{path.name}.py"), *path.glob("*.py")]
    for node in (node for file in files for node in ast.parse(file.read_text()).body):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
            names |= {f"{node.name}.{item.target.id}" for item in node.body if isinstance(item, ast.AnnAssign)}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


# ---- what the pages point at ------------------------------------------------------------------------------------

CLAIMS = rows(section(ROOT / "docs/paper.md", "Paper map"))
POINTERS = sorted(set(re.findall(r"`([\w/]+(?:\.py)?:[\w.]+)`", EVERYTHING)))
FILES = sorted(set(re.findall(r"`((?:[\w]+/)*\w+\.(?:py|json|tsv|txt))`", EVERYTHING)))


@pytest.mark.parametrize("claim, where, test", CLAIMS, ids=[row[0][:40] for row in CLAIMS])
def test_every_claim_of_the_paper_map_has_its_function_and_its_test(claim, where, test):
    """docs/paper.md; a claim without both is marked as not reproduced, with the reason."""
    assert where == "not reproduced" and len(test) > 10 or {where.strip("`"), test.strip("`")} <= set(POINTERS)


@pytest.mark.parametrize("pointer", POINTERS)
def test_what_a_page_points_at_is_defined_there(pointer):
    """`file.py:name`, in prose and in tables."""
    file, name = pointer.split(":")
    assert name in definitions(file), f"{pointer} does not exist"


def test_the_files_that_the_pages_name_exist():
    """A path with a folder, or a file of the top level; what a run or a user writes is named without a folder."""
    assert [name for name in FILES if ("/" in name or name.endswith(".py")) and not (ROOT / name).exists()] == []


@each_page
def test_links_and_pictures_resolve(path):
    """Files, folders, and headings of pages."""
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT[path]):
        file, _, heading = target.partition("#")
        to = (path.parent / file).resolve() if file else path
        assert to.exists(), f"{path.name}: {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", TEXT[to], re.M)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_the_equations_and_the_lpt_rule_are_cited_where_they_are_computed():
    """Eq. (1) to (4) and the argmin rule can be found with grep."""
    for text, file in (("Eq. (1)", "model.py"), ("Eq. (2)", "model.py"), ("Eq. (3)", "flow.py"), ("Eq. (4)", "model.py"),
                       ("argmin", "lpt.py"), ("Table 1", "config.py"), ("Table 2", "config.py"), ("Table 3", "lpt.py")):
        assert text in (ROOT / file).read_text(), f"{text} is not cited in {file}"


# ---- README -----------------------------------------------------------------------------------------------------

def test_the_reading_order_names_every_top_level_file_with_its_lines():
    """To one in twenty, or 10 lines: the message has the right number."""
    found = {row[0].split("]")[0].strip("["): int(row[1]) for row in rows(section(README, "Read it in this order"))}
    lines = {path.name: len(path.read_text().splitlines()) for path in ROOT.glob("*.py")}
    assert found.keys() == lines.keys() and next(iter(found)) == "config.py"
    wrong = [f"{name}: {n}, not {found[name]}" for name, n in lines.items() if abs(n - found[name]) > max(10, n / 20)]
    assert wrong == []


def test_the_readme_is_read_in_one_sitting_and_leads_to_every_page():
    assert len(TEXT[README].splitlines()) <= 240
    assert {path for path in PAGES[1:] if f"](docs/{path.name})" not in TEXT[README]} == set()


# ---- prose ------------------------------------------------------------------------------------------------------

@each_page
def test_no_sentence_is_longer_than_32_words(path):
    """Tables, code and headings are no sentences."""
    prose = re.sub(r"```.*?```", "\n\n", TEXT[path], flags=re.S)
    prose = re.sub(r"^\s*[|#!<].*$", "", prose, flags=re.M)
    sentences = [sentence for paragraph in re.split(r"\n\s*\n", prose)
                 for sentence in re.split(r"(?<=[.!?:;])\s+(?=[A-Z`*\[(])", " ".join(paragraph.split()))]
    assert [sentence for sentence in sentences if len(sentence.split()) > 32] == []


# ---- commands ---------------------------------------------------------------------------------------------------

def commands(text):
    """Every command line of ours in a page: in bash blocks, and in prose between backticks."""
    blocks = [block.replace("\\\n", "") for block in re.findall(r"```bash\n(.*?)```", text, re.S)]
    lines = [line.split("  #")[0] for block in blocks for line in block.splitlines()]
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    lines += [" ".join(line.split()) for line in re.findall(r"`(python [^`]*)`", prose)]
    return [part.strip() for line in lines for part in line.split(" && ")
            if re.search(r"(^|[ /])(\w+\.py|-m (bench|support|worlds|pytest))\b", part)]


class Understood(BaseException):
    """Raised where a program has read its flags and would begin."""


@pytest.mark.parametrize("command", sorted(set(commands(EVERYTHING))))
def test_the_pages_commands_are_understood(command, monkeypatch):
    """Every flag that a page shows exists, also where the command needs data or weights that are not here."""
    words = shlex.split(command)
    at = next(i for i, word in enumerate(words) if word == "-m" or word.endswith(".py"))
    program, *argv = words[at:] if words[at] != "-m" else words[at + 1:]
    if program == "pytest" or program.startswith("tests/"):
        assert all((ROOT / word).exists() for word in (program, *argv) if word.startswith("tests/"))
        return
    read = flags.Parser.parse_args

    def stop(*given):
        read(*given)
        raise Understood
    monkeypatch.setattr(flags.Parser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [program, *argv])
    with pytest.raises(Understood):
        if program.endswith(".py"):
            runpy.run_path(str(ROOT / program), run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__")


@pytest.mark.long
def test_the_tour_quotes_what_model_py_prints():
    """Every block of the pass in docs/reading.md, line by line."""
    command = [sys.executable, "model.py", "--config", "a1_2b"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    blocks = re.findall(r"```(\w*)\n(.*?)```", TEXT[ROOT / "docs/reading.md"], re.S)
    quoted = [line for language, block in blocks if not language for line in block.splitlines() if line]
    assert len(quoted) > 30 and [line for line in quoted if line not in printed] == []


@pytest.mark.long
def test_the_quick_starts_commands_and_the_bare_a1_2b_run_shortened(tmp_path):
    """In a copy, with a small dataset: each as written, further flags behind it, and the closed loop of
    docs/conveyor.md; then `--init scratch`, and that run once more, which needs no weights but its own. Small pictures in
    float32: else these two steps take minutes, and more than an hour on a CPU without instructions for bfloat16."""
    for path in (*ROOT.glob("*.py"), ROOT / "support", ROOT / "worlds", ROOT / "examples"):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    conveyor.write_dataset(tmp_path / "data/conveyor", episodes=60)
    quick = [line for line in commands(section(README, "Quick start")) if "pytest" not in line]
    quick += [line for line in commands(section(ROOT / "docs/conveyor.md", "The main run")) if "--controls" in line]
    short = {"train.py": "--steps 2 --decay_steps 2 --batch_size 2 --eval_windows 2 --episodes 1 --threads 1"}
    ran = [shlex.split(command)[1:] for command in quick]
    assert [words[0] for words in ran] == ["train.py", "infer.py", "infer.py"]
    for start in ("--init scratch", "--resume"):
        ran.append(f"train.py --config a1_2b {start} --data conveyor --layers 1 --vit_layers 1 --accumulate 1 "
                   "--optimizer fp32 --vae_size 64 --image_size 56 --vit_grid 4".split())
    for words in ran:
        more = short.get(words[0], "--episodes 2" if "--closed-loop" in words else "")
        done = subprocess.run([sys.executable, *words, *more.split()], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr)
        assert ("resuming runs/a1_2b" in done.stdout) == ("--resume" in words)
    assert (tmp_path / "rollouts/report.json").exists() and (tmp_path / "examples/conveyor/result/foresight.png").exists()
