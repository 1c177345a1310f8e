"""One table of exit codes: what errors, scripts, manifests, `--help` and the documentation say of them is what it says."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.cli import _parser
from jobs.doctor import _EPILOG
from pipeline import exit_codes
from pipeline.cluster import job_specs, restarts
from pipeline.cluster.slurm import SlurmError
from pipeline.errors import UserError
from pipeline.exit_codes import ALL, CODES

ROOT = Path(__file__).parents[2]
NUMBERS = {code.number for code in ALL}


def rows(document: str, heading: str) -> list[list[str]]:
    """Return the cells of the Markdown table whose first row is `heading`."""
    below = (ROOT / document).read_text().partition(heading + "\n")[2].splitlines()
    end = next(i for i, line in enumerate(below) if not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in below[1:end]]


def kinds(error: type[UserError]) -> Iterator[type[UserError]]:
    yield error
    for kind in error.__subclasses__():
        yield from kinds(kind)


def test_numbers_mean_one_thing_each():
    assert len(NUMBERS) == len(ALL)
    assert SlurmError in kinds(UserError) and {kind.exit_code for kind in kinds(UserError)} <= NUMBERS


def test_nothing_is_both_final_and_tried_again():
    """A failed gate is as final in a JobSet as in a batch script."""
    assert set(restarts.FINAL) == {0, *job_specs.FINAL} and exit_codes.NOT_PROMOTED.number in job_specs.FINAL
    assert job_specs.PREEMPTED == (75, 143) and not set(job_specs.PREEMPTED) & set(restarts.FINAL)


def test_help_lists_them():
    said = _parser([]).format_help()
    assert exit_codes.listed() in " ".join(said.split()) and max(map(len, said.splitlines())) <= 95
    listed = _EPILOG.partition("Exit codes, the same on every node: ")[2]
    assert {int(number) for number in re.findall(r"(?:^|; |\n)(\d+) ", listed)} <= {code.number for code in CODES}


def test_readme_explains_them():
    explained = rows("README.md", "| code | meaning | run it again? |")
    assert [row[0] for row in explained] == [*(str(code.number) for code in CODES), "other"]
    for code, (_, meaning, again) in zip(CODES, explained, strict=False):
        assert meaning and (again.startswith(("not ", "after ")), again == "") == (code.retry == "never", code.retry == "done")


@pytest.mark.parametrize(
    ("document", "heading", "start", "retry"),
    [
        ("docs/slurm.md", "| what happens | what follows |", "exit code ", "never"),
        ("docs/clouds.md", "| a machine | the JobSet |", "exits ", "never"),
        ("docs/clouds.md", "| a machine | the JobSet |", "exits ", "freely"),
    ],
)
def test_guides_list_them(document: str, heading: str, start: str, retry: exit_codes.Retry):
    lists = {
        tuple(map(int, re.findall(r"\d+", found[1])))
        for row in rows(document, heading)
        if (found := re.match(rf"{start}([\d, ]+)", row[0]))
    }
    assert exit_codes.numbers(retry) in lists and not {number for numbers in lists for number in numbers} - NUMBERS


def test_scripts_use_them():
    for script in sorted((ROOT / "slurm").iterdir()):
        used = re.findall(r"\b(?:exit|code ==|exit code) (\d+)", script.read_text())
        assert {int(number) for number in used} <= NUMBERS, script


def test_no_module_has_one_of_its_own():
    """A number in a call that ends the process, or under a name that says exit code; 0 and 1 are everybody's."""
    for path in sorted(path for folder in ("jobs", "pipeline") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            numbers: list[ast.expr] = []
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("exit", "_exit", "SystemExit"):
                numbers = node.args
            elif isinstance(node, ast.Assign) and "exit_code" in ast.unparse(node.targets[0]).lower():
                numbers = [node.value]
            own = [number.value for number in numbers if isinstance(number, ast.Constant)]
            assert set(own) <= {0, 1}, f"{path.relative_to(ROOT)}:{node.lineno}"
