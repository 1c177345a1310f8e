"""What a secret looks like, wherever it is; and that it is hidden where text leaves."""

import logging
import os
import re
import stat
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.fault_tolerance import run_mirror
from pipeline.redaction import guard, guarded, hidden, hide_secrets, holds_secret, holds_value, is_secret_name
from pipeline.runs import run_folder
from pipeline.tracking import journal
from pipeline.tracking.records import Opening, OpenRecord, TextRecord

SEED = "S33D"
PLAIN = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S"), exclude_characters="/?#"), max_size=5)
PLAIN = PLAIN.filter(lambda text: not re.match(r"\d+(<|[\"'][,}\]:])", text))  # as a port, and the end of an address
USER = st.text("abcXYZ019._~-%", max_size=5)
QUERY = st.text(st.characters(codec="ascii", categories=("L", "N"), include_characters="%+/=._-~:@,'"), max_size=5)
KEYS = ("password", "passwd", "pwd", "token", "sig", "signature", "key", "secret", "X-Amz-Signature", "X-Amz-Credential")
AROUND = st.sampled_from(["", "see ", "a/b ", "cannot read ", "`biggan index '", '{"uri": "', "x=", "\n"])


@settings(max_examples=150)
@given(AROUND, st.sampled_from(["http", "https", "postgresql", "mysql+pymysql", "s3", "ftp"]), USER, PLAIN, PLAIN, AROUND)
def test_a_password_is_hidden_up_to_the_last_at(before: str, scheme: str, user: str, a: str, b: str, after: str) -> None:
    text = f"{before}{scheme}://{user}:{a}{SEED}{b}@host:80/x {after}then {scheme}://{user}:{SEED}@other"
    shown = hide_secrets(text)
    assert SEED not in shown and "host:80/x" in shown and shown.endswith("://other")
    assert hide_secrets(shown) == shown


@settings(max_examples=150)
@given(
    AROUND,
    st.sampled_from(["http", "postgresql", "az", "redis"]),
    st.sampled_from([*KEYS, *map(str.upper, KEYS)]),
    QUERY,
    QUERY,
)
def test_a_secret_parameter_is_hidden(before: str, scheme: str, key: str, a: str, b: str) -> None:
    text = f"{before}{scheme}://host/a?user=u&{key}={a}{SEED}{b}&x=1 and more"
    shown = hide_secrets(text)
    assert SEED not in shown and "://host/a?" in shown and shown.endswith("and more")
    assert hide_secrets(shown) == shown


@settings(max_examples=200)
@given(st.text("/:@?&=ab1.;'\" -\\n"))
def test_hiding_twice_changes_nothing_more(text: str) -> None:
    assert hide_secrets(hide_secrets(text)) == hide_secrets(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:p@ss@host", "http://host"),
        ("postgresql://h/d?user=u&password=PW", "postgresql://h/d?user=u&password=..."),
        ("https://TOKEN@host/x", "https://host/x"),
        ("http://user:my p@ss@host/x", "http://host/x"),
        ("http://user:sla/sh@host/x", "http://host/x"),
        ("Endpoint=https;AccountName=n;AccountKey=ab/c==;Suffix=y", "Endpoint=https;AccountName=n;AccountKey=...;Suffix=y"),
        ("http:/user:word@host is no folder", "http:/host is no folder"),
        ("MLFLOW_TRACKING_PASSWORD=hunter2 failed", "MLFLOW_TRACKING_PASSWORD=... failed"),
        ("export HF_APIKEY='a b'", "export HF_APIKEY='...'"),
        ("{'Authorization': 'Basic dXNlcjpwdw=='}", "{'Authorization': 'Basic ...'}"),
        ('{"password": "a b", "x": 1}', '{"password": "...", "x": 1}'),
        # what holds none stays
        ("abfs://container@account.dfs.core.windows.net/x?y", None),
        ("http://localhost:5000, or ask me@host", None),
        ("registry:5000/biggan@sha256:abcd git@host:x/y models:/a@b", None),
        ("write it as postgresql://USER:PASSWORD@HOST/NAME", None),
        ("set MLFLOW_TRACKING_PASSWORD=PASSWORD, TOKENIZERS_PARALLELISM=false, key=00012", None),
        ("token: the third; keys=4 and secret=null", None),
    ],
)
def test_examples(text: str, shown: str | None) -> None:
    assert hide_secrets(text) == (text if shown is None else shown)
    assert holds_secret(text) is (shown is not None)


def test_a_name_alone_is_no_value() -> None:
    assert holds_secret("postgresql://me@host/d") and not holds_value("uri: postgresql://me@host/d")
    assert holds_value("https://me@host/d") and holds_value("postgresql://me:word@host/d")


SECRET = """AZURE_STORAGE_ACCOUNT_KEY AZURE_STORAGE_KEY AZURE_STORAGE_SAS_KEY AZURE_STORAGE_SAS AZURE_STORAGE_CONNECTION_STRING
    WANDB_API_KEY GOOGLE_SERVICE_ACCOUNT_KEY HF_APIKEY PGPASS MY_PASSWD MYSQL_PWD HF_TOKEN SASTOKEN DBPASSWORD GITHUBTOKEN
    X_AUTH AccountKey X-Amz-Credential AWS_ACCESS_KEY_ID BIGGAN_TOKEN BIGGAN_HTTP_LOGINS PASSWORD2 sig"""
PUBLIC = """keep MONKEY AWS_DEFAULT_REGION TOKENIZERS_PARALLELISM NCCL_DEBUG KEEPALIVE_TIME AUTHOR COMPASS KANSAS BYPASS ATLAS
    AWS_WEB_IDENTITY_TOKEN_FILE SSH_AUTH_SOCK KEYBOARD_LAYOUT MLFLOW_TRACKING_USERNAME PYTHONPATH TORCH_NCCL_AUTO XLA_PASSES"""


def test_names_of_secrets() -> None:
    assert [name for name in SECRET.split() if not is_secret_name(name)] == []
    assert [name for name in PUBLIC.split() if is_secret_name(name)] == []


def test_what_a_process_says_is_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"http://me:{SEED}@host/x"
    with guarded():
        handler = logging.StreamHandler()
        print("one", uri, end="")
        print(",", file=sys.stdout)
        sys.stderr.writelines([uri[:12], uri[12:], "\n"])
        handler.emit(logging.makeLogRecord({"msg": uri}))
        try:
            try:
                raise ValueError(uri)
            except ValueError as error:
                raise ConfigError(uri) from error
        except ConfigError:
            sys.excepthook(*sys.exc_info())
        print(f"half {uri}", end="")
    out, err = capsys.readouterr()
    assert out == "one http://host/x,\nhalf http://host/x" and SEED not in err and err.count("http://host/x") == 4
    assert SEED not in repr(ConfigError(uri)) + str(hidden({"a": [uri, (1, uri)]}))


def test_guarding_twice_is_guarding_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    guard()
    first = sys.stdout
    with guarded():
        assert sys.stdout is first
    assert sys.stdout is first


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_with_a_secret_is_its_owners_and_a_mode_is_kept(tmp_path: Path) -> None:
    open_, held = tmp_path / "open.json", tmp_path / "config.yaml"
    before = os.umask(0o022)
    try:
        storage.write_bytes(str(open_), b"x: 1")
        storage.write_bytes(str(held), f"uri: http://me:{SEED}@host".encode())
        assert (mode(open_), mode(held)) == (0o644, 0o600)
        open_.chmod(0o640)
        storage.write_bytes(str(open_), b"x: 2")
        storage.write_chunks(str(open_), [b"x: 3"])
        assert mode(open_) == 0o640
        open_.chmod(0o444)
        storage.write_bytes(str(open_), f"uri: http://host?sig={SEED}".encode())
        assert mode(open_) == 0o400 and open_.read_bytes().endswith(b"S33D")
        held.chmod(0o600)
        storage.write_bytes(str(held), b"x: 1")
        assert mode(held) == 0o600
        assert storage.create_bytes(str(tmp_path / "new"), f"token=abc{SEED}".encode()) and mode(tmp_path / "new") == 0o600
    finally:
        os.umask(before)


def test_a_journal_hides_all_but_the_server_that_sync_needs(tmp_path: Path) -> None:
    uri = f"http://me:{SEED}@host"
    before = os.umask(0o022)
    try:
        kept_open = journal.Journal(tmp_path)
        kept_open.append(TextRecord(time=1, text=uri, path="a"))
        path = journal.journal_path(tmp_path)
        assert mode(path) == 0o644 and SEED not in path.read_text()
        opening = Opening(uid="", uri=uri, experiment="", params={"a": uri}, tags={})
        kept_open.append(OpenRecord(time=1, open=opening))
        kept_open.close()
    finally:
        os.umask(before)
    assert mode(path) == 0o600 and path.read_text().count(SEED) == 1
    journal.append_line(tmp_path / "figures.jsonl", TextRecord(time=1, text=uri, path="a"))
    assert SEED not in (tmp_path / "figures.jsonl").read_text()
    run_folder.write_status(tmp_path, run_folder.RunState("failed", message=uri))
    assert SEED not in (tmp_path / "status.json").read_text()


def test_the_copy_beside_the_checkpoints_has_no_password(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "run" / "config.yaml").write_text(f"run: a\ndata:\n  uri: http://me:{SEED}@host/x\n")
    run_mirror.begin(str(tmp_path / "run"), str(tmp_path / "store"))
    assert (tmp_path / "store" / "config.yaml").read_text() == "run: a\ndata:\n  uri: http://host/x\n"


def test_another_password_is_no_change_of_a_run() -> None:
    old = {"init": f"http://me:{SEED}@host/x", "data.uri": "https://host/x?sig=old", "total_images": 1}
    new = {"init": "http://me:new@host/x", "data.uri": "https://host/x?sig=new", "total_images": 2}
    assert run_folder._changes(old, new) == ["total_images: 1 -> 2"]
