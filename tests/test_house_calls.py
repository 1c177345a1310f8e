"""The house's rules about calls: what has many parts is named at the call, and one module knows a worker's place."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
MOST = 5
"""Fields of a dataclass that may be given by position, and arguments of a call."""
ANY_NUMBER = {"command", "suppress", "warning", "_chain"}
"""Functions that take a list of like things, as their arguments."""
PLACE = {"RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
"""Variables by which a launcher tells a worker its place."""


def nodes() -> Iterator[tuple[str, ast.AST]]:
    for folder in ("pipeline", "jobs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                yield path.relative_to(ROOT).as_posix(), node


def name_of(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))


def is_positional(node: ast.ClassDef) -> bool:
    """Whether it is a dataclass whose fields can be given by position."""
    for mark in node.decorator_list:
        call = mark if isinstance(mark, ast.Call) else ast.Call(mark, [], [])
        if name_of(call.func) == "dataclass":
            return "kw_only" not in {keyword.arg for keyword in call.keywords}
    return False


def test_large_dataclasses_are_keyword_only() -> None:
    wrong, seen = [], 0
    for file, node in nodes():
        if isinstance(node, ast.ClassDef) and sum(isinstance(part, ast.AnnAssign) for part in node.body) > MOST:
            seen += 1
            wrong += [f"{file}:{node.lineno} {node.name}"] if is_positional(node) else []
    assert seen > 20 and not wrong, f"with more than {MOST} fields: write @dataclass(kw_only=True)"


def test_no_call_is_a_long_row_of_positions() -> None:
    calls = [(file, node) for file, node in nodes() if isinstance(node, ast.Call) and len(node.args) > MOST]
    wrong = [f"{file}:{node.lineno} {name_of(node.func)}" for file, node in calls if name_of(node.func) not in ANY_NUMBER]
    assert calls and not wrong, f"more than {MOST} arguments by position: name the last ones"


def read_names(node: ast.AST) -> Iterator[str]:
    """Names that `environ.get("X")`, `environ["X"]`, `getenv("X")` or `"X" in environ` ask for."""
    if isinstance(node, ast.Call) and name_of(node.func) in ("get", "getenv", "pop") and node.args:
        asked = ast.unparse(node.func) in ("os.getenv", "os.environ.get", "os.environ.pop", "environ.get", "getenv")
        values: list[ast.AST] = [node.args[0]] if asked else []
    elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and name_of(node.value) == "environ":
        values = [node.slice]
    elif isinstance(node, ast.Compare) and any(name_of(right) == "environ" for right in node.comparators):
        values = [node.left]
    else:
        values = []
    yield from (value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str))


def test_one_module_knows_a_workers_place() -> None:
    """The launchers of pipeline/cluster set these variables, and read schedulers' for the processes that they start."""
    found = [(file, node.lineno) for file, node in nodes() if PLACE & set(read_names(node)) and hasattr(node, "lineno")]
    readers = {file for file, _ in found if not file.startswith("pipeline/cluster/")}
    assert readers == {"pipeline/engine/ranks.py"}, f"ask `Ranks` or `launched_as`: {found}"
