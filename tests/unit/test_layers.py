"""Who may import whom. The imports are read from the source, so nothing needs to load for the test to judge."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("features", "jobs", "model")

# Package → what nothing in it may import, and why.
FORBIDDEN = {
    "features": ("model", "jobs", "tensorflow", "keras", "petastorm", "horovod", "benchmarks", "tests"),
    "model": ("pyspark", "jobs", "benchmarks", "tests"),
    "jobs": ("tensorflow", "keras", "benchmarks", "tests"),
}
# What model may import of features: plain constants.
SHARED = "features.columns"
# Library → the modules that may import it, so that it can be replaced there.
ONLY_IN = {
    "petastorm": ("model.feed",),
    "horovod": ("model.workers", "model.elastic"),
    "mlflow": ("jobs.tracking",),
    "optuna": ("jobs.search",),
    "tqdm": ("model.bar",),
    "kaleido": ("jobs.report_images",),
    "faiss": ("model.item_index",),
}
# The exception: Horovod's launcher for Spark starts ranks and loads no TensorFlow.
ALSO_IN = {"jobs.spark_ranks": ("horovod.spark", "horovod.runner")}
# What is used where TensorFlow is not wanted: in Spark's driver and its workers, in what starts ranks.
WITHOUT_TENSORFLOW = (
    "model.spec",
    "model.metrics",
    "model.baselines",
    "model.errors",
    "model.evaluation",
    "model.leaks",
    "model.paired",
    "model.calibration",
    "model.cohorts",
    "model.ensemble",
    "model.returns",
    "model.watch",
    "model.bar",
)


def sources() -> dict[str, str]:
    """Source text by module name, for every module of the three packages."""
    files = (path for package in PACKAGES for path in (TOP / package).rglob("*.py"))
    names = {path: ".".join(path.relative_to(TOP).with_suffix("").parts) for path in files}
    return {name.removesuffix(".__init__"): path.read_text(encoding="utf-8") for path, name in names.items()}


def imports(module: str, source: str, top_level_only: bool = False) -> Iterator[str]:
    """Every module that a source imports, as full dotted names; `from a import b` gives a.b. Relative ones resolved."""
    tree = ast.parse(source)
    for node in tree.body if top_level_only else ast.walk(tree):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                parents = module.split(".")[: -node.level] if node.level else []
                base = ".".join([*parents, *([node.module] if node.module else [])])
                yield from (f"{base}.{alias.name}" for alias in node.names)
            case ast.Call(func=ast.Name(id="__import__" | "import_module"), args=[ast.Constant(value=str(name)), *_]):
                yield name
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
                yield name


def violations(module: str, source: str) -> list[str]:
    """Every broken rule of one module, each as a sentence."""
    package, *rest = module.split(".")
    found = []
    for name in imports(module, source):
        library = name.split(".")[0]
        if library in FORBIDDEN[package]:
            found.append(f"{module} imports {name}: {package}/ never imports {library}")
        if package == "model" and library == "features" and not f"{name}.".startswith(f"{SHARED}."):
            found.append(f"{module} imports {name}: of features, model/ may import {SHARED} only")
        if any(f"{name}.".startswith(f"{allowed}.") for allowed in ALSO_IN.get(module, ())):
            continue
        if library in ONLY_IN and module not in ONLY_IN[library] and library not in FORBIDDEN[package]:
            found.append(f"{module} imports {name}: {library} belongs in {' and '.join(ONLY_IN[library])} only")
    if package == "jobs" and rest and rest[0] in sys.stdlib_module_names:
        found.append(f"{module} hides Python's own {rest[0]} under spark-submit, where jobs/ is first on the path")
    return found


def loaded_with(module: str, modules: dict[str, str]) -> set[str]:
    """Everything that importing a module imports at once, through the project's own modules too."""
    seen: set[str] = set()
    waiting = [module, module.split(".")[0]]
    while waiting:
        current = waiting.pop()
        if current in modules:
            for name in imports(current, modules[current], top_level_only=True):
                for candidate in {name, name.rpartition(".")[0]} - seen - {""}:
                    seen.add(candidate)
                    waiting.append(candidate)
    return seen


def test_every_module_keeps_the_layers() -> None:
    modules = sources()
    assert set(PACKAGES) <= set(modules)
    broken = [problem for name, source in sorted(modules.items()) for problem in violations(name, source)]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("module", WITHOUT_TENSORFLOW)
def test_light_modules_load_without_tensorflow(module: str) -> None:
    modules = sources()
    assert module in modules
    heavy = {name for name in loaded_with(module, modules) if name.split(".")[0] in ("tensorflow", "keras", "horovod")}
    assert not heavy


@pytest.mark.parametrize(
    ("module", "source", "rule"),
    [
        ("features.sessions", "import model", "features/ never imports model"),
        ("features.sessions", "from jobs.store import Store", "features/ never imports jobs"),
        ("features.sessions", "from jobs import store", "features/ never imports jobs"),
        ("features.sessions", "def f():\n    import tensorflow as tf", "features/ never imports tensorflow"),
        ("features.sessions", "import horovod.tensorflow as hvd", "features/ never imports horovod"),
        ("features.sessions", "from petastorm.reader import Reader", "features/ never imports petastorm"),
        (
            "features.sessions",
            "import importlib\nimportlib.import_module('model.spec')",
            "features/ never imports model",
        ),
        ("features.sessions", "from ..model import spec", "features/ never imports model"),
        ("model.network", "from pyspark.sql import DataFrame", "model/ never imports pyspark"),
        ("model.network", "if x:\n    from jobs.cli import say", "model/ never imports jobs"),
        ("model.network", "import features", "may import features.columns only"),
        ("model.network", "from features import contracts", "may import features.columns only"),
        ("model.network", "from features.columns_v2 import PAD", "may import features.columns only"),
        ("model.network", "import petastorm", "petastorm belongs in model.feed only"),
        ("model.feed", "import horovod", "horovod belongs in model.workers and model.elastic only"),
        ("jobs.train", "import horovod.tensorflow", "horovod belongs in model.workers and model.elastic only"),
        ("jobs.train", "import horovod.spark", "horovod belongs in model.workers and model.elastic only"),
        (
            "jobs.spark_ranks",
            "import horovod.tensorflow as hvd",
            "horovod belongs in model.workers and model.elastic only",
        ),
        ("jobs.train", "from mlflow.tracking import MlflowClient", "mlflow belongs in jobs.tracking only"),
        ("jobs.watching", "import tqdm", "tqdm belongs in model.bar only"),
        ("model.predict", "import faiss", "faiss belongs in model.item_index only"),
        ("jobs.train", "import tensorflow", "jobs/ never imports tensorflow"),
        ("jobs.logging", "", "hides Python's own logging"),
        ("jobs.io", "", "hides Python's own io"),
        ("jobs.types", "", "hides Python's own types"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str, rule: str) -> None:
    (problem,) = violations(module, source)
    assert rule in problem


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "features.sessions",
            "from pyspark.sql import functions as F\nimport pyarrow\nfrom features import columns as c",
        ),
        (
            "model.network",
            "import tensorflow as tf\nfrom features import columns as c\nfrom features.columns import PAD",
        ),
        ("model.network", "import features.columns\nfrom model.spec import NetworkSpec\nfrom . import losses"),
        ("model.feed", "from petastorm import make_batch_reader"),
        ("model.workers", "import horovod.tensorflow as hvd"),
        ("model.elastic", "from horovod.tensorflow import elastic"),
        ("jobs.train", "from model.training import train\nfrom features.contracts import SCORES\nimport pyspark"),
        ("jobs.spark_ranks", "import horovod.spark\nfrom horovod.runner import gloo_run"),
        ("jobs.doctor", "CODE = 'import horovod, petastorm, tensorflow'"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert violations(module, source) == []


def test_tensorflow_is_found_behind_a_module_of_our_own() -> None:
    modules = {"model.metrics": "from model.losses import loss", "model.losses": "import tensorflow as tf"}
    assert "tensorflow" in loaded_with("model.metrics", modules)
    lazy = {"model.metrics": "from model.losses import loss", "model.losses": "def f():\n    import tensorflow"}
    assert "tensorflow" not in loaded_with("model.metrics", lazy)
