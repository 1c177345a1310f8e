import json
import multiprocessing
import re
from pathlib import Path

import numpy as np
import pytest

from jobs.cli import main
from pipeline.data.loader import DataConfig, load_all
from pipeline.data.manifest import load_manifest
from pipeline.data.quarantine import BadSampleError, Quarantine
from pipeline.errors import DataError
from pipeline.images.pillow import png
from pipeline.packing.pack import EncodedSample, PackConfig, write_shards


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


@pytest.mark.long
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


def shards_with(folder: Path, bad: dict[int, bytes], damage: bool = False) -> str:
    """40 good images but for those given; with `damage` their bytes are no longer those that were stored."""
    good = png(np.full((8, 8, 3), 99, np.uint8))
    images = [good if damage or i not in bad else bad[i] for i in range(40)]
    samples = (EncodedSample(label=0, image=image, extension="png", grey=False) for image in images)
    write_shards(samples, str(folder), ("a",), PackConfig(resolution=8))
    tar = folder / "000000.tar"
    if damage:
        data = tar.read_bytes()
        place = data.index(good)
        tar.write_bytes(data[:place] + b"?" + data[place + 1 :])
    return str(folder)


@pytest.mark.parametrize("damage", [False, True])
def test_the_advice_fits_what_is_wrong_and_works(tmp_path: Path, damage: bool, capsys: pytest.CaptureFixture[str]) -> None:
    uri = shards_with(tmp_path / "my set", {0: b"no image"}, damage)
    manifest = load_manifest(uri)
    with pytest.raises(DataError) as caught:
        load_all(DataConfig(uri=uri), manifest)
    found = re.fullmatch(
        r"1 sample cannot be used .*; (.*), or set data.bad_fraction=(\S+) to train without", str(caught.value)
    )
    assert found is not None
    verify = f"`biggan index '{uri}' --verify`"
    if damage:
        assert found[1] == f"restore the shard from a copy ({verify} names all that are damaged)"
        assert main(["index", uri, "--verify"]) == 65 and "000000.tar" in capsys.readouterr().err
    else:
        assert found[1] == "make the shards again without it: `biggan shard SRC NEW --on-error skip`"
        assert main(["index", uri, "--verify"]) == 0
    assert len(load_all(DataConfig(uri=uri, bad_fraction=float(found[2])), manifest)[0]) == 40


def test_a_crop_that_is_too_large_is_no_fault_of_the_shards(tmp_path: Path) -> None:
    uri = shards_with(tmp_path / "set", {7: png(np.zeros((6, 9, 3), np.uint8))})
    config, manifest = DataConfig(uri=uri, crop=8), load_manifest(uri)
    with pytest.raises(DataError, match=r"it has 9 x 6 pixels, and data.crop=8 asks for more; set data.crop=6, or set"):
        load_all(config, manifest)
    assert len(load_all(DataConfig(uri=uri, crop=6), manifest)[0]) == 40


def test_the_doctor_goes_past_images_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some, none = (shards_with(tmp_path / str(n), dict.fromkeys(range(n), b"no image")) for n in (1, 40))
    assert main(["doctor", "--data", some, "--seconds", "0.1"]) == 65
    assert "1 sample cannot be used" in capsys.readouterr().err
    assert main(["doctor", "--data", none, "--seconds", "0.1"]) == 65
    assert f"no image at {none} can be used" in capsys.readouterr().err
