"""Saves in the background by two real ranks: a store that refuses, a rank whose disk does, a successor."""

import json
from pathlib import Path

import pytest
import torch

from pipeline import storage
from pipeline.checkpoint import fencing, format, saver
from pipeline.checkpoint.fencing import take_fence
from pipeline.checkpoint.format import Progress
from pipeline.checkpoint.retention import CheckpointConfig
from pipeline.checkpoint.saver import Saver
from pipeline.engine import agreement
from pipeline.engine.ranks import Ranks, start_workers
from pipeline.engine.slices import share, whole
from pipeline.errors import NodeError, StorageError, UserError
from tests.support.ranks import run_ranks


def save(s: Saver, images: int) -> None:
    """Contents that tell the time, in a tensor that goes on changing."""
    tensor = torch.full((1001,), float(images))
    s.save(Progress(images), {"ema": share(whole({"w": tensor}), s.ranks)}, {"objective": {}})
    tensor.fill_(-1)


def a_rank_that_cannot_write(folder: Path, ranks: Ranks) -> object:
    uri = str(folder)
    with Saver(CheckpointConfig(every=100), take_fence(uri, ranks), ranks, 0) as s:
        (folder / "0000000100-0001" / "ema.rank00001.safetensors").mkdir(parents=True, exist_ok=True)
        save(s, 100)
        s.check()
        after_failure = s.saved
        save(s, 200)
    return [after_failure, s.saved]


def a_store_that_takes_nothing(folder: Path, ranks: Ranks) -> object:
    saver._PAUSES = (0.01, 0.01)
    s = Saver(CheckpointConfig(every=100, max_loss=300), take_fence(str(folder), ranks), ranks, 0)
    save(s, 100)
    s.check()
    if ranks.main:
        folder.rename(folder.with_name("away"))
        folder.touch()  # a file where the folder should be
    torch.distributed.barrier()
    for images in (200, 300, 400, 500):
        try:
            save(s, images)
        except StorageError as error:
            return [images, error.exit_code, str(error)]
    return "went on"


def an_end_that_the_store_delays(folder: Path, ranks: Ranks) -> object:
    """The last save fails at first: `close` tries again."""
    saver._PAUSES = (0.2,) * 20
    s = Saver(CheckpointConfig(every=100), take_fence(str(folder), ranks), ranks, 0)
    block = folder / "0000000100-0001" / "ema.rank00001.safetensors"
    block.mkdir(parents=True, exist_ok=True)
    save(s, 100)
    s.check()
    if ranks.main:
        block.rmdir()
    s.close()
    return s.saved


def a_zombie(folder: Path, ranks: Ranks) -> object:
    s = Saver(CheckpointConfig(every=100), take_fence(str(folder), ranks), ranks, 0)
    save(s, 100)
    s.check()
    if ranks.main:
        fencing.take(str(folder))
    torch.distributed.barrier()
    save(s, 200)
    try:
        s.check()
    except UserError as error:
        return [error.exit_code, str(error)]
    return "committed"


def a_bug(folder: Path, ranks: Ranks) -> object:
    """Rank 1 has another tensor in mind than rank 0: what would not be whole is not committed."""
    s = Saver(CheckpointConfig(every=100), take_fence(str(folder), ranks), ranks, 0)
    mine = share(whole({"w": torch.ones(10)}), ranks)
    s.save(Progress(100), {"ema": mine if ranks.main else []}, {})
    try:
        s.check()
    except RuntimeError as error:
        return str(error)
    return "committed"


def what_all_know(folder: Path, ranks: Ranks) -> object:
    """Plain data only, of the type that was asked for, and no more than fits."""
    told = agreement.from_main(list[str], ["é", "b"] if ranks.main else None, ranks)
    each = agreement.from_all(list[int], [ranks.rank] * ranks.rank, ranks)
    try:
        agreement.from_main(int, "3" if ranks.main else None, ranks)  # type: ignore[arg-type]
    except NodeError as error:
        return [told, each, str(error)]
    return "taken"


SCENES = (what_all_know, a_rank_that_cannot_write, a_store_that_takes_nothing, an_end_that_the_store_delays, a_zombie, a_bug)


def play(folder: Path) -> None:
    ranks = start_workers()
    for scene in SCENES:
        found = scene(folder / scene.__name__, ranks)
        (folder / f"{scene.__name__}.{ranks.rank}.json").write_text(json.dumps(found))
        torch.distributed.barrier()


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saver")
    run_ranks(play, folder, ranks=2, log=folder / "log")
    return folder


def told(played: Path, scene: object) -> object:
    """What both ranks found, which must be the same."""
    name = scene.__name__  # type: ignore[attr-defined]
    found = [json.loads((played / f"{name}.{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == found[1]
    return found[0]


@pytest.mark.long
def test_ranks_tell_each_other_plain_data_of_the_right_type(played: Path) -> None:
    told_, each, error = told(played, what_all_know)  # type: ignore[misc]
    assert (told_, each) == (["é", "b"], [[], [1]])
    assert error == "what another rank said: Input should be a valid integer"


def test_a_failure_on_one_rank_is_no_checkpoint_and_training_goes_on(played: Path) -> None:
    assert told(played, a_rank_that_cannot_write) == [0, 200]
    (found,) = format.committed(str(played / "a_rank_that_cannot_write"))
    assert found.images == 200 and (found.tensors("ema")["w"] == 200).all()
    assert "no checkpoint at 100 images (failure 1 in a row; the last one is at 0" in (played / "log").read_text()


def test_a_store_that_takes_nothing_stops_the_run_before_too_much_is_lost(played: Path) -> None:
    images, code, message = told(played, a_store_that_takes_nothing)  # type: ignore[misc]
    # At 400 images 300 are at risk, which is the limit: the next would be beyond it.
    assert (images, code) == (400, 74)
    assert message.startswith("cannot save 400 images, the last checkpoint is at 100: cannot write ")
    away = format.newest(str(played / "away"))
    assert away and away.images == 100


def test_the_last_save_is_tried_again(played: Path) -> None:
    assert told(played, an_end_that_the_store_delays) == 100


def test_a_zombie_does_not_commit_and_stops(played: Path) -> None:
    code, message = told(played, a_zombie)  # type: ignore[misc]
    assert code == 78 and "another training started there after this one" in message
    assert [c.images for c in format.committed(str(played / "a_zombie"))] == [100]
    assert storage.names(str(played / "a_zombie" / "0000000200-0001")) == [
        "ema.rank00000.safetensors",
        "ema.rank00001.safetensors",
        "state.json",
    ]


def test_what_is_not_whole_is_not_committed(played: Path) -> None:
    assert "ema w [10] is saved as [[0, 5]]" in str(told(played, a_bug))
    assert list(format.committed(str(played / "a_bug"))) == []
