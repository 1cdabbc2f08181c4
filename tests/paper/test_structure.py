"""Which room may know of which, and how large a piece may be. The sources are read, not run."""

import ast
import functools
import sys
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAPER = ("config", "attention_mask", "flow", "experts", "model", "cosmos_vae", "data", "lpt", "train", "infer")
FOLDERS = [ROOT / name for name in ("support", "worlds", "bench")]
TOP = sorted(ROOT.glob("*.py"))
PRODUCT = TOP + sorted(path for folder in FOLDERS for path in folder.rglob("*.py") if "__pycache__" not in path.parts)
TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py"))
# From the ground up. A module imports what stands on a lower floor, or in its own room (a folder) without a circle.
FLOORS = (
    ("support.bounds", "support.entry", "support.owner", "support.progress"),
    ("support.files",),
    ("config", "flow", "attention_mask", "lpt", "support.rotary"),
    ("support.flags", "support.pictures", "support.checkpoint"),
    ("support.data",),
    ("support.vision", "support.tiny"),
    ("experts", "cosmos_vae"),
    ("data", "model"),
    ("support.table1",),
    ("support.trace", "support.weights", "support.lpt_cost"),
    ("support.training",),
    ("support.inference",),
    ("worlds",),
    ("bench",),
    ("train", "infer"),
)
HEIGHT = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
CORE = {"torch", "transformers", "huggingface_hub", "safetensors", "numpy", "PIL", "tqdm"}   # the hub with transformers
ROBOT, SERVING = {"pyarrow", "av"}, {"websockets", "msgpack"}                                # requirements-robot.txt
SIMULATOR = {"gym_aloha", "mujoco"}                                                          # requirements-aloha.txt


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(path) for path in PRODUCT}


def room_of(name):
    """The entry of FLOORS that a module belongs to; a module that belongs to none is its own, and fails the test."""
    return next((room for room in HEIGHT if f"{name}.".startswith(f"{room}.")), name)


@functools.cache
def tree(path):
    return ast.parse(path.read_text())


@functools.cache
def imports(path):
    """Dotted names of everything that a file imports."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "."} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def packages(path):
    return {module.split(".")[0] for module in imports(path)}


def ours(path):
    """The modules of this project that a file imports; a package counts where no module of it is named."""
    found = imports(path) & NAMES
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def wrong(holds, paths=PRODUCT):
    """The files for which a rule does not hold."""
    return [name_of(path) for path in paths if not holds(path)]


# ---- who imports whom -------------------------------------------------------------------------------------------

def test_the_top_level_is_the_paper():
    """A new top-level file needs a section of the paper as its reason."""
    assert {path.stem for path in TOP} == set(PAPER)


def test_imports_go_downward_rooms_included():
    """A module imports what stands on a lower floor, or in its own room. No room imports another in a circle."""
    def downward(path):
        room = room_of(name_of(path))
        above = [other for other in ours(path) if room_of(other) != room and HEIGHT[room_of(other)] >= HEIGHT[room]]
        return "." not in imports(path) and not above

    assert wrong(downward, [path for path in PRODUCT if name_of(path) != "support"]) == []
    TopologicalSorter({name_of(path): ours(path) for path in PRODUCT}).prepare()   # inside a room too


def test_nobody_imports_a_script_or_the_bench():
    """train.py and infer.py stand alone, and so does bench/."""
    assert wrong(lambda path: not {"train", "infer"} & packages(path)) == []
    assert wrong(lambda path: path.parent.name == "bench" or "bench" not in packages(path)) == []


def test_no_package_beyond_the_core_list_is_imported():
    """Torch, transformers, safetensors, numpy, pillow, tqdm; pyarrow and av where LeRobot's files are read, h5py where
    RoboTwin's are; websockets and msgpack where a policy is served; gym-aloha and mujoco in one file of worlds/aloha.
    The client for a robot's machine is one file of its own."""
    known = CORE | {name.split(".")[0] for name in NAMES} | set(sys.stdlib_module_names)
    robot = {"support.data.parquet": ROBOT, "support.data.video": ROBOT, "support.inference.protocol": SERVING,
             "support.inference.client": SERVING, "support.data.robotwin": {"h5py"},
             "worlds.aloha.sim": SIMULATOR}
    assert wrong(lambda path: packages(path) <= known | robot.get(name_of(path), set())) == []
    assert wrong(lambda path: "transformers" not in packages(path) or name_of(path) == "support.data.prompts") == []
    assert packages(ROOT / "support/inference/client.py") <= SERVING | {"numpy"} | set(sys.stdlib_module_names)
    for name in ("config.py", "lpt.py", "support/bounds.py"):   # read without anything installed
        assert packages(ROOT / name) <= {"support"} | set(sys.stdlib_module_names), name


# ---- what a file may hold ---------------------------------------------------------------------------------------

def test_every_folder_says_in_a_few_sentences_what_is_in_it_and_what_is_not():
    folders = sorted({path.parent / "__init__.py" for path in PRODUCT if path.parent != ROOT})
    assert wrong(lambda path: 10 <= len(ast.get_docstring(tree(path)).split()) <= 80, folders) == []


def test_every_module_says_what_it_is_for():
    """A module begins with a sentence."""
    assert wrong(lambda path: len((ast.get_docstring(tree(path)) or "").split("\n")[0].split()) >= 3) == []


def test_nobody_unpickles():
    """No pickle; torch.load only with weights_only=True, numpy files without objects."""
    def safe_call(node):
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        weights_only = ast.unparse(node.func) != "torch.load" or given.get("weights_only") == "True"
        return weights_only and given.get("allow_pickle", "False") == "False"

    def safe(path):
        banned = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
        return not packages(path) & banned and all(safe_call(node) for node in ast.walk(tree(path))
                                                   if isinstance(node, ast.Call))

    assert wrong(safe, PRODUCT + TESTS) == []


def test_no_function_is_longer_than_60_lines_and_no_line_wider_than_120():
    """What is longer has two jobs."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert [(name_of(path), node.name) for path in PRODUCT for node in ast.walk(tree(path))
            if isinstance(node, kinds) and node.end_lineno - node.lineno >= 60] == []
    assert wrong(lambda path: max(map(len, path.read_text().splitlines())) <= 120) == []
