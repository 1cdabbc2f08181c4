"""Design 2 and 8: what may import what, and how large a piece may be. The sources are read, not run."""

import ast
import functools
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP, SUPPORT = sorted(ROOT.glob("*.py")), sorted((ROOT / "support").glob("*.py"))
PRODUCT = [path for path in TOP + SUPPORT if path.name != "__init__.py"]
LAYERS = {
    "scripts": ("train", "infer", "bench"),
    "L7": ("support.latency", "support.data_bench", "support.run"),
    "L6": ("support.policy", "support.evaluate", "support.open_loop"),
    "L5": ("support.engine", "support.plain_arm"),
    "L4": ("support.weights", "support.memory", "support.program"),
    "L3": ("model", "support.training", "support.fused"),
    "L2": ("data", "conveyor"),
    "readers": ("support.folder_source", "support.lerobot_reader"),
    "faults": ("support.inspection",),
    "L1": ("experts", "cosmos_vae", "support.frame_cache", "support.mixture", "support.prompts", "support.optim",
           "support.statistics", "support.checkpoint", "support.pictures", "support.tensor_files", "support.roofline",
           "support.flags", "support.key_maps", "support.parquet"),
    "L0": ("config", "attention_mask", "flow", "lpt", "support.robots", "support.record", "support.letterbox",
           "support.video", "support.distributed", "support.linear"),
}
HEIGHT = {module: height for height, names in enumerate(reversed(LAYERS.values())) for module in names}
CORE = {"torch", "transformers", "huggingface_hub", "safetensors", "numpy", "PIL", "tqdm"}   # the hub with transformers
ROBOT = {"pyarrow", "av"}                              # requirements-robot.txt


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@functools.cache
def tree(path):
    return ast.parse(path.read_text())


def imports(path):
    """Dotted names of everything that a file imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
            found.add(node.module)
    return found


def ours(path):
    """The modules of this project that a file imports."""
    return imports(path) & set(HEIGHT)


def functions(path):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree(path)) if isinstance(node, kinds)]


each_file = pytest.mark.parametrize("path", PRODUCT, ids=name_of)


@each_file
def test_imports_go_to_lower_layers_only(path):
    """Design 2; a new file needs a row in LAYERS, a top-level one also a section of the paper."""
    assert name_of(path) in HEIGHT, f"{name_of(path)} stands in no layer"
    upwards = {module for module in ours(path) if HEIGHT[module] >= HEIGHT[name_of(path)]}
    assert not upwards


def test_scripts_never_import_each_other_and_nobody_imports_a_script():
    """Design 2: train.py, infer.py and bench.py stand alone."""
    scripts = set(LAYERS["scripts"])
    assert all(not imports(path) & scripts for path in PRODUCT)
    assert {"train", "infer"} <= {name_of(path) for path in TOP}


@each_file
def test_no_package_beyond_the_core_list_is_imported(path):
    """Design 1: torch, transformers, safetensors, numpy, pillow, tqdm; pyarrow and av where LeRobot's files are read."""
    roots = {module.split(".")[0] for module in imports(path)}
    local = {name.split(".")[0] for name in HEIGHT}
    allowed = CORE | (ROBOT if path.name in ("parquet.py", "video.py", "data_bench.py") else set())
    assert roots - local - set(sys.stdlib_module_names) <= allowed


@each_file
def test_transformers_is_imported_only_by_support_weights_and_support_prompts(path):
    """Design 2: configs, hub and tokenizers; the network is our own."""
    if name_of(path) not in ("support.weights", "support.prompts"):
        assert "transformers" not in {module.split(".")[0] for module in imports(path)}


@pytest.mark.parametrize("path", PRODUCT + sorted((ROOT / "tests").glob("*.py")), ids=lambda path: path.stem)
def test_nobody_unpickles(path):
    """Design 1 and 6: no pickle; torch.load only with weights_only=True, numpy files without objects."""
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
def test_no_function_is_longer_than_60_lines_except_the_training_loop(path):
    """Design 8."""
    loop = path.name == "train.py"                      # one loop, visible on two screens
    lengths = [(f.name, f.end_lineno - f.lineno + 1) for f in functions(path)]
    assert [(name, length) for name, length in lengths if length > (180 if loop and name == "run" else 60)] == []


@pytest.mark.parametrize("path", TOP, ids=name_of)
def test_no_line_of_the_top_level_is_wider_than_120(path):
    """Design 8: to be read beside the paper."""
    wide = [i for i, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 120]
    assert not wide, f"{path.name}: lines {wide}"


@pytest.mark.parametrize("name", ["config.py", "lpt.py"])
def test_config_and_lpt_import_no_torch_and_nothing_of_ours(name):
    """Design 2: the lowest layer; the flags of --help cost no import of torch."""
    assert {module.split(".")[0] for module in imports(ROOT / name)} <= set(sys.stdlib_module_names)


@each_file
def test_every_module_says_what_it_is_for(path):
    """Design 8: comments and docstrings; a module begins with a sentence."""
    first = (ast.get_docstring(tree(path)) or "").split("\n")[0]
    assert len(first.split()) >= 3
