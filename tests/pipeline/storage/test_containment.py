import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.storage.addresses import local_path
from pipeline.storage.containment import below, inside, same_store, store_key

OUT = [
    "../x",
    "a/../../x",
    "/etc/passwd",
    "",
    ".",
    "..",
    "a//b",
    "a/",
    "n\0l",
    "..\\x",
    "a\\..\\x",
    7,
    None,
    ["x"],
]
OUT += ["file:///etc/passwd", "http://evil/x", "s3://other/x"]


@pytest.mark.parametrize("name", OUT, ids=repr)
def test_a_name_that_leads_out_of_its_folder_is_refused(tmp_path: Path, name: object) -> None:
    for join in (inside, lambda folder, *rest: below(str(folder), *rest), lambda _, *rest: below("s3://own/set", *rest)):
        with pytest.raises(
            DataError, match=r"^the journal names the file '.*', which is not a (path inside its folder|file name)$"
        ):
            join(tmp_path, name, "the journal")


@pytest.mark.parametrize("name", ["%2e%2e/x", "%252e%252e/x", "a%2f..%2fx", "..%5cx", "x%00"])
def test_percent_codes_count_on_web_servers_alone(name: str) -> None:
    assert below("/set", name, "it") == f"/set/{name}"
    with pytest.raises(DataError):
        below("https://host/set", name, "it")


@pytest.mark.parametrize(
    "name",
    ["000000.tar", "train/000.tar", "..a.tar", "a..b/c", "50% off.tar", "a?b#c", "café.tar", "a:b.tar", "~x.tar", "a\\b.tar"],
)
def test_other_names_stay_what_they_are(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name, "it") == tmp_path / name
    assert local_path(below(tmp_path.as_uri(), name, "it")) == tmp_path / name
    assert below("s3://own/set", name, "it") == f"s3://own/set/{name}"


@given(st.text("./\\~%2efab\0:", max_size=12))
def test_whatever_is_let_pass_is_inside(name: str) -> None:
    folder = Path("/folder/of/somebody")
    try:
        path = inside(folder, name, "it")
    except DataError:
        return
    normal = os.path.normpath(path)
    assert normal.startswith(f"{folder}/") and local_path(below(str(folder), name, "it")) == path


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_not(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    folder = tmp_path / "run"
    (folder / "samples").mkdir(parents=True)
    (folder / "a.png").write_text("a")
    (folder / "b.png").symlink_to("a.png")
    (folder / "c.png").symlink_to("../secret")
    (folder / "up").symlink_to(tmp_path)
    assert inside(folder, "b.png", "it").read_text() == "a"
    os.mkfifo(folder / "pipe")
    with pytest.raises(DataError, match="which is a pipe"):
        inside(folder, "pipe", "it")
    for name in ("c.png", "up/secret"):
        with pytest.raises(DataError, match="which is a link out of its folder"):
            inside(folder, name, "it")
    (tmp_path / "moved").symlink_to(folder)  # the folder itself may be reached by a link
    assert inside(tmp_path / "moved", "a.png", "it").read_text() == "a"


def test_what_a_message_shows_of_a_name_is_printable_and_short(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        inside(tmp_path, "../\x1b]0;x\n" + 1000 * "y", "it")
    assert "\\x1b]0;x\\ny" in str(error.value) and str(error.value).isprintable() and len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("/data/a", "file:///data/b", True),
        ("relative", "/data", True),
        ("http://Host/a", "http://user:pw@host:80/b?c", True),
        ("https://host/a", "https://host:443", True),
        ("http://host/a", "https://host/a", False),
        ("http://host/a", "http://host:81/a", False),
        ("http://host/a", "http://host.evil/a", False),
        ("http://host/a", "http://host@evil/a", False),
        ("http://host/a", "http://evil\\@host/a", False),
        ("http://host/a", "file:///etc", False),
        ("/data", "http://169.254.169.254/latest", False),
        ("s3://one/a", "s3://one/b", True),
        ("s3://one/a", "s3://One/b", False),
        ("s3://one/a", "s3://two/a", False),
        ("s3://one/a", "gs://one/a", False),
        ("abfs://container@account/a", "abfs://container@account/b", True),
        ("abfs://container@account/a", "abfs://other@account/b", False),
        ("s3://one/a", "simplecache::s3://one/a", False),
    ],
)
def test_a_store_is_its_scheme_and_bucket_or_server(one: str, other: str, same: bool) -> None:
    assert same_store(one, other) is same


def test_the_store_of_sqlite_is_its_file(tmp_path: Path) -> None:
    assert store_key(f"sqlite:///{tmp_path}/a%20b.db") == f"file://{tmp_path}/a b.db"
    with pytest.raises(DataError, match="is not an address"):
        store_key("http://host:no/x")
