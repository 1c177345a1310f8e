"""A run that goes on without the disk on which it began."""

import json
from pathlib import Path

import pytest

from pipeline import kept
from pipeline.errors import ConfigError


def begin(folder: Path, run: str, uri: Path, uid: str) -> None:
    (folder / run).mkdir(parents=True)
    (folder / run / "run.json").write_text(json.dumps({"uid": uid}))
    (folder / run / "config.yaml").write_text(json.dumps({"run": run, "checkpoint": {"uri": str(uri)}}))


def test_a_new_disk_gets_what_the_run_has_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, first, second = (tmp_path / name for name in ("store", "first", "second"))
    begin(first, "runs/one", store, "a")
    monkeypatch.chdir(first)
    kept.recover("runs/one", str(store))  # nothing there yet
    kept.begin("runs/one", str(store))
    kept.keep(Path("runs/one"), "health.json", b"{}", str(store))
    second.mkdir()
    monkeypatch.chdir(second)
    kept.recover("runs/one", str(store))
    for name in ("run.json", "config.yaml", "health.json"):
        assert (second / "runs/one" / name).read_bytes() == (first / "runs/one" / name).read_bytes()
    (second / "runs/one/health.json").write_text("newer")
    kept.recover("runs/one", str(store))  # a disk that knows the run keeps what it has
    assert (second / "runs/one/health.json").read_text() == "newer"


def test_another_run_does_not_take_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    begin(tmp_path, "one", store, "a")
    begin(tmp_path, "two", store, "b")
    monkeypatch.chdir(tmp_path)
    kept.refuse_other("one", str(store), "a")
    kept.begin("one", str(store))
    kept.refuse_other("one", str(store), "a")
    with pytest.raises(ConfigError, match=r"holds the checkpoints of another run than run=two: name another place"):
        kept.refuse_other("two", str(store), "b")
    kept.recover("three", str(store))
    assert not (tmp_path / "three").exists()
    assert json.loads((store / "run.json").read_text())["uid"] == "a"


def test_without_a_place_elsewhere_a_file_is_in_the_folder_alone(tmp_path: Path) -> None:
    kept.keep(tmp_path, "health.json", b"{}")
    assert [path.name for path in tmp_path.iterdir()] == ["health.json"]


def test_a_node_with_another_runs_folder_is_refused(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    kept.adopt(run, {"uid": "a"})
    kept.adopt(run, {"uid": "a"})
    with pytest.raises(ConfigError, match=r"is another run on this node \(a\) than on node 0: name another run"):
        kept.adopt(run, {"uid": "b"})
