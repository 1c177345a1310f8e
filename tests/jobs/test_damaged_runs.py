"""A run with a damaged file: what needs it says so in one line, and what can do without passes it over, and says that."""

import shutil
from pathlib import Path

import pytest

from jobs.cli import main
from pipeline.cluster import restarts
from pipeline.runs.run_folder import RunState, read_status, write_status

DAMAGE = {
    "empty": b"",
    "cut": b'{"state": "stop',
    "garbage": b"\x93\xff\0",
    "types": b'{"images": "x", "metrics": 1, "why": 1}',
    "deep": b"[" * 50_000,
}
# What each command says of a damaged file: nothing where it does not look at it.
PASSED_OVER = {
    "status.json": ("status", "report", "restarts"),
    "journal.offset": ("report",),
    "tracking.json": ("status",),
    "restarts.json": ("restarts",),
    "evaluation/0000004096.json": ("report",),
}


def spoil(run: Path, name: str, damage: str) -> Path:
    path = run / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes(DAMAGE[damage])
    return path


def tell(command: str, run: Path) -> int:
    if command == "restarts":
        return restarts.main([str(run), "1"])
    return main([command, str(run)])


@pytest.mark.long
@pytest.mark.parametrize("damage", [*DAMAGE, "folder"])
def test_what_can_do_without_a_file_passes_over_it(damage: str, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_status(run_folder, RunState("stopped", 4096, 75, "SIGTERM"))
    for name, commands in PASSED_OVER.items():
        before = shutil.copytree(run_folder, run_folder.parent / "copy", dirs_exist_ok=True)
        path = spoil(before, name, damage)
        for command in ("status", "report", "restarts"):
            if command == "restarts" and name == "restarts.json" and damage == "folder":
                continue  # it cannot be written either
            assert tell(command, before) == 0
            said = capsys.readouterr().err.splitlines()
            expected = [f"biggan: warning: {path} is "] if command in commands else []
            assert [line[: len(first)] for line, first in zip(said, expected, strict=True)] == expected, (name, command, said)
        shutil.rmtree(before)


@pytest.mark.long
@pytest.mark.parametrize("damage", [*DAMAGE, "folder"])
def test_what_needs_a_file_refuses_in_one_line(damage: str, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(run_folder, "submission/job.json", damage)
    assert main(["status", str(run_folder)]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("  job"))
    assert "job.json" in row and "restore it from a copy, or submit the run again" in row
    if damage != "folder":  # then it is no run's folder
        spoil(run_folder, "config.yaml", damage)
        assert main(["status", str(run_folder)]) in (65, 78)
        assert capsys.readouterr().err.count("\n") == 1


def test_a_damaged_evaluation_is_named_on_the_page(run_folder: Path) -> None:
    path = spoil(run_folder, "evaluation/0000004096.json", "cut")
    assert main(["report", str(run_folder)]) == 0
    assert f"{path} is damaged: Invalid JSON" in (run_folder / "report.html").read_text()


def test_a_status_of_other_types_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ('{"state": 3}', '{"state": "stopped", "images": -1}', '{"state": "stopped", "exit_code": "0"}'):
        (tmp_path / "status.json").write_text(text)
        assert read_status(tmp_path / "status.json") is None
        assert capsys.readouterr().err.startswith(f"biggan: warning: {tmp_path / 'status.json'} is damaged: ")
    assert read_status(tmp_path / "nothing.json") is None
    assert not capsys.readouterr().err
