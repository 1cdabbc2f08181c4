"""Which room may know of which, and how large a piece may be. The sources are read, not run."""

import ast
import functools
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAPER = ("config", "attention_mask", "flow", "experts", "model", "cosmos_vae", "data", "lpt", "train", "infer")
FOLDERS = [ROOT / name for name in ("support", "worlds", "bench")]
TOP = sorted(ROOT.glob("*.py"))
PRODUCT = TOP + sorted(path for folder in FOLDERS for path in folder.rglob("*.py") if "__pycache__" not in path.parts)
TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py"))
# From the ground up. A module imports what stands on a lower floor, or in its own room (a folder) without a circle.
FLOORS = (
    ("config", "flow", "attention_mask", "lpt", "support.rotary"),
    ("support.flags", "support.progress", "support.pictures", "support.checkpoint"),
    ("support.data", "support.plots"),
    ("support.vision", "support.tiny"),
    ("experts", "cosmos_vae"),
    ("data", "model"),
    ("support.precision", "support.table1"),
    ("support.trace", "support.weights"),
    ("support.training",),
    ("support.inference",),
    ("worlds",),
    ("bench",),
    ("train", "infer"),
)
HEIGHT = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
CORE = {"torch", "transformers", "huggingface_hub", "safetensors", "numpy", "PIL", "tqdm"}   # the hub with transformers
ROBOT = {"pyarrow", "av"}                                                                    # requirements-robot.txt


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(path) for path in PRODUCT}


def room_of(name):
    """The folder that a module stands in, or the module itself where it stands beside the rooms."""
    parts = name.split(".")
    return name if parts[0] == "support" and len(parts) == 2 and name not in ROOMS else \
        ".".join(parts[:2]) if parts[0] == "support" else parts[0]


ROOMS = {f"support.{path.name}" for path in (ROOT / "support").iterdir() if path.is_dir() and path.name != "__pycache__"}


@functools.cache
def tree(path):
    return ast.parse(path.read_text())


def imports(path):
    """Dotted names of everything that a file imports, at the top or inside functions; not what it imports when it is run
    as a script, under `if __name__ == "__main__"`."""
    found, body = set(), [node for node in tree(path).body if not (isinstance(node, ast.If) and "__main__" in ast.unparse(node.test))]
    for node in (inner for outer in body for inner in ast.walk(outer)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
            found.add(node.module)
    return found


def ours(path):
    """The modules of this project that a file imports; a package counts where a module of it is not named."""
    return (imports(path) & NAMES) - {"support", "support.data", "support.training", "support.inference", "support.weights",
                                      "worlds", "bench"}


def functions(path):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree(path)) if isinstance(node, kinds)]


each_file = pytest.mark.parametrize("path", PRODUCT, ids=name_of)


def test_the_top_level_is_the_paper():
    """A new top-level file needs a section of the paper as its reason."""
    assert {path.stem for path in TOP} == set(PAPER)


@each_file
def test_imports_go_downward_rooms_included(path):
    """A module imports what stands on a lower floor, or in its own room."""
    room = room_of(name_of(path))
    if name_of(path) == "support":
        return
    assert room in HEIGHT, f"{room} stands on no floor"
    assert not {other for other in ours(path) if room_of(other) != room and HEIGHT[room_of(other)] >= HEIGHT[room]}


def test_no_modules_import_each_other_in_a_circle():
    """Inside a room too."""
    TopologicalSorter({name_of(path): ours(path) for path in PRODUCT}).prepare()


def test_nobody_imports_a_script_or_the_bench():
    """train.py and infer.py stand alone, and so does bench/."""
    for path in PRODUCT:
        assert not {"train", "infer"} & imports(path), path
        assert path.parent.name == "bench" or not any(name.split(".")[0] == "bench" for name in imports(path)), path


@pytest.mark.parametrize("folder", sorted({path.parent for path in PRODUCT} - {ROOT}), ids=lambda path: path.name)
def test_every_folder_says_in_a_few_sentences_what_is_in_it_and_what_is_not(folder):
    text = ast.get_docstring(tree(folder / "__init__.py"))
    assert 10 <= len(text.split()) <= 80


@each_file
def test_no_package_beyond_the_core_list_is_imported(path):
    """Torch, transformers, safetensors, numpy, pillow, tqdm; pyarrow and av where LeRobot's files are read."""
    roots = {module.split(".")[0] for module in imports(path)}
    local = {name.split(".")[0] for name in NAMES}
    allowed = CORE | (ROBOT if name_of(path) in ("support.data.parquet", "support.data.video", "bench.reading") else set())
    assert roots - local - set(sys.stdlib_module_names) <= allowed


@each_file
def test_transformers_is_imported_only_by_support_weights_and_support_prompts(path):
    """Configs, hub and tokenizers; the network is our own."""
    if name_of(path) not in ("support.weights.loading", "support.data.prompts"):
        assert "transformers" not in {module.split(".")[0] for module in imports(path)}


@pytest.mark.parametrize("path", PRODUCT + TESTS, ids=name_of)
def test_nobody_unpickles(path):
    """No pickle; torch.load only with weights_only=True, numpy files without objects."""
    banned = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
    assert not {module.split(".")[0] for module in imports(path)} & banned
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        options = {word.arg: word.value for word in node.keywords}
        if ast.unparse(node.func) == "torch.load":
            only = options.get("weights_only")
            assert isinstance(only, ast.Constant) and only.value is True, f"{path.name}:{node.lineno}"
        allow = options.get("allow_pickle", ast.Constant(False))
        assert isinstance(allow, ast.Constant) and not allow.value, f"{path.name}:{node.lineno}"


@each_file
def test_no_function_is_longer_than_60_lines(path):
    """What is longer has two jobs."""
    lengths = [(f.name, f.end_lineno - f.lineno + 1) for f in functions(path)]
    assert [(name, length) for name, length in lengths if length > 60] == []


@pytest.mark.parametrize("path", TOP, ids=name_of)
def test_no_line_of_the_top_level_is_wider_than_120(path):
    """To be read beside the paper."""
    wide = [i for i, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 120]
    assert not wide, f"{path.name}: lines {wide}"


@pytest.mark.parametrize("name", ["config.py", "lpt.py"])
def test_config_and_lpt_import_no_torch_and_nothing_of_ours(name):
    """The lowest layer; the flags of --help cost no import of torch."""
    assert {module.split(".")[0] for module in imports(ROOT / name)} <= set(sys.stdlib_module_names)


@each_file
def test_every_module_says_what_it_is_for(path):
    """Comments and docstrings; a module begins with a sentence."""
    first = (ast.get_docstring(tree(path)) or "").split("\n")[0]
    assert len(first.split()) >= 3
