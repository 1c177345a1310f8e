"""Rules that no single module can keep: the arrows between packages, and files that must agree with each other."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import commands

ROOT = Path(__file__).parent.parent
LINT_IMPORTS = [sys.executable, str(Path(sys.prefix) / "bin" / "lint-imports"), "--no-cache"]
MAKEFILE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def _lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(LINT_IMPORTS, cwd=folder, capture_output=True, text=True, check=False)


def test_the_arrows_hold() -> None:
    done = _lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


MATHEMATICS = "model is mathematics: no files, processes, launchers or trackers"
PACKAGES = "jobs -> pipeline -> model"
FLOORS = "the floors of pipeline: arrows go down, none goes sideways"
# (contract, file, line in it): each is an arrow that its contract forbids.
PLANTED = [
    (MATHEMATICS, "model/layers.py", "import mlflow"),
    (MATHEMATICS, "model/losses.py", "from pathlib import Path"),
    (PACKAGES, "model/ema.py", "def late():\n    import pipeline.errors"),
    (PACKAGES, "pipeline/wording.py", "import jobs.cli"),
    (FLOORS, "pipeline/storage/retry.py", "import pipeline.data.order"),  # upward
    (FLOORS, "pipeline/messaging/mailbox.py", "import pipeline.engine.batch"),  # sideways
]


def test_arrows_the_wrong_way_are_caught(tmp_path: Path) -> None:
    """All at once: an interpreter and a graph of imports for each would take as many seconds."""
    for package in ("model", "pipeline", "jobs"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for _, module, line in PLANTED:
        with (tmp_path / module).open("a") as file:
            file.write(f"\n{line}\n")
    done = _lint_imports(tmp_path)
    assert done.returncode == 1
    summary, _, details = done.stdout.partition("Broken contracts")
    for contract, module, line in PLANTED:
        assert f"{contract} BROKEN" in summary
        (said,) = re.findall(rf"^{re.escape(contract)}\n-+\n(.*?)(?=^-{{3,}}$|\Z)", details, re.DOTALL | re.MULTILINE)
        importer, target = module.removesuffix(".py").replace("/", "."), re.findall(r"(?:import|from) (\S+)", line)[0]
        assert re.search(rf"^- +{importer} -> {re.escape(target)} \(l\.\d+\)\n\n", said, re.MULTILINE), (importer, target, said)


def test_model_imports_itself_relatively() -> None:
    """So that the package can be copied into a registered model under another name."""
    for path in (ROOT / "model").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names.append(node.module or "")
            assert not [name for name in names if name.split(".")[0] == "model"], f"{path}:{node.lineno}"


def test_no_file_names_an_index_or_a_machine() -> None:
    hosts = re.compile(rb"\bpypi\.|pythonhosted\.|download\.pytorch\.|\bdeb\.debian\.|archive\.ubuntu\.|/root/|/opt/wheels")
    for path in _tracked():
        found = hosts.search(path.read_bytes()) if path != Path(__file__) else None
        assert not found, f"{path} names {found[0]!r}"


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", "docs/clouds.md", "docs/evaluation.md", "docs/registry.md", "docs/slurm.md"]
)
def test_the_commands_in_a_document_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
    made, typed = (
        set(re.findall(r"\bmake ([a-z-]+)", code)),
        set(re.findall(r"^\s*(?:`|\$ )?biggan ([a-z]+)", code, re.MULTILINE)),
    )
    assert (made or typed) and made <= MAKEFILE_TARGETS
    assert typed <= set(commands())
    modules = re.findall(r"-m (benchmarks\.[a-z_.]*[a-z_])", code)
    assert all((ROOT / f"{name.replace('.', '/')}.py").is_file() for name in modules), modules


def test_every_benchmark_can_be_run_and_is_in_the_table() -> None:
    table = (ROOT / "benchmarks" / "README.md").read_text()
    entry_points = {path.stem: path.read_text() for path in (ROOT / "benchmarks").glob("*.py") if path.name != "__init__.py"}
    assert entry_points
    for name, text in entry_points.items():
        assert "def main(" in text and '__name__ == "__main__"' in text, f"benchmarks/{name}.py"
        assert re.search(rf"`(python -m benchmarks\.)?{name}[` ]", table), f"benchmarks/README.md lacks {name}"
    for linked in re.findall(r"\]\((results/[^)]+)\)", table):
        assert (ROOT / "benchmarks" / linked).is_file(), linked


def benchmarks_used(path: Path) -> set[str]:
    """Return the first name below `benchmarks` of each import in `path`, such as `servers`."""
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.module]
    names = [f"{node.module}.{alias.name}" for node in found for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("benchmarks.")}


def test_entry_points_of_benchmarks_are_imported_by_their_own_tests_only() -> None:
    entry_points = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    for path in (ROOT / "benchmarks").glob("*/**/*.py"):
        assert not benchmarks_used(path) & entry_points, path.relative_to(ROOT)
    for path in (ROOT / "tests").rglob("*.py"):
        if path.parent.name != "benchmarks":
            assert benchmarks_used(path) <= {"servers", "support"}, path.relative_to(ROOT)


def test_every_preset_is_a_configuration() -> None:
    from pipeline.config import load_config, preset_names

    assert preset_names()
    for name in preset_names():
        load_config(name)


def test_shell_scripts_are_clean() -> None:
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed (Debian: shellcheck)")
    scripts = [path for path in _tracked() if path.suffix in (".sh", ".sbatch") or path.parts[-2:] == (".ci", "run")]
    assert len(scripts) > 6
    done = subprocess.run([checker, "--external-sources", *scripts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
