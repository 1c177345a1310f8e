"""The house's own rules, read from its sources: sizes, who imports whom, and names in documents that have to exist."""

import ast
import functools
import gc
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("model", "pipeline", "jobs", "benchmarks", "tests", "installing")
LINES, FUNCTION_LINES, IMPORTS = 300, 60, 12
# Exceptions. Nothing is added here; whoever splits one of these takes it off.
LONG_FILES: set[str] = set()
LONG_FUNCTIONS = {"benchmarks/tracking.py: main"}
MANY_IMPORTS = {
    "pipeline/training/loop.py",  # joins all that a training is made of, and stays
    "pipeline/cluster/launch.py",
    "pipeline/cluster/submission.py",
    "pipeline/config.py",
    "pipeline/doctor/cluster.py",
    "pipeline/fault_tolerance/run_mirror.py",
    "pipeline/generation/load.py",
    "pipeline/packing/sources/detect.py",
    "pipeline/runs/resume.py",
    "pipeline/runs/run_folder.py",
    "jobs/doctor.py",
    "jobs/explore.py",
    "jobs/status.py",
    "jobs/train.py",
    "benchmarks/arms/step.py",
    "benchmarks/checkpoint.py",
    "benchmarks/support/fuzz/run_readers.py",
    "benchmarks/support/fuzz/run_seeds.py",
}
ABSENT = {"slurm/site.sh": "the user's own copy of slurm/site.example.sh", "slurm/slurm.h": "Slurm's"}
"""Files that are named and are not in the repository; names with capitals (`jobs/NAME.py`) stand for others."""
DOCUMENTS = ("*.md", "docs/*.md", "benchmarks/*.md", "container/*", "slurm/*", "Makefile", ".ci/run", "pyproject.toml")


@functools.cache
def sources() -> dict[str, tuple[str, ast.Module]]:
    """Text and tree of every Python file, by its path from the root."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    texts = {path.relative_to(ROOT).as_posix(): path.read_text() for path in [*paths, ROOT / "install.py"]}
    gc.disable()  # half a million nodes, none of which is garbage: looking for some takes three times as long as parsing
    try:
        return {name: (text, ast.parse(text)) for name, text in texts.items()}
    finally:
        gc.enable()


@functools.cache
def exists(module: str) -> bool:
    """Whether a dotted name is a module or package of ours; `tests` and `tests.support` have no __init__.py."""
    path = ROOT / module.replace(".", "/")
    return path.with_suffix(".py").is_file() or path.is_dir()


def imported(tree: ast.AST) -> set[str]:
    """Modules of ours that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {whole if exists(whole) else str(node.module) for whole in names.values()}
    return {name for name in found if name.partition(".")[0] in FOLDERS and exists(name)}


@functools.cache
def imports() -> dict[str, set[str]]:
    """`imported` of every file."""
    return {name: imported(tree) for name, (_, tree) in sources().items()}


def test_no_file_is_too_long() -> None:
    long = {name: lines for name, (text, _) in sources().items() if (lines := text.count("\n")) > LINES}
    assert not long.keys() - LONG_FILES, f"of at most {LINES} lines, split along a seam: {long}"
    assert not LONG_FILES - long.keys(), "no longer long: take it off the list"


def test_no_function_is_too_long() -> None:
    found = {}
    for name, (_, tree) in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                found[f"{name}: {node.name}"] = node.end_lineno - node.lineno + 1
    long = {where: lines for where, lines in found.items() if lines > FUNCTION_LINES}
    assert not long.keys() - LONG_FUNCTIONS, f"of at most {FUNCTION_LINES} lines, split along a seam: {long}"
    assert not LONG_FUNCTIONS - long.keys(), "no longer long: take it off the list"


def test_no_module_imports_half_of_the_house() -> None:
    counts = {name: len(modules) for name, modules in imports().items() if not name.startswith("tests/")}
    many = {name: count for name, count in counts.items() if count > IMPORTS}
    assert not many.keys() - MANY_IMPORTS, f"of at most {IMPORTS} modules of ours: {many}"
    assert not MANY_IMPORTS - many.keys(), "no longer many: take it off the list"


def test_tests_import_nothing_of_each_other() -> None:
    """What they share is in tests/support or a fixture; of the benchmarks only tests/benchmarks sees more than the servers."""
    wrong = []
    for name, modules in imports().items():
        if name.startswith("tests/"):
            others = {module for module in modules if is_in(module, "tests") and not is_in(module, "tests.support")}
            if not name.startswith(("tests/benchmarks/", "tests/support/")):
                measured = {module for module in modules if is_in(module, "benchmarks")}
                others |= {module for module in measured if not is_in(module, "benchmarks.servers")}
            wrong += [f"{name} imports {module}" for module in sorted(others)]
    assert not wrong


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_tests_mirror_the_packages() -> None:
    folders = {Path(name).parent.relative_to("tests") for name in sources() if name.startswith("tests/pipeline/")}
    missing = [str(folder) for folder in folders if not (ROOT / folder / "__init__.py").is_file()]
    assert len(folders) > 15 and not missing
    helpers = [name for name in sources() if re.match(r"tests/(?!support/)", name) and not Path(name).name.startswith("test_")]
    assert {Path(name).name for name in helpers} == {"conftest.py"}, "helpers are in tests/support"


def texts() -> Iterator[tuple[str, str]]:
    """Path and text of every document, script and source."""
    for pattern in DOCUMENTS:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file():
                yield path.relative_to(ROOT).as_posix(), path.read_text()
    yield from ((name, text) for name, (text, _) in sources().items() if name != Path(__file__).relative_to(ROOT).as_posix())


@functools.cache
def defined(module: str) -> set[str]:
    """Names that a module binds, its attributes' too: `Class.method` ends in one of them."""
    path = ROOT / module.replace(".", "/")
    name = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).relative_to(ROOT).as_posix()
    tree = sources()[name][1] if name in sources() else ast.Module([], [])
    found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    found |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return found | {(alias.asname or alias.name).partition(".")[0] for alias in aliases(tree)}


def aliases(tree: ast.AST) -> Iterator[ast.alias]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from node.names


def is_real(dotted: str) -> bool:
    """Whether a dotted name is a module of ours, or something in one."""
    parts = dotted.split(".")
    known = max((count for count in range(1, len(parts) + 1) if exists(".".join(parts[:count]))), default=0)
    return known == len(parts) or (known > 1 and parts[known] in defined(".".join(parts[:known])))


@functools.cache
def is_file(name: str) -> bool:
    """Also as seen from tests/, where tracebacks of tests begin."""
    return name in ABSENT or (ROOT / name).exists() or (ROOT / "tests" / name).exists()


def missing(text: str) -> Iterator[str]:
    """What a text names that is not there: `-m MODULE`, `pipeline.x.y`, `folder/file.py`, `folder/`."""
    for module in re.findall(r"-m[\"',]* *[\"']?((?:pipeline|jobs|benchmarks|tests)\.[\w.]*\w)", text):
        if module.islower() and not exists(module):
            yield f"-m {module}"
    for dotted in re.findall(r"(?<![\w./-])(pipeline\.(?!py\b)[a-z_]+(?:\.\w+)*)(?![\w/(-])", text):
        if not is_real(dotted):
            yield dotted
    folders = "model|pipeline|jobs|tests|benchmarks|docs|slurm|container"
    for name in re.findall(rf"(?<![\w./-])((?:{folders})/[\w/.-]*(?:\.\w+\b|/(?=[`\s])))", text):
        if name.islower() and not is_file(name):
            yield name


def test_what_is_named_is_there() -> None:
    """In documents, scripts, comments and messages."""
    wrong = sorted({f"{name} names {what}" for name, text in texts() for what in missing(text)})
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "see `pipeline.stream`",
        "`pipeline.data.loader.Nothing` of",
        "python -m pipeline.restarts RUN",
        '[sys.executable, "-m", "tests.pipeline.measured_step"]',
        "in pipeline/stream.py, as",
        "made by `tests/cluster/` on",
    ],
)
def test_what_is_not_there_is_found(text: str) -> None:
    assert list(missing(text))
    there = "`pipeline.data.loader.DataConfig`, pipeline.storage, -m pipeline.cluster.restarts, docs/slurm.md, `tests/support/`"
    assert not list(missing(there))
