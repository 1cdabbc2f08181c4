"""README.md: the paper map points at things that exist, and the layout table names every top-level file."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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
    """Every flag that the README shows exists; .ci/run executes them, shortened."""
    words = shlex.split(command)
    at = next(i for i, word in enumerate(words) if word.endswith(".py"))
    importlib.import_module(words[at].removesuffix(".py")).parse(words[at + 1:])
