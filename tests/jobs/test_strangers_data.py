"""Configurations, manifests and checkpoints that somebody else has made lead to no other store or folder."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.checkpoint import commit_document
from pipeline.cluster import submission
from pipeline.data.dataset import load_data
from pipeline.data.manifest import MANIFEST, load_manifest
from pipeline.errors import ConfigError
from pipeline.runs import trusted_places
from pipeline.runs.run_folder import load_run_config
from pipeline.storage import http_files, trusted_stores
from pipeline.tracking.tracker import TrackingConfig
from tests.support.strangers import Stranger, assert_one_line_after, files_with_canary, open_at, run, set_key, set_manifest
from tests.support.tiny_runs import assert_one_line

READERS = [
    ("checkpoint.uri", ["sample", "RUN", "OUT/x.png"], "s3://strangers/x"),
    ("checkpoint.uri", ["export", "RUN", "OUT/model"], "s3://strangers/x"),
    ("checkpoint.uri", ["checkpoint", "list", "RUN"], "s3://strangers/x"),
    ("checkpoint.uri", ["checkpoint", "verify", "RUN"], "gs://strangers/x"),
    ("checkpoint.uri", ["register", "RUN"], "az://strangers/x"),
    ("checkpoint.uri", ["explore", "RUN", "--port", "0"], "s3://strangers/x"),
    ("data.uri", ["evaluate", "RUN"], "s3://strangers/x"),
    ("data.uri", ["evaluate", "RUN"], "HTTP/x"),
]


@pytest.mark.long
@pytest.mark.parametrize(("key", "command", "where"), READERS)
def test_a_run_folder_leads_to_no_other_store(
    place: Path, stranger: Stranger, key: str, command: list[str], where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = where.replace("HTTP", stranger.uri)
    set_key(place / "run", key, where)
    words = [word.replace("RUN", str(place / "run")).replace("OUT", str(place.parent / "out")) for word in command]
    assert_one_line_after(lambda: run(*words), capsys, 78, f"{key.partition('.')[0]}", where, "add --allow")
    assert not stranger.asked


@pytest.mark.long
def test_a_store_that_was_allowed_once_is_asked(
    place: Path, stranger: Stranger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_key(place / "run", "data.uri", f"{stranger.uri}/set")
    assert run("evaluate", place / "run", "--allow", stranger.uri) == 78 and "--test is missing" in capsys.readouterr().err
    assert stranger.asked
    stranger.asked.clear()
    monkeypatch.setattr(trusted_stores, "_here", set())  # as another process
    assert run("evaluate", place / "run") == 78 and stranger.asked
    assert trusted_stores.addresses().stat().st_mode & 0o777 == 0o600


@pytest.mark.long
def test_status_and_the_page_of_a_strangers_run_ask_nobody(
    place: Path, stranger: Stranger, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, value in (
        ("checkpoint.uri", "s3://strangers/x"),
        ("data.uri", f"{stranger.uri}/set"),
        ("tracking.uri", stranger.uri),
    ):
        set_key(place / "run", key, value)
    open_at(stranger.uri)(place)
    assert run("status", place / "run") == 0
    assert "s3://strangers/x, which is in another store" in capsys.readouterr().out
    assert run("report", place / "run") == 0
    assert run("describe", place / "run" / "config.yaml") == 0
    assert not stranger.asked and not trusted_stores.addresses().exists()


@pytest.mark.long
def test_explore_shows_no_images_of_another_store(place: Path, stranger: Stranger) -> None:
    import argparse

    from jobs import explore

    set_key(place / "run", "data.uri", f"{stranger.uri}/set")
    set_key(place / "run", "data.cache", str(place.parent / "cache"))
    parser = argparse.ArgumentParser()
    explore.add_arguments(parser)
    page = explore.subject(parser.parse_args([str(place / "run"), "--standing", "16"]))
    assert page.neighbours is None and "another store" in page.data
    set_key(place / "run", "data.uri", str(place / "shards"))
    page = explore.subject(parser.parse_args([str(place / "run"), "--standing", "16"]))
    assert page.neighbours
    page.neighbours.close()
    assert not stranger.asked and not (place.parent / "cache").exists()


TRAIN = ["train", "fashion-mnist", "data.uri=SHARDS", "run=OUT", "model.resolution=32", "model.num_classes=4"]


@pytest.mark.long
@pytest.mark.parametrize(
    "command",
    [
        ["index", "SHARDS", "--verify"],
        ["shard", "SHARDS", "OUT", "--resolution", "16"],
        TRAIN,
        ["evaluate", "RUN", "--test", "SHARDS"],
        ["doctor", "--data", "SHARDS"],
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"tars": "http"}, 78),
        ({"tars": "s3://strangers/x"}, 78),
        ({"name": "../../private"}, 65),
        ({"name": "/etc/passwd"}, 65),
    ],
    ids=["http", "s3", "dots", "absolute"],
)
def test_a_manifest_names_no_other_store_and_no_other_folder(
    place: Path, stranger: Stranger, command: list[str], changes: dict[str, str], code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = {key: f"{stranger.uri}/x" if value == "http" else value for key, value in changes.items()}
    set_manifest(place / "shards", **changes)
    fills = {"SHARDS": place / "shards", "RUN": place / "run", "OUT": place.parent / "out"}
    words = command
    for key, value in fills.items():
        words = [word.replace(key, str(value)) for word in words]
    capfd.readouterr()
    found = run(*words)
    assert_one_line(capfd.readouterr().err, found, code, next(iter(changes.values())))
    assert not stranger.asked and not files_with_canary(place)


@pytest.mark.long
def test_what_a_web_server_serves_names_no_local_file(place: Path, stranger: Stranger, monkeypatch: pytest.MonkeyPatch) -> None:
    set_manifest(place / "shards", tars=f"file://{place}/shards")
    served = (place / "shards" / MANIFEST).read_bytes()
    monkeypatch.setattr(http_files, "read", lambda uri: served)
    with pytest.raises(ConfigError, match="which is in another store than its own: if you trust it, add --allow file://"):
        load_manifest("http://data.example/set")
    assert load_manifest("http://data.example/set", [str(place)]).tars == f"file://{place}/shards"


@pytest.mark.long
def test_tars_elsewhere_on_the_disk_or_where_the_user_indexed_them_are_read(place: Path, stranger: Stranger) -> None:
    assert run("index", place / "shards", "--out", place / "index", "--label", "none") == 0
    assert load_manifest(str(place / "index")).tars
    set_manifest(place / "shards", tars=f"{stranger.uri}/tars")
    assert load_manifest(str(place / "shards"), [f"{stranger.uri}/"]).tars == f"{stranger.uri}/tars"  # data.allow
    trusted_stores.note("read", [f"{stranger.uri}/other/{{000..002}}.tar"])
    assert load_manifest(str(place / "shards")).tars == f"{stranger.uri}/tars"


@pytest.mark.long
def test_a_job_takes_the_users_word_to_the_machines_that_train(
    place: Path, stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(load_run_config(place / "run"), tracking=TrackingConfig(uri=stranger.uri))
    assert submission.carry(config) == config  # nothing is elsewhere
    set_manifest(place / "shards", tars=f"{stranger.uri}/tars")
    with pytest.raises(ConfigError, match=r"set 'data\.allow=\[http://127\.0\.0\.1:\d+\]'"):
        submission.carry(config)
    trusted_stores.note("read", [stranger.uri])
    carried = submission.carry(config)
    trusted_stores.addresses().unlink()
    monkeypatch.setattr(trusted_stores, "_here", set())
    assert load_data(carried.data).tars == f"{stranger.uri}/tars"
    with pytest.raises(ConfigError):
        load_data(trusted_places.kept_data(carried))  # out of a folder that was sent, `data.allow` is nobody's word


@pytest.mark.long
def test_a_commit_names_no_file_outside_of_its_checkpoint(place: Path, stranger: Stranger) -> None:
    (folder,) = (place / "run" / "checkpoints").glob("0*")
    document = json.loads((folder / commit_document.COMMIT).read_text())
    files = document["commit"]["files"]
    name = next(name for name in files if name.startswith("ema."))
    os.rename(folder / name, place.parent / "ema.away")
    files["ema./../../../../../ema.away"] = files.pop(name)
    document["sha256"] = commit_document._digest(document["commit"])
    (folder / commit_document.COMMIT).write_text(json.dumps(document))
    assert run("sample", folder, place.parent / "x.png") == 65
    assert run("train", "fashion-mnist", f"init={folder}", f"data.uri={place / 'shards'}", f"run={place}/new") in (65, 78)
    set_key(place / "run", "checkpoint.uri", f"{stranger.uri}/x")
    assert run("train", "fashion-mnist", f"init={place / 'run'}", f"data.uri={place / 'shards'}", f"run={place}/new") == 78
    assert not stranger.asked
