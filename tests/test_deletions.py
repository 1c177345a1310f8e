"""Only `storage.removal` deletes, and `storage.temporary` what it has made itself: no other module has a call that could."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {"pipeline/storage/removal.py", "pipeline/storage/temporary.py"}
LOW_LEVEL = {"pipeline/storage/files.py": {"remove", "_remove", "remove_empty"}}
"""Functions that delete what they are told to: their callers are looked for here as well."""

ALWAYS = {"unlink", "rmtree", "rmdir", "removedirs", "rename", "renames", "rm", "rm_file", "rm_dir"}
OF_MODULES = {
    *(("os", name) for name in ("remove", "replace", "truncate")),
    *(("shutil", name) for name in ("move",)),
    *(("obstore", name) for name in ("delete", "rename")),
    *(("storage", name) for name in ("remove", "remove_empty", "_remove")),
}
MODULES = {module for module, _ in OF_MODULES}


def deletions(source: str, allowed: frozenset[str] = frozenset()) -> Iterator[int]:
    """Yield the lines that delete or rename something, outside of the functions `allowed`."""
    tree = ast.parse(source)
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name in allowed
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if id(node) not in inside and _deletes(node):
            yield getattr(node, "lineno", 0)


def _deletes(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        module = (node.module or "").rpartition(".")[2]
        return module in MODULES and any(name.name in ALWAYS or (module, name.name) in OF_MODULES for name in node.names)
    if isinstance(node, ast.Constant):
        return node.value in ("rm", "unlink", "rmdir", "rmtree")  # a program, or getattr
    if isinstance(node, ast.Attribute):
        return node.attr in ALWAYS or (isinstance(node.value, ast.Name) and (node.value.id, node.attr) in OF_MODULES)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "replace":
        return len(node.args) == 1 and not node.keywords  # a path's: text has two arguments, a dataclass has names
    return False


@pytest.mark.long
def test_only_one_module_deletes() -> None:
    paths = [path for package in ("model", "pipeline", "jobs") for path in (ROOT / package).rglob("*.py")]
    assert len(paths) > 100
    found = []
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        if name not in ALLOWED:
            lines = deletions(path.read_text(), frozenset(LOW_LEVEL.get(name, ())))
            found += [f"{name}:{line}" for line in lines]
    assert not found, f"use pipeline.storage.removal, which asks whether it is ours: {', '.join(found)}"


@pytest.mark.parametrize(
    "line",
    [
        "os.unlink(path)",
        "path.unlink(missing_ok=True)",
        "clear = shutil.rmtree",
        "from os import remove",
        "from pipeline.storage import remove",
        "storage.remove(uri)",
        "storage.remove_empty(uri)",
        "half.rename(path)",
        "half.replace(path)",
        "os.replace(half, path)",
        "obstore.delete(store, name)",
        "filesystem.rm_file(name)",
        "subprocess.run(['rm', '-r', folder])",
    ],
)
def test_a_deletion_elsewhere_is_found(line: str) -> None:
    assert list(deletions(f"import os\n{line}\n")) == [2]
    assert not list(deletions("name.replace('a', 'b')\nreplace(config, run='x')\nnames.remove('x')\n"))
