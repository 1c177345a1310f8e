"""What a run decides when it goes bad; whole runs that do are in tests/jobs/test_train_health.py."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.config import ModelConfig
from model.ema import EMA
from model.networks import build_discriminator, build_generator
from pipeline.checkpoint import pruning
from pipeline.checkpoint.failpoints import NaNInjection
from pipeline.checkpoint.format import Progress
from pipeline.config import build
from pipeline.data.manifest import load_manifest
from pipeline.engine.batch import BatchPlan
from pipeline.engine.objective import Objective, ObjectiveConfig, Pair
from pipeline.engine.optim import OptimConfig, make_optimizer
from pipeline.engine.ranks import Ranks
from pipeline.engine.zero import Engine, ZeroConfig
from pipeline.errors import ConfigError, TrainingError
from pipeline.fault_tolerance.health import _LASTING, _NORMS, Health, Norms
from pipeline.fault_tolerance.recovery import Failure, HealthConfig, History, Recovery
from pipeline.runs.resume import find_checkpoint
from pipeline.runs.run_folder import prepare, read_identity
from pipeline.runs.trusted_places import checkpoint_uri
from tests.support.ranks import on_ranks
from tests.support.servers import free_port
from tests.support.small_config import small_config


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 10), st.booleans()), max_size=40))
def test_failures_count_until_a_checkpoint_is_past_the_furthest(attempts: list[tuple[int, int, bool]]) -> None:
    """However a run moves: each rollback is another order, and what is in a row is what brought no checkpoint past all."""
    history, start, in_a_row, furthest = History(), 0, 0, -1
    for saved, further, spiked in attempts:
        good = start + saved
        images = good + further
        since = max(0, good - 5) if spiked else images
        in_a_row = 1 if good > furthest else in_a_row + 1
        furthest = max(furthest, images)
        before, history = history, history.after(failed(images, since, start, good))
        assert (history.rollbacks, history.in_a_row, history.furthest) == (before.rollbacks + 1, in_a_row, furthest)
        assert history.good_until <= since
        start = min(good, history.good_until)


def failed(images: int, since: int, start: int, good: int) -> Failure:
    return Failure(reason="", images=images, since=since, start=start, good=good)


def test_a_run_that_creeps_past_its_failure_without_a_checkpoint_makes_no_progress() -> None:
    history = History()
    for i in range(3):
        history = history.after(failed(1000 + 32 * i, 1000 + 32 * i, start=800, good=800))
    assert history.in_a_row == 3


def test_going_back_takes_no_checkpoint_from_within_the_trouble(tmp_path: Path, shards: Path) -> None:
    """Not even after a kill: a new process reads the history, and the doubtful checkpoints are still there."""
    config = small_config(tmp_path / "run", shards)
    prepare(config, load_manifest(str(shards)))
    state = {"run": read_identity(tmp_path / "run")["uid"], "model": asdict(config.model)}

    def save(progress: Progress) -> None:
        pruning.save(checkpoint_uri(config), progress, {"generator": {"w": torch.ones(2)}}, state, keep=3)

    for images in (100, 200, 300):
        save(Progress(images))
    history = History().after(failed(350, since=250, start=0, good=300))
    assert find_checkpoint(config).images == 300  # type: ignore[union-attr]
    assert find_checkpoint(config, history).images == 200  # type: ignore[union-attr]
    # It fails once more, later, before its first checkpoint: the one at 300 is no better for that.
    history = history.after(failed(390, since=390, start=200, good=200))
    assert history.good_until == 250 and find_checkpoint(config, history).images == 200  # type: ignore[union-attr]
    save(Progress(260, rollbacks=2))
    assert find_checkpoint(config, history).images == 260  # type: ignore[union-attr]
    with pytest.raises(TrainingError, match=r"no checkpoint from before image 50.*delete .*health\.json"):
        find_checkpoint(config, History(rollbacks=3, good_until=50))


@dataclass
class Trained:
    g: Engine
    d: Engine
    ema: EMA
    objective: Objective


def stand_at_a_stop(ranks: Ranks, run: str) -> None:
    """Both ranks decide the same, whichever has the bad number."""
    model = ModelConfig(32, 4, channels=1, ch=2, shared_dim=8, z_dim=16)
    g, d = (
        Engine(network, make_optimizer(OptimConfig(), network, 1e-3), ZeroConfig(), 8, bf16=False)
        for network in (build_generator(model), build_discriminator(model))
    )
    ema, objective = EMA(g.parts()), Objective(ObjectiveConfig(), BatchPlan(8, 4, 1, 2, 4), ranks, seed=0)
    recovery = Recovery(HealthConfig(), Path(run), ranks)
    health = Health(recovery, Trained(g, d, ema, objective), recovery.begin(None), tracker=None)
    assert health.wants_last_save(Progress(64))
    if ranks.rank == 1:
        next(iter(ema.averages.values())).view(-1)[0] = torch.nan
    assert not health.wants_last_save(Progress(128))


@pytest.mark.long
def test_a_stop_saves_nothing_that_is_not_finite(tmp_path: Path) -> None:
    on_ranks(2, stand_at_a_stop, str(tmp_path))
    (event,) = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert (event["kind"], event["images"]) == ("failure", 128) and "not saved" in event["text"]


def norms_of(values: list[float], factor: float = 10.0) -> list[int]:
    norms = Norms(factor)
    return [began for i, value in enumerate(values) if (began := norms.see(value, i)) is not None]


@given(st.floats(1e-3, 1e3), st.floats(10.5, 1e6))
def test_a_spike_that_lasts_is_found_once_with_its_beginning(level: float, height: float) -> None:
    assert norms_of([level] * _NORMS + [level * height] * 3 * _LASTING) == [_NORMS]


def test_norms_that_belong_to_training_are_no_spike() -> None:
    lazy_r1 = [50.0 if i % 16 == 0 else 1.0 for i in range(2000)]
    growth = [1.003**i for i in range(2000)]
    young = [1.0] * 50 + [1000.0] * 100 + [1.0] * 500
    assert [norms_of(values) for values in (lazy_r1, growth, young)] == [[], [], []]


def spoilt(fault: NaNInjection, step: int, updates: int) -> list[bool]:
    """Which of `updates` updates, of three micro-batches each, have NaN in all of them; the others have none."""
    reals: Iterator[Pair] = iter([(torch.zeros(1), torch.zeros(1))] * 3 * updates)
    found = [bool(x.isnan()) for x, _ in fault.spoil(reals, step, 3)]
    assert len(found) == 3 * updates and all(found[i] == found[i - i % 3] for i in range(len(found)))
    return found[::3]


def test_a_fault_strikes_one_rank_from_its_step_on_and_so_many_times(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spoilt(NaNInjection(0), 0, 4) == [False] * 4
    monkeypatch.setenv("BIGGAN_INJECT_NAN", "2:1:3")
    assert spoilt(NaNInjection(0), 0, 4) == [False] * 4
    fault = NaNInjection(1)
    assert spoilt(fault, 0, 4) == [False, False, True, True]
    assert spoilt(fault, 1, 3) == [False, True, False]  # after going back
    monkeypatch.setenv("BIGGAN_INJECT_NAN", "0:0")
    assert spoilt(NaNInjection(0), 0, 2) == [True, False]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_skips", -1, "must not be negative"),
        ("max_failures", 0, "at least 1"),
        ("spike", 0.5, "above 1, or 0 for never"),
        ("rollback_lr", 0, "above 0 and at most 1"),
        ("rollback_lr", 1.5, "above 0 and at most 1"),
        ("on_collapse", "panic", "'warn' or 'stop'"),
        ("max_skip", 3, "max_skips"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(key: str, value: object, message: str, tmp_path: Path) -> None:
    model, data = {"resolution": 32, "num_classes": 4}, {"uri": "shards"}
    tree = {"run": "r", "total_images": 8, "model": model, "data": data, "batch": {"global_batch": 8, "norm_group": 8}}
    with pytest.raises(ConfigError, match=message) as raised:
        build(tree | {"health": {key: value}})
    assert f"health.{key}" in str(raised.value)


def test_old_checkpoints_have_no_rollbacks() -> None:
    assert Progress(**json.loads('{"images": 5, "g_steps": 1}')).rollbacks == 0


_CLOSED = """
import gc, weakref
import torch
import torch.distributed as dist
from pipeline.engine.ranks import quiet_deepspeed
from pipeline.engine.zero import Engine, ZeroConfig

quiet_deepspeed(cuda=False)
dist.init_process_group("gloo")
for stage in (0, 1, 2):
    network = torch.nn.Linear(3, 1)
    engine = Engine(network, torch.optim.Adam(network.parameters()), ZeroConfig(stage=stage), 4, False)
    engine.backward(engine(torch.randn(4, 3)).mean())
    engine.step()
    kept = [weakref.ref(network.weight), weakref.ref(engine.optimizer)]
    engine.close()
    del network, engine
    gc.collect()
    print([reference() for reference in kept])
"""


@pytest.mark.slow
def test_engines_that_are_closed_leave_no_memory_behind() -> None:
    """Else each going back would take as much of a GPU's memory as the networks."""
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment = os.environ | place | {"DS_ACCELERATOR": "cpu"}
    ended = subprocess.run([sys.executable, "-c", _CLOSED], env=environment, capture_output=True, text=True, check=False)
    assert ended.stdout.splitlines() == ["[None, None]"] * 3, ended.stderr
