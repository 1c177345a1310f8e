"""Folders that somebody else has made: nothing outside of them is read, and nothing is sent anywhere."""

import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import cli
from pipeline import checkpoint, http_files, named, submission
from pipeline.dataset import load_data
from pipeline.errors import ConfigError
from pipeline.index import MANIFEST, dump_manifest, load_manifest
from pipeline.journal import append_line, journal_path
from pipeline.run import load_run_config
from pipeline.tracker import TrackingConfig
from tests.jobs.tiny_runs import assert_one_line
from tests.pipeline.saved_run import save_run

CANARY = "canary-7f1d20c9"


class Stranger:
    """A web server that notes what it is asked; every store that is reached over HTTP leads to it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        stranger = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                stranger.asked.append(f"{self.command} {self.path} {self.headers}")
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_PATCH = answer

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stranger]:
    """With credentials in the environment, and a user who has named nothing so far."""
    found = Stranger()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(named, "_here", set())
    for name, value in {
        "AWS_ENDPOINT_URL": found.uri,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "AWS_REGION": "us-east-1",
        "MLFLOW_TRACKING_TOKEN": CANARY,
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory, shards_grey: Path, empty_store: Path) -> Path:
    """A run with its shards beside it. Read only."""
    folder = tmp_path_factory.mktemp("sent")
    shutil.copytree(shards_grey, folder / "shards")
    save_run(folder / "run", folder / "shards", store=empty_store)
    return folder


@pytest.fixture
def place(tmp_path: Path, sent: Path) -> Path:
    """A copy of it in a folder of the user's, who has a private file beside it."""
    folder = tmp_path / "inbox"
    shutil.copytree(sent, folder)
    config = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    config["run"], config["data"]["uri"] = str(folder / "run"), str(folder / "shards")
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "private").write_text(CANARY)
    return folder


def set_key(run: Path, key: str, value: str) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    section, _, name = key.partition(".")
    config[section][name] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def set_manifest(shards: Path, **changes: Any) -> None:
    """With a fingerprint that fits."""
    manifest = load_manifest(str(shards))
    if name := changes.pop("name", None):
        changes["shards"] = (replace(manifest.shards[0], name=name), *manifest.shards[1:])
    (shards / MANIFEST).write_bytes(dump_manifest(replace(manifest, **changes)))


def run(*argv: object) -> int:
    return cli.main([str(word) for word in argv])


def files_with_canary(folder: Path) -> list[str]:
    """Whole files below `folder`, not links, that hold the private text."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [str(path) for path in paths if CANARY.encode() in path.read_bytes()]


def journal_record(**record: Any) -> Callable[[Path], None]:
    return lambda place: append_line(journal_path(place / "run"), **record)


def link(name: str) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        file = place / "run" / name
        file.parent.mkdir(exist_ok=True)
        file.unlink(missing_ok=True)
        file.symlink_to(place.parent / "private")

    return make


def linked_sample(place: Path) -> None:
    link("samples/x.png")(place)
    append_line(journal_path(place / "run"), image="grid", step=1, file="samples/x.png")


@pytest.mark.parametrize(
    "harm",
    [
        journal_record(image="grid", step=1, file="../../private"),
        lambda place: append_line(journal_path(place / "run"), image="grid", step=1, file=str(place.parent / "private")),
        linked_sample,
        link("config.yaml"),
        link("events.jsonl"),
        link("evaluation/0000000001.json"),
    ],
    ids=["dots", "absolute", "linked sample", "linked config", "linked events", "linked evaluation"],
)
def test_a_report_shows_nothing_from_outside(place: Path, harm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    harm(place)
    assert_one_line_after(lambda: run("report", place / "run"), capsys, 65, "names the file")
    assert not (place / "run" / "report.html").exists()


def assert_one_line_after(act: Callable[[], int], capsys: pytest.CaptureFixture[str], code: int, *parts: str) -> None:
    capsys.readouterr()
    found = act()
    assert_one_line(capsys.readouterr().err, found, code, *parts)


@pytest.mark.parametrize(
    "harm",
    [
        journal_record(image="grid", step=1, file="../../private"),
        journal_record(artifact="../../private"),
        lambda place: append_line(journal_path(place / "run"), artifact=str(place.parent / "private")),
        linked_sample,
    ],
    ids=["image", "artifact", "absolute", "link"],
)
def test_sync_sends_nothing_from_outside(
    place: Path, stranger: Stranger, harm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    harm(place)
    assert_one_line_after(lambda: run("sync", place / "run", "--moved"), capsys, 65, "MLflow refuses", "names the file")
    assert not files_with_canary(place)


def open_at(uri: str) -> Callable[[Path], None]:
    """The journal says that the run is tracked at `uri`."""

    def change(place: Path) -> None:
        path = journal_path(place / "run")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            if "open" in line:
                line["open"]["uri"] = uri
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    return change


REGISTRY = ["--tracking-uri", "RUN"]


@pytest.mark.parametrize(
    "command",
    [
        ["sync", "RUN"],
        ["register", "RUN"],
        ["sample", "models:/x@y", "out.png", *REGISTRY],
        ["promote", "x", *REGISTRY],
        ["copy", "x@y", *REGISTRY, "--to", "sqlite:////tmp/none"],
        ["explore", "models:/x@y", "--port", "0", *REGISTRY],
        ["rollback", "x", *REGISTRY],
    ],
    ids=lambda command: command[0],
)
def test_records_and_credentials_go_only_to_an_mlflow_that_the_user_has_named(
    place: Path, stranger: Stranger, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    open_at(stranger.uri)(place)
    words = [str(place / "run") if word == "RUN" else word for word in command]
    assert_one_line_after(lambda: run(*words), capsys, 78, stranger.uri, "biggan sync")
    assert not stranger.asked


def test_sync_goes_where_the_user_says(place: Path, stranger: Stranger, monkeypatch: pytest.MonkeyPatch) -> None:
    open_at(stranger.uri)(place)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{stranger.uri}/")
    assert run("sync", place / "run", "--wait", 0) != 0 and CANARY in stranger.asked[0]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    stranger.asked.clear()
    assert run("sync", place / "run", "--wait", 0) != 0 and stranger.asked  # remembered
    named.addresses().unlink()
    monkeypatch.setattr(named, "_here", set())
    stranger.asked.clear()
    assert run("sync", place / "run", "--wait", 0) == 78 and not stranger.asked
    assert run("sync", place / "run", "--wait", 0, "--tracking", stranger.uri) != 0 and stranger.asked


def test_a_database_elsewhere_is_not_written(place: Path, stranger: Stranger, empty_store: Path) -> None:
    theirs = place.parent / "mlflow.db"
    shutil.copy(empty_store, theirs)
    before = theirs.read_bytes()
    open_at(f"sqlite:///{theirs}")(place)
    assert run("sync", place / "run") == 78
    open_at(f"sqlite:///{place.parent}/new.db")(place)
    assert run("sync", place / "run") == 78 and not (place.parent / "new.db").exists()
    open_at(f"sqlite:///{place}/run/mlflow.db")(place)
    (place / "run" / "mlflow.db").unlink()
    (place / "run" / "mlflow.db").symlink_to(theirs)
    assert run("sync", place / "run") == 78 and theirs.read_bytes() == before


def test_a_database_in_the_folder_puts_artifacts_nowhere_else(place: Path, stranger: Stranger) -> None:
    with sqlite3.connect(place / "run" / "mlflow.db") as store:
        elsewhere = f"file://{place.parent}/elsewhere"
        store.execute("UPDATE experiments SET artifact_location = ?", (elsewhere,))
        store.execute("UPDATE runs SET artifact_uri = ?", (f"{elsewhere}/artifacts",))
    journal_record(artifact="config.yaml")(place)
    assert run("sync", place / "run") == 78
    assert not (place.parent / "elsewhere").exists()


def test_a_model_in_a_database_that_was_sent_is_in_no_other_store(
    tmp_path: Path, registered_run: Path, stranger: Stranger, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(registered_run, tmp_path / "run")
    with sqlite3.connect(tmp_path / "run" / "mlflow.db") as store:
        store.execute("UPDATE model_versions SET source = ?, storage_location = ?", (f"{stranger.uri}/model",) * 2)
    words = ["sample", "models:/tiny@first", tmp_path / "x.png", "--tracking-uri", tmp_path / "run"]
    assert_one_line_after(lambda: run(*words), capsys, 78, f"names {stranger.uri}/model", "add --allow")
    assert not stranger.asked


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


@pytest.mark.parametrize(("key", "command", "where"), READERS)
def test_a_run_folder_leads_to_no_other_store(
    place: Path, stranger: Stranger, key: str, command: list[str], where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = where.replace("HTTP", stranger.uri)
    set_key(place / "run", key, where)
    words = [word.replace("RUN", str(place / "run")).replace("OUT", str(place.parent / "out")) for word in command]
    assert_one_line_after(lambda: run(*words), capsys, 78, f"{key.partition('.')[0]}", where, "add --allow")
    assert not stranger.asked


def test_a_store_that_was_allowed_once_is_asked(
    place: Path, stranger: Stranger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_key(place / "run", "data.uri", f"{stranger.uri}/set")
    assert run("evaluate", place / "run", "--allow", stranger.uri) == 78 and "--test is missing" in capsys.readouterr().err
    assert stranger.asked
    stranger.asked.clear()
    monkeypatch.setattr(named, "_here", set())  # as another process
    assert run("evaluate", place / "run") == 78 and stranger.asked
    assert named.addresses().stat().st_mode & 0o777 == 0o600


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
    assert not stranger.asked and not named.addresses().exists()


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


def test_what_a_web_server_serves_names_no_local_file(place: Path, stranger: Stranger, monkeypatch: pytest.MonkeyPatch) -> None:
    set_manifest(place / "shards", tars=f"file://{place}/shards")
    served = (place / "shards" / MANIFEST).read_bytes()
    monkeypatch.setattr(http_files, "read", lambda uri: served)
    with pytest.raises(ConfigError, match="which is in another store than its own: if you trust it, add --allow file://"):
        load_manifest("http://data.example/set")
    assert load_manifest("http://data.example/set", [str(place)]).tars == f"file://{place}/shards"


def test_tars_elsewhere_on_the_disk_or_where_the_user_indexed_them_are_read(place: Path, stranger: Stranger) -> None:
    assert run("index", place / "shards", "--out", place / "index", "--label", "none") == 0
    assert load_manifest(str(place / "index")).tars
    set_manifest(place / "shards", tars=f"{stranger.uri}/tars")
    assert load_manifest(str(place / "shards"), [f"{stranger.uri}/"]).tars == f"{stranger.uri}/tars"  # data.allow
    named.note("read", [f"{stranger.uri}/other/{{000..002}}.tar"])
    assert load_manifest(str(place / "shards")).tars == f"{stranger.uri}/tars"


def test_a_job_takes_the_users_word_to_the_machines_that_train(
    place: Path, stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(load_run_config(place / "run"), tracking=TrackingConfig(uri=stranger.uri))
    assert submission.carry(config) == config  # nothing is elsewhere
    set_manifest(place / "shards", tars=f"{stranger.uri}/tars")
    with pytest.raises(ConfigError, match=r"set 'data\.allow=\[http://127\.0\.0\.1:\d+\]'"):
        submission.carry(config)
    named.note("read", [stranger.uri])
    carried = submission.carry(config)
    named.addresses().unlink()
    monkeypatch.setattr(named, "_here", set())
    assert load_data(carried.data).tars == f"{stranger.uri}/tars"
    with pytest.raises(ConfigError):
        load_data(named.kept_data(carried))  # out of a folder that was sent, `data.allow` is nobody's word


def test_a_commit_names_no_file_outside_of_its_checkpoint(place: Path, stranger: Stranger) -> None:
    (folder,) = (place / "run" / "checkpoints").glob("0*")
    document = json.loads((folder / checkpoint.COMMIT).read_text())
    files = document["commit"]["files"]
    name = next(name for name in files if name.startswith("ema."))
    os.rename(folder / name, place.parent / "ema.away")
    files["ema./../../../../../ema.away"] = files.pop(name)
    document["sha256"] = checkpoint._digest(document["commit"])
    (folder / checkpoint.COMMIT).write_text(json.dumps(document))
    assert run("sample", folder, place.parent / "x.png") == 65
    assert run("train", "fashion-mnist", f"init={folder}", f"data.uri={place / 'shards'}", f"run={place}/new") in (65, 78)
    set_key(place / "run", "checkpoint.uri", f"{stranger.uri}/x")
    assert run("train", "fashion-mnist", f"init={place / 'run'}", f"data.uri={place / 'shards'}", f"run={place}/new") == 78
    assert not stranger.asked
