"""What a store will not do is said at once, by its cause, with what to set; folders of S3 as other tools leave them."""

from pathlib import Path
from typing import Any

import boto3
import pytest

from jobs.cli import main
from pipeline import storage
from pipeline.errors import ConfigError, StorageError
from pipeline.storage import object_stores
from tests.support.servers import S3Server
from tests.support.tiny_runs import assert_one_line
from tests.support.web_store import serve

XML = '<?xml version="1.0"?>\n<Error><Code>{}</Code>\n<Message>{}.</Message></Error>'


@pytest.mark.long
@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (400, XML.format("ExpiredToken", "The provided token has expired"), "have expired .* set AWS_ACCESS_KEY_ID"),
        (
            403,
            XML.format("AccessDenied", "Access Denied"),
            "403 Forbidden: AccessDenied: Access Denied.*; check AWS_ACCESS_KEY",
        ),
        (403, XML.format("RequestTimeTooSkewed", "The difference is too large"), "this machine's clock is wrong"),
        (403, "<html>\n<h1>Forbidden</h1></html>", r"credentials \(403 Forbidden\); check"),
        (400, XML.format("AuthorizationHeaderMalformed", "expecting 'eu-west-1'"), "another region; set AWS_REGION"),
        (301, XML.format("PermanentRedirect", "use the endpoint"), "another region; set AWS_REGION"),
        (404, XML.format("NoSuchBucket", "does not exist"), "there is no bucket bucket; check its name"),
        (413, "<html>\n<h1>Too large</h1></html>", r"the store refuses it \(413 Payload Too Large\)"),
        (
            501,
            XML.format("NotImplemented", "A header"),
            r"the store refuses it \(501 Not Implemented: NotImplemented: A header\)",
        ),
    ],
)
def test_a_stores_no_is_final(s3: S3Server, monkeypatch: pytest.MonkeyPatch, status: int, body: str, says: str) -> None:
    with serve(Path(), answers=[(status, body)], forever=True) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
        acts: list[Any] = [storage.read_bytes, storage.names, lambda uri: storage.write_bytes(uri, b"x")]
        for act in acts:
            before = len(server.asked)
            with pytest.raises(ConfigError, match=f"^cannot [a-z]+ s3://bucket/x: [^<]*{says}"):
                act("s3://bucket/x")
            assert len(server.asked) - before <= 3  # obstore's own two retries of any 5xx


@pytest.mark.long
@pytest.mark.parametrize("status", [429, 503])
def test_a_store_that_is_busy_may_not_be_later(s3: S3Server, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    answers = [(status, XML.format("SlowDown", "Please reduce your request rate"))]
    with serve(Path(), answers=answers * 5) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
        with pytest.raises(storage.NotFoundError):  # the server has nothing, and says so once it answers
            storage.read_bytes("s3://bucket/x")
    monkeypatch.setattr(object_stores, "RETRY_SECONDS", 0.1)
    with serve(Path(), answers=answers, forever=True) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
        with pytest.raises(StorageError, match=rf"{status} .*: SlowDown: Please reduce your request rate \(asked again for"):
            storage.read_bytes("s3://bucket/x")


def test_the_wrong_protocol_is_said(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.env["AWS_ENDPOINT_URL"].replace("http:", "https:"))
    with pytest.raises(ConfigError, match="does not speak TLS; use an http:// address"):
        storage.read_bytes("s3://bucket/x")


def put(s3: S3Server, *keys: str, data: bytes = b"") -> None:
    client = boto3.client("s3", endpoint_url=s3.env["AWS_ENDPOINT_URL"], region_name="us-east-1")
    for key in keys:
        client.put_object(Bucket=s3.uri.removeprefix("s3://"), Key=key, Body=data)


def test_a_folder_marker_is_no_content(s3: S3Server, tmp_path: Path) -> None:
    folder = tmp_path.name
    put(s3, f"{folder}/", f"{folder}/a_$folder$", f"{folder}/b/")
    assert storage.names(f"{s3.uri}/{folder}") == ["b"]
    assert storage.names(f"{s3.uri}/{folder}/b") == []
    put(s3, f"{folder}/b/x", data=b"1")
    assert storage.names(f"{s3.uri}/{folder}/b/") == ["x"]


def test_a_stray_key_with_an_empty_part_hides_nothing(
    s3: S3Server, tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path.name
    for tar in shards.glob("*.tar"):
        put(s3, f"{folder}/{tar.name}", data=tar.read_bytes())
    put(s3, f"{folder}//backup.tar", f"{folder}/", data=b"")
    assert storage.names(f"{s3.uri}/{folder}") == sorted(tar.name for tar in shards.glob("*.tar"))
    assert f"ignored the keys that begin with {folder}//" in caplog.text


@pytest.mark.parametrize("argv", [["index", "URI"], ["shard", "SRC", "URI", "--keep"], ["doctor", "--data", "URI"]])
def test_a_double_slash_is_named(s3: S3Server, shards: Path, capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    uri = f"{s3.uri}/double//slash"
    code = main([{"URI": uri, "SRC": str(shards)}.get(word, word) for word in argv])
    assert_one_line(capsys.readouterr().err, code, 78, "has a double slash", f"name {s3.uri}/double/slash")


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("xyz://a/b", "no storage is known by xyz://; use a path, s3://"),
        ("htps://host/b", "did you mean http"),
        ("s3a://a/b", "did you mean s3://"),
        ("gcs://a/b", "Please install gcsfs .* did you mean gs://"),
        ("lakefs://a/b", "needs a package that is not installed .*lakefs"),
        ("github://a", "this is not a valid address"),
        ("s3:///b", "an address is s3://BUCKET/PATH"),
        ("s3://bucket/../b", "illegal character sequence"),
    ],
)
def test_an_address_without_a_driver_or_a_meaning(uri: str, says: str) -> None:
    for act in (storage.read_bytes, storage.names, storage.size):
        with pytest.raises(ConfigError, match=f"{uri}.*{says}"):
            act(uri)
