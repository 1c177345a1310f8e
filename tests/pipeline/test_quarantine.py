import json
import multiprocessing
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.quarantine import BadSampleError, Quarantine


def bad(sample: int) -> BadSampleError:
    return BadSampleError("000000.tar", sample, f"{sample:09d}", "its checksum differs")


def test_each_bad_sample_is_recorded_once_and_one_too_many_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(2, path)
    for sample in (5, 7, 5, 7, 5):
        quarantine.add(bad(sample))
    assert quarantine.count() == 2
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["sample"] for line in lines] == [5, 7]
    assert lines[0] == {"sample": 5, "shard": "000000.tar", "key": "000000005", "reason": "its checksum differs"}
    with pytest.raises(DataError, match=r"3 samples cannot be used and data.bad_fraction allows 2.*000000.tar, sample 9"):
        quarantine.add(bad(9))


def test_the_record_outlives_the_process_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    Quarantine(9, path).add(bad(1))
    with open(path, "a") as file:
        file.write('{"sample": 2, "sh')
    again = Quarantine(1, path)
    assert again.count() == 1
    again.add(bad(1))
    with pytest.raises(DataError):
        again.add(bad(3))


def test_without_a_budget_the_first_is_the_last() -> None:
    with pytest.raises(DataError, match="1 sample cannot be used"):
        Quarantine(0).add(bad(0))


def record(path: Path, first: int) -> None:
    quarantine = Quarantine(1000, path)
    for sample in range(first, first + 200):
        quarantine.add(bad(sample))


def test_ranks_share_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=record, args=(path, first)) for first in (0, 100, 300)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
        assert rank.exitcode == 0
    # Who reads while another writes may take a line for torn, and leave an empty one.
    assert {json.loads(line)["sample"] for line in path.read_text().splitlines() if line} == set(range(500))
    with pytest.raises(DataError, match="501 samples"):
        Quarantine(500, path).add(bad(900))
