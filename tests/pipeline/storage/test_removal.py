"""What is removed, and what stays, of single files: whose they are is in their content."""

import os
from pathlib import Path

import pytest

from pipeline.cluster.launch import forget_stop
from pipeline.errors import ConfigError
from pipeline.fault_tolerance import run_mirror, stop
from pipeline.runs import evaluations
from pipeline.storage import removal
from tests.support.evaluation_documents import make_document


@pytest.mark.parametrize(
    "content", [b"", b"no JSON", b"[1]", b'{"pid": 1}', b'{"pid": 2, "host": "a"', b"[" * 100_000, bytes(2 << 20)]
)
def test_a_file_goes_only_if_its_content_is_ours(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fence.json"
    path.write_bytes(content)
    assert not removal.remove(str(path), removal.has("host", "pid"))
    assert path.read_bytes() == content
    path.write_bytes(b'{"pid": 2, "host": "a", "more": 1}')
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "folder").mkdir()
    assert not removal.remove(str(tmp_path / "link"), removal.has("host")) and path.exists()
    assert not removal.remove(str(tmp_path / "folder"), removal.has("host")) and (tmp_path / "folder").exists()
    assert not removal.remove(str(path), removal.has("pid", host="b")) and path.exists()
    assert removal.remove(str(path), removal.has("pid", host="a")) and not path.exists()
    assert removal.remove(str(path), removal.has("pid")), "it is gone already"


@pytest.mark.parametrize("name", ["../thesis.tex", "/etc/passwd", "..", "a/b", ""])
def test_a_list_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="is not the name of a file in"):
        removal.remove_files(str(tmp_path / "folder"), [name])
    assert (tmp_path / "thesis.tex").exists()


def test_nothing_is_put_aside_over_something(tmp_path: Path) -> None:
    (tmp_path / "aside").mkdir()
    for place in (tmp_path / "run.json", tmp_path / "aside" / "run.json"):
        place.write_text(str(place))
    with pytest.raises(ConfigError, match="is in the way: move it elsewhere"):
        removal.move_aside(tmp_path / "run.json", tmp_path / "aside")
    assert (tmp_path / "run.json").exists() and (tmp_path / "aside" / "run.json").read_text() == str(place)


def test_a_document_beside_an_evaluation_goes_only_if_it_is_the_same(tmp_path: Path) -> None:
    place = str(tmp_path / "0000000064.json")
    document = make_document({"FID[x]": 1.0}, samples=8, seed=0, weights_sha256="ab", recipe_id="0123456789abcdef")
    beside = Path(evaluations._beside(place, document))
    beside.write_text('{"of": "another program"}')
    assert evaluations.keep(place, document, print) == place
    assert beside.read_text() == '{"of": "another program"}'


def test_only_a_plain_file_of_a_request_is_removed(tmp_path: Path) -> None:
    """What else is called STOP stops a run, too, and stays: `stop.refuse_lasting` names it to the next start."""
    place = tmp_path / "STOP"
    for make in (place.touch, lambda: place.write_bytes(b"\xff now")):
        make()
        stop.forget(tmp_path)
        assert not os.path.lexists(place)
    place.mkdir()
    (place / "thesis.tex").write_text("mine")
    stop.forget(tmp_path)
    assert (place / "thesis.tex").read_text() == "mine"


def test_a_file_called_stop_in_a_folder_without_a_run_is_one_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "STOP").write_text("SIGTERM")
    run_mirror.refuse_foreign_run(str(tmp_path))
    forget_stop(tmp_path)
    assert not (tmp_path / "STOP").exists()
    (tmp_path / "STOP").write_text("mine")
    forget_stop(tmp_path)
    assert (tmp_path / "STOP").read_text() == "mine"
    with pytest.raises(ConfigError, match=r"\(it holds STOP\): set run=NEW_RUN"):
        run_mirror.refuse_foreign_run(str(tmp_path))
    (tmp_path / "run.json").touch()
    forget_stop(tmp_path)
    assert not (tmp_path / "STOP").exists()
