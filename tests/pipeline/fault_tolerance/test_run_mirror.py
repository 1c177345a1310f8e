"""A run that goes on without the disk on which it began."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.checkpoint.fencing import take
from pipeline.errors import ConfigError
from pipeline.fault_tolerance import run_mirror


def begin(folder: Path, run: str, uri: Path, uid: str) -> None:
    (folder / run).mkdir(parents=True)
    (folder / run / "run.json").write_text(json.dumps({"uid": uid}))
    (folder / run / "config.yaml").write_text(json.dumps({"run": run, "checkpoint": {"uri": str(uri)}}))


def test_a_new_disk_gets_what_the_run_has_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, first, second = (tmp_path / name for name in ("store", "first", "second"))
    begin(first, "runs/one", store, "a")
    monkeypatch.chdir(first)
    run_mirror.recover("runs/one", str(store))  # nothing there yet
    run_mirror.begin("runs/one", str(store))
    run_mirror.keep(Path("runs/one"), "health.json", b"{}", str(store))
    second.mkdir()
    monkeypatch.chdir(second)
    run_mirror.recover("runs/one", str(store))
    for name in ("run.json", "config.yaml", "health.json"):
        assert (second / "runs/one" / name).read_bytes() == (first / "runs/one" / name).read_bytes()
    (second / "runs/one/health.json").write_text("newer")
    run_mirror.recover("runs/one", str(store))  # a disk that knows the run keeps what it has
    assert (second / "runs/one/health.json").read_text() == "newer"


def test_another_run_does_not_take_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    begin(tmp_path, "one", store, "a")
    begin(tmp_path, "two", store, "b")
    monkeypatch.chdir(tmp_path)
    run_mirror.refuse_other("one", str(store), "a")
    run_mirror.begin("one", str(store))
    run_mirror.refuse_other("one", str(store), "a")
    with pytest.raises(ConfigError, match=r"holds the checkpoints of another run than run=two: name another place"):
        run_mirror.refuse_other("two", str(store), "b")
    run_mirror.recover("three", str(store))
    assert not (tmp_path / "three").exists()
    assert json.loads((store / "run.json").read_text())["uid"] == "a"


def test_without_a_place_elsewhere_a_file_is_in_the_folder_alone(tmp_path: Path) -> None:
    run_mirror.keep(tmp_path, "health.json", b"{}")
    assert [path.name for path in tmp_path.iterdir()] == ["health.json"]


def test_a_node_with_another_runs_folder_is_refused(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    run_mirror.adopt(run, {"uid": "a"})
    run_mirror.adopt(run, {"uid": "a"})
    with pytest.raises(ConfigError, match=r"is another run on this node \(a\) than on node 0: name another run"):
        run_mirror.adopt(run, {"uid": "b"})


OF_ANOTHER_PROGRAM = {"run.json": b'{"experiment": 7}', "config.yaml": b"run: one\nother: program\n", "health.json": b"{}"}


@pytest.mark.parametrize(
    "name", ["run.json", "config.yaml", "health.json", "paper.csv", "1700000000/paper.csv", "0000000064-0001/x"]
)
def test_files_of_others_are_refused_where_checkpoints_are_to_go(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of them is taken for a run that began there, replaced, or removed."""
    monkeypatch.chdir(tmp_path)
    begin(tmp_path, "one", tmp_path / "store", "a")
    place = tmp_path / "store" / name
    place.parent.mkdir(parents=True)
    place.write_bytes(OF_ANOTHER_PROGRAM.get(name, b"mine"))
    (tmp_path / "store" / ".hidden").write_bytes(b"mine")
    with pytest.raises(
        ConfigError, match=r"is not empty and is not a folder of checkpoints \(it holds .*\): set checkpoint\.uri="
    ):
        run_mirror.refuse_other("one", str(tmp_path / "store"), "a")
    run_mirror.forget(str(tmp_path / "store"), "a")
    run_mirror.recover("new", str(tmp_path / "store"))
    assert place.read_bytes() == OF_ANOTHER_PROGRAM.get(name, b"mine") and not (tmp_path / "new").exists()


def test_checkpoints_of_earlier_versions_and_hidden_files_are_no_reason_to_refuse(tmp_path: Path) -> None:
    """They kept no run.json at the place: a fence is enough, or a checkpoint."""
    for name in (".DS_Store", "lost+found/inode"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"mine")
    run_mirror.refuse_other("one", str(tmp_path), "a")
    take(str(tmp_path)).release()
    (tmp_path / "1700000000").mkdir()
    (tmp_path / "1700000000" / "paper.csv").write_bytes(b"mine")
    run_mirror.refuse_other("one", str(tmp_path), "a")


def test_a_fence_of_another_program_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.checkpoint.fencing.BEAT", 0.02)
    (tmp_path / "fence-0000000001.json").write_text(json.dumps({"of": "another program"}))
    take(str(tmp_path)).release()
    take(str(tmp_path)).release()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fence-0000000001.json", "fence-0000000003.json"]


def test_only_the_run_that_is_kept_at_a_place_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    begin(tmp_path, "one", tmp_path / "store", "a")
    run_mirror.begin("one", str(tmp_path / "store"))
    run_mirror.forget(str(tmp_path / "store"), "b")
    assert (tmp_path / "store" / "config.yaml").exists() and (tmp_path / "store" / "run.json").exists()
    run_mirror.forget(str(tmp_path / "store"), "a")
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("name", ["config.yaml", "health.json"])
def test_a_new_disk_with_files_of_others_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    begin(tmp_path, "one", tmp_path / "store", "a")
    run_mirror.begin("one", str(tmp_path / "store"))
    run_mirror.keep(Path("one"), "health.json", b"{}", str(tmp_path / "store"))
    shutil.rmtree("one")
    Path("one").mkdir()
    Path("one", name).write_text("mine")
    run_mirror.recover("one", str(tmp_path / "store"))
    assert {path.name: path.read_text() for path in Path("one").iterdir()} == {name: "mine"}
    if name == "health.json":
        with pytest.raises(ConfigError, match="run=one is not empty and is not the folder of a run"):
            run_mirror.adopt("one", {"uid": "a"})
