from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.storage.addresses import file_name, join, local_path, split_query, store_of
from pipeline.wording import hide_secrets

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1).filter(lambda name: name not in (".", ".."))


@settings(max_examples=30)
@given(NAMES)
def test_a_name_joined_is_the_name_that_is_found(name: str) -> None:
    assert str(local_path(join("file:///tmp/a%20b", name))) == f"/tmp/a b/{name}"
    found = urlsplit(join("https://host/a?sig=x", name))
    assert unquote(found.path) == f"/a/{name}" and found.query == "sig=x" and not found.fragment
    assert file_name(found.path.rpartition("/")[2], "https://host/a") == name
    assert join("s3://bucket/a/", name) == f"s3://bucket/a/{name}"


def test_only_web_addresses_have_queries() -> None:
    assert split_query("https://host/a.tar?x=1&y=2") == ("https://host/a.tar", "?x=1&y=2")
    assert split_query("s3://bucket/what?.tar") == ("s3://bucket/what?.tar", "")
    assert split_query("what?.tar") == ("what?.tar", "")


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(local_path("~/shards")) == "/somewhere/shards"
    assert str(local_path("file://localhost/a%25")) == "/a%"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read https://host/a.tar?sv=1&sig=x%3D: no", "cannot read https://host/a.tar?...: no"),
        ("`biggan index 'https://host/{0..9}.tar?sig=x' --out o`", "`biggan index 'https://host/{0..9}.tar?...' --out o`"),
        ("https://me:word@host/a, http://host/a?X-Amz-Signature=1.", "https://host/a, http://host/a?...."),
        ("abfs://container@account.dfs.core.windows.net/x?y", "abfs://container@account.dfs.core.windows.net/x?y"),
        ("is it there? yes", "is it there? yes"),
    ],
)
def test_secrets_are_not_shown(text: str, shown: str) -> None:
    assert hide_secrets(text) == shown == hide_secrets(shown)


def test_a_store_is_named_without_its_secrets() -> None:
    assert store_of("https://me:word@host:80/a?sig=x") == "https://host:80"
    assert store_of("s3://bucket/a/b") == "s3://bucket"
