"""Whatever a model's server answers, `biggan sample http://` ends in images or in one line."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.servers.raw import answering
from jobs.cli import main
from pipeline.generation import model_address
from pipeline.images.pillow import png

ABOUT = {"classes": ["cat", "dog"], "params": ["seed", "start", "max_batch", "format"]}


def row(side: int = 8, channels: int = 3) -> dict[str, str]:
    return {"png": base64.b64encode(png(np.zeros((side, side, channels), np.uint8))).decode()}


@pytest.mark.parametrize(
    ("about", "rows", "code", "words"),
    [
        (ABOUT, [row(), row()], 0, ""),
        ("no JSON", [], 65, "what the model says of itself: Invalid JSON"),
        (ABOUT | {"classes": [1, 2]}, [], 65, "classes.0: Input should be a valid string"),
        (ABOUT | {"classes": []}, [], 65, "classes: List should have at least 1 item"),
        ({"classes": ["cat"]}, [], 65, "params: Field required"),
        ("[" * 100_000, [], 65, "what the model says of itself: Invalid JSON"),
        (ABOUT, [row()], 65, "answers with 1 row where 2 images were asked for"),
        (ABOUT, [row(), {}], 65, "its answer has no pictures: KeyError"),
        (ABOUT, [row(), 3], 65, "its answer has no pictures: TypeError"),
        (ABOUT, [row(), {"png": None}], 65, "its answer has no pictures"),
        (ABOUT, [row(), {"png": "###"}], 65, "its answer has no pictures"),
        (ABOUT, [row(), {"png": base64.b64encode(b"no picture").decode()}], 65, "a picture that it has drawn"),
        (ABOUT, [row(), row(16)], 65, "a picture that it has drawn"),
        (ABOUT, {"a": 1}, 78, "answers without predictions"),
    ],
)
def test_answers(about: Any, rows: Any, code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = {"predictions": [{"description": about if isinstance(about, str) else json.dumps(about)}]}

    def answer(request: bytes) -> bytes:
        body = json.dumps(described if b'"description"' in request else {"predictions": rows}).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    model_address.serves.cache_clear()
    with answering(answer) as address:
        assert main(["sample", address, str(tmp_path / "out.npz"), "--count", "2"]) == code
    said = capsys.readouterr().err.splitlines()
    assert len(said) == (code != 0) and all(words in line for line in said)
    assert (tmp_path / "out.npz").exists() == (code == 0)


def test_what_a_server_says_is_printed_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bodies = {b"400 \x1b[31mBad": b"biggan: error: your run is lost\x1b[0m", b"500 \x1b]0;pwned\x07": b"\x1b"}
    for status, body in bodies.items():
        with answering(
            lambda request, s=status, b=body: b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (s, len(b), b)
        ) as url:  # type: ignore[misc]
            model_address.serves.cache_clear()
            assert main(["sample", url, str(tmp_path / "out.npz"), "--count", "2"]) in (74, 78)
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and said[:-1].isprintable()
