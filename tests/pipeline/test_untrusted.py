"""Content of somebody else ends as what it should be, or in one line that says what is wrong and where."""

import zlib
from dataclasses import dataclass
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from pipeline.errors import ConfigError, DataError, StorageError, UserError
from pipeline.untrusted import parse, parsing
from pipeline.wording import printable


@dataclass(frozen=True)
class Shard:
    name: str
    samples: Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Document:
    shards: list[Shard]
    note: str = ""


def test_what_fits_is_returned_and_more_keys_are_let_pass():
    found = parse(Document, b'{"shards": [{"name": "a", "samples": 3, "later": 1}]}', "manifest.json")
    assert found == Document([Shard("a", 3)])


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", "manifest.json: Invalid JSON: EOF while parsing a value at line 1 column 0; pack again"),
        (b"\xff", "manifest.json: Invalid JSON: expected value at line 1 column 1; pack again"),
        (b'{"shards": [{"name": "a", "samples": -1}]}', "manifest.json: shards.0.samples: Input should be greater than or"),
        (b'{"shards": [{"name": "a", "samples": "3"}]}', "manifest.json: shards.0.samples: Input should be a valid integer"),
        (b'{"shards": [{"name": "a", "samples": 1e3000}]}', "manifest.json: shards.0.samples: "),
        (b'{"shards": 3}', "manifest.json: shards: Input should be a valid array"),
        (b"[" * 100_000, "manifest.json: Invalid JSON: recursion limit exceeded"),
    ],
)
def test_what_does_not_fit_is_one_line(data, line):
    with pytest.raises(DataError) as refused:
        parse(Document, data, "manifest.json", "pack again")
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)


def test_what_a_parser_raises_is_one_line():
    with pytest.raises(DataError, match=r"^images\.gz: error: Error -3 while decompressing"), parsing("images.gz"):
        zlib.decompress(b"no")
    with pytest.raises(ConfigError, match=r"^a: ValueError: 1\\x1b 2; pack again$"), parsing("a", "pack again", ConfigError):
        raise ValueError("1\x1b\n2")
    with pytest.raises(DataError, match="more memory than there is"), parsing("a"):
        raise MemoryError


def test_our_own_refusals_and_disks_pass():
    with pytest.raises(UserError, match=r"^ours$"), parsing("a"):
        raise ConfigError("ours")
    with pytest.raises(StorageError, match="the disk is full"), parsing("a"):
        raise OSError(28, "No space left on device")


@given(st.text())
def test_printable_text_is_one_line_without_controls_and_can_be_encoded(text):
    clean = printable(text)
    assert clean.isprintable()
    clean.encode()
    if text.isprintable():
        assert clean == text
