"""README.md: the paper map points at things that exist, and the layout table names every top-level file."""

import ast
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from worlds import conveyor

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")]
        for line in README.split("## Paper map")[1].split("\n## ")[0].splitlines() if line.startswith("| ")][1:]


def definitions(path):
    """Names of functions and Class.methods defined in a file."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
    return names


@pytest.mark.parametrize("claim, where, test", ROWS, ids=[row[0][:40] for row in ROWS])
def test_every_claim_of_the_paper_map_has_its_function_and_its_test(claim, where, test):
    """README, Paper map; a claim without both is marked as not reproduced, with the reason."""
    if where == "not reproduced":
        assert len(test) > 10
        return
    for pointer, folder in ((where, ROOT), (test, ROOT / "tests")):
        file, name = pointer.strip("`").split(":")
        assert name in definitions(folder / file), f"{pointer} does not exist"


def test_the_equations_and_the_lpt_rule_are_cited_where_they_are_computed():
    """Eq. (1) to (4) and the argmin rule can be found with grep."""
    for text, file in (("Eq. (1)", "model.py"), ("Eq. (2)", "model.py"), ("Eq. (3)", "flow.py"), ("Eq. (4)", "model.py"),
                       ("argmin", "lpt.py"), ("Table 1", "config.py"), ("Table 2", "config.py"), ("Table 3", "lpt.py")):
        assert text in (ROOT / file).read_text(), f"{text} is not cited in {file}"


def test_the_reading_order_names_every_top_level_file():
    """README, Read it in this order."""
    linked = set(re.findall(r"\]\((\w+\.py)\)", README))
    assert linked == {path.name for path in ROOT.glob("*.py")}


def test_the_pictures_of_the_readme_exist():
    """Every picture shown is in the repository."""
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / name).is_file(), name


COMMANDS = [command for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines()
            for command in re.split(r" && ", line.split("  #")[0]) if re.search(r"\b(train|infer|bench)\.py\b", command)]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readmes_commands_are_understood(command):
    """Every flag that the README shows exists, also where the command needs data or weights that are not here."""
    words = shlex.split(command)
    at = next(i for i, word in enumerate(words) if word.endswith(".py"))
    importlib.import_module(words[at].removesuffix(".py")).parse(words[at + 1:])


@pytest.mark.long
def test_the_quick_starts_commands_and_the_bare_a1_2b_run_shortened(tmp_path):
    """In a copy, with a small dataset: each as written, further flags behind it; then design.md 7's `--init scratch`,
    and that run once more, which needs no weights but its own."""
    for path in (*ROOT.glob("*.py"), ROOT / "support", ROOT / "examples"):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    conveyor.write_dataset(tmp_path / "data/conveyor", episodes=60)
    quick = README.split("## Quick start")[1].split("\n## ")[0]
    short = {"train.py": "--steps 2 --decay_steps 2 --batch_size 2 --eval_windows 2 --episodes 2 --threads 1",
             "infer.py": "--episodes 2"}
    ran = [shlex.split(command)[1:] for command in COMMANDS if command in quick]
    assert [words[0] for words in ran] == ["train.py", "infer.py", "infer.py"]
    for start in ("--init scratch", "--resume"):
        ran.append(f"train.py --config a1_2b {start} --data conveyor --layers 1 --vit_layers 1 --accumulate 1".split())
    for words in ran:
        done = subprocess.run([sys.executable, *words, *short[words[0]].split()], cwd=tmp_path, capture_output=True,
                              text=True)
        assert done.returncode == 0, (words, done.stderr)
        assert ("resuming runs/a1_2b" in done.stdout) == ("--resume" in words)
    assert (tmp_path / "rollouts/report.json").exists() and (tmp_path / "examples/conveyor/result/foresight.png").exists()
