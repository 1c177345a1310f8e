"""No name out of a document is joined to a folder but by `storage.containment`: the sources are scanned for such joins."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = {"files", "shards", "classes", "tars", "uri", "place", "file", "artifact", "artifacts"}
"""Attributes that hold what a manifest, a commit, a model or an answer of a server says."""
KINDS = {"Shard", "Record", "OpenRecord", "ImageRecord", "TextRecord", "ArtifactRecord", "DatasetRow", "CommitRow"}
"""Types of entries in such documents: what a parameter of these says is out of one."""
OURS = {
    "pipeline/checkpoint/importers/biggan_pytorch.py: files['state_dict']": "a name of the listing, by our own table",
    "pipeline/checkpoint/importers/huggingface.py: files['config']": "the same",
    "pipeline/checkpoint/importers/huggingface.py: files['weights']": "the same",
    "pipeline/data/manifest.py: path": "`tars` of an earlier version, below each folder above the manifest: see `check_read`",
    "pipeline/tracking/moved_store.py: found.file.name": "the name of the user's own store",
    "pipeline/checkpoint/saver.py: format.folder_name(snapshot.progress.images, self.fence.number)": "two of our numbers",
    "pipeline/tracking/mlflow_records.py: there[0].name": "the last part of a path, with our own mark in it",
    "pipeline/tracking/mlflow_records.py: there[0].stem + '+compressed.webp'": "the same",
    "jobs/status.py: speed": "a division of numbers",
    "pipeline/generation/load.py: places[high] - places[low]": "a division of numbers",
}
"""`FILE: joined expression`, and why it needs no check."""


def joins(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, expression) of each part of a path that comes out of a parsed document."""
    tree = ast.parse(source)
    for scope in ast.walk(tree):
        if isinstance(scope, ast.FunctionDef | ast.Lambda | ast.Module):
            told = _told(scope)
            for node in _own(scope):
                for part in _joined(node):
                    if any(_is_told(inner, told) for inner in ast.walk(part)):
                        yield part.lineno, ast.unparse(part)


def _own(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a scope, without those of functions in it."""
    waiting = list(ast.iter_child_nodes(scope))
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


def _told(scope: ast.AST) -> set[str]:
    """Variables that are bound to something out of a document."""
    told: set[str] = set()
    if isinstance(scope, ast.FunctionDef):
        told = {one.arg for one in scope.args.args if one.annotation and KINDS & _words(one.annotation)}
    for _ in range(3):  # one may be bound by another
        for node in _own(scope):
            bound: list[tuple[ast.AST, ast.AST]] = []
            if isinstance(node, ast.Assign):
                bound = [(target, node.value) for target in node.targets]
            elif isinstance(node, ast.NamedExpr | ast.AnnAssign) and node.value:
                bound = [(node.target, node.value)]
            elif isinstance(node, ast.For | ast.comprehension):
                bound = [(node.target, node.iter)]
            for target, value in bound:
                if any(_is_told(inner, told) for inner in ast.walk(value)) and not _is_checked(value):
                    told |= {name.id for name in ast.walk(target) if isinstance(name, ast.Name)}
    return told


def _words(annotation: ast.expr) -> set[str]:
    return set(re.findall(r"\w+", ast.unparse(annotation)))


def _is_checked(value: ast.AST) -> bool:
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in ("inside", "below")


def _is_told(node: ast.AST, told: set[str]) -> bool:
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str)
    if isinstance(node, ast.Attribute):
        return node.attr in DOCUMENTS and not (isinstance(node.value, ast.Name) and node.value.id in ("config", "args"))
    return isinstance(node, ast.Name) and node.id in told


def _joined(node: ast.AST) -> list[ast.expr]:
    """The parts behind the first one of a join."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return [node.right]
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        text = isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Constant)
        if (name == "join" and not text) or name in ("Path", "joinpath", "with_name", "urljoin"):
            return node.args[0 if name in ("joinpath", "with_name") else 1 :]
    return []


@pytest.mark.long
def test_what_a_document_says_is_joined_by_the_helper_alone() -> None:
    files = [path for folder in ("pipeline", "jobs") for path in sorted((ROOT / folder).rglob("*.py"))]
    found = {f"{path.relative_to(ROOT)}: {what}" for path in files for _, what in joins(path.read_text())}
    assert not found - OURS.keys(), "join these by pipeline.storage.containment.inside or below"
    assert not OURS.keys() - found, "no longer in the sources: take it off the list"


@pytest.mark.parametrize(
    "code",
    [
        "def f(folder, record):\n    return folder / record['file']",
        "def f(folder, line):\n    record = json.loads(line)['open']\n    return Path(folder, record)",
        "def f(self):\n    for name, row in self.files.items():\n        storage.join(self.uri, name)",
        "def f(uri, manifest):\n    return [storage.join(uri, shard.name) for shard in manifest.shards]",
        "def f(uri, shard: Shard):\n    return join(uri, index_name(shard.name))",
        "def f(uri, found):\n    return os.path.join(uri, f\"{found['x']}.png\")",
        "def f(path, record):\n    if name := record['file']:\n        path.with_name(name)",
    ],
)
def test_a_join_that_avoids_the_helper_is_found(code: str) -> None:
    assert list(joins(code))


@pytest.mark.parametrize(
    "code",
    [
        "def f(folder, record):\n    return inside(folder, record['file'], 'journal')",
        "def f(folder, record):\n    place = below(folder, record['file'], 'it')\n    return storage.join(folder, place)",
        "def f(folder):\n    return folder / 'run.json', ', '.join(x['name'] for x in y), Path(folder['run'])",
    ],
)
def test_other_joins_are_let_pass(code: str) -> None:
    assert not list(joins(code))
