"""Counts out of names, labels and headers of tars: no work and no memory by what they claim."""

from collections import Counter
from pathlib import Path

import pytest

from pipeline.data.labels import number_labels
from pipeline.data.tar import FileStream, TarError, members
from pipeline.errors import ConfigError
from pipeline.packing.tar_listing import find_shards
from tests.support.datasets.imagenet import tar_with


def test_names_of_tars_that_speak_of_millions_of_others(tmp_path: Path) -> None:
    (tmp_path / "a-00000-of-99999999999.tar").touch()
    with pytest.raises(ConfigError, match=r"a-0+-of-9+\.tar is one of 99,999,999,999 tars by its name"):
        find_shards(str(tmp_path))


def test_renumbering_many_labels_is_no_matter_of_their_square() -> None:
    counts = Counter({str(3 * i): 1 for i in range(100_000)})
    found = number_labels(counts, None, renumber=True)
    assert len(found.names) == 100_000 and found.numbers["299997"] == 99_999


def test_a_tar_that_is_read_where_it_lies_is_the_same(tmp_path: Path) -> None:
    data = tar_with({f"{i}.png": bytes([i]) * 700 * i for i in range(4)})
    (tmp_path / "a").write_bytes(b"before" + data + b"after")
    with open(tmp_path / "a", "rb") as file:
        found = list(members(FileStream(file.fileno(), 6, len(data))))
        assert found == list(members([data]))
        with pytest.raises(TarError, match=r"ends in the middle of 2\.png"):
            list(members(FileStream(file.fileno(), 6, 4000), lambda *_: False))
