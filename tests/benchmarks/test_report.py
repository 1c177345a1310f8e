"""The two forms in which every benchmark ends."""

import json
import shutil

import pytest

from benchmarks.support.report import commit, report, table


def test_a_table_and_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    report("trial", [{"case": "a", "limit": 1e-6, "ok": True}, {"case": "b", "ok": False}], {"seconds": 1.5}, ok=False)
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["case", "limit", "ok"], ["a", "1e-06", "yes"], ["b", "NO"]]
    result = json.loads(last)
    assert (result["benchmark"], result["ok"], result["seconds"]) == ("trial", False, 1.5)
    assert set(result["versions"]) == {"python", "torch", "deepspeed", "accelerate"} and all(result["versions"].values())
    assert result["device"] and result["commit"]


def test_columns_line_up_when_rows_lack_some() -> None:
    header, first, second = table([{"name": "x"}, {"name": "longer", "G": 0.1234567}])
    assert header.index("G") == second.index("0.1235") and first == "x"


def test_a_machine_without_git_does_not_know_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    assert commit() == "unknown"
