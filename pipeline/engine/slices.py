"""Which elements of each tensor a rank holds, at each ZeRO stage: what it writes into a checkpoint and takes from one.

| stage | parameters, averages | Adam's moments |
|---|---|---|
| 0 | all ranks hold all: each writes an even share | the same |
| 1, 2 | the same | each rank holds a stretch of all parameters laid end to end |
| 3 | each rank holds a piece of each parameter | the same |

Buffers are the same on all ranks at each stage. Private names of DeepSpeed are touched in `_partitioned_moments`, `_pieces` and
`_flat_groups` only; its version is pinned.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.engine.ranks import Ranks
from pipeline.engine.zero import Engine

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Slice:
    """`data` [n] are the elements `offset` .. `offset` + n of the flattened tensor `name`, which has `shape`."""

    name: str
    shape: tuple[int, ...]
    offset: int
    data: Tensor


def whole(tensors: Mapping[str, Tensor]) -> list[Slice]:
    return [Slice(name, tuple(t.shape), 0, t.detach().reshape(-1)) for name, t in tensors.items()]


def share(slices: Iterable[Slice], ranks: Ranks) -> list[Slice]:
    """This rank's part of what all ranks hold alike: laid end to end and cut evenly."""
    slices = list(slices)
    total = sum(len(s.data) for s in slices)
    first, last = (total * r // ranks.world_size for r in (ranks.rank, ranks.rank + 1))
    mine, position = [], 0
    for s in slices:
        start, end = max(first - position, 0), min(last - position, len(s.data))
        if start < end:
            mine.append(Slice(s.name, s.shape, s.offset + start, s.data[start:end]))
        position += len(s.data)
    return mine


def network(engine: Engine, ranks: Ranks) -> list[Slice]:
    """What this rank writes of a network's parameters and buffers."""
    tensors = {name: tensor.detach().float() for name, tensor in engine.module.state_dict().items()}
    if engine.stage < 3:
        return share(whole(tensors), ranks)
    parameters = dict(engine.module.named_parameters())
    buffers = {name: tensor for name, tensor in tensors.items() if name not in parameters}
    return [*_pieces(engine, ranks, None), *share(whole(buffers), ranks)]


def average(averages: Mapping[str, Tensor], engine: Engine, ranks: Ranks) -> list[Slice]:
    """What this rank writes of the EMA of `engine`'s parameters, kept as `Engine.parts`."""
    if engine.stage < 3:
        return share(whole(averages), ranks)
    return [Slice(s.name, s.shape, s.offset, averages[s.name][: len(s.data)]) for s in _pieces(engine, ranks, None)]


def slice_moments(engine: Engine, ranks: Ranks) -> list[Slice]:
    """What this rank writes of Adam's moments `exp_avg/NAME`, `exp_avg_sq/NAME` and of the count of steps, `step`.

    Empty for SGD and before the first step.
    """
    steps = [state["step"] for state in engine.optimizer.state.values() if "step" in state]
    if not steps:
        return []
    held = list(held_moments(engine, ranks))
    mine = share(held, ranks) if engine.stage == 0 else held
    return [*mine, *(whole({"step": torch.as_tensor(steps[0]).float()}) if ranks.main else [])]


def held_moments(engine: Engine, ranks: Ranks) -> Iterator[Slice]:
    """All moments that this rank's optimiser works on, as views that may be written to."""
    for key in MOMENTS:
        if engine.stage == 0:
            held = {name: engine.optimizer.state[p][key] for name, p in engine.module.named_parameters()}
            found: Iterable[Slice] = whole(held)
        else:
            found = _partitioned_moments(engine, key) if engine.stage < 3 else _pieces(engine, ranks, key)
        yield from (Slice(f"{key}/{s.name}", s.shape, s.offset, s.data) for s in found)


def load_moments(engine: Engine, ranks: Ranks, fill: Callable[[Iterable[Slice]], None]) -> None:
    """Make the optimiser's state as after the saved steps; `fill` writes saved values into slices. Before the first step."""
    step = torch.zeros(1)
    fill([Slice("step", (), 0, step)])
    for parameter in _flat_groups(engine):
        engine.optimizer.state[parameter] = {
            "step": step[0].to(parameter.device, copy=True),
            **{key: torch.zeros_like(parameter, memory_format=torch.preserve_format) for key in MOMENTS},
        }
    fill(held_moments(engine, ranks))


def _flat_groups(engine: Engine) -> list[Any]:
    """What torch's optimiser takes for its parameters."""
    if engine.stage == 3:
        return list(engine.zero.fp32_partitioned_groups_flat)
    return [parameter for group in engine.optimizer.param_groups for parameter in group["params"]]


def _partitioned_moments(engine: Engine, key: str) -> Iterator[Slice]:
    """Stages 1 and 2: the stretch of each parameter that lies in this rank's partition."""
    parameters: dict[str, Any] = dict(engine.module.named_parameters())
    for name, parameter in parameters.items():
        if (mapping := parameter._hp_mapping) is not None:
            here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
            flat = engine.zero.single_partition_of_fp32_groups[mapping.param_group_index]
            data = engine.optimizer.state[flat][key].narrow(0, there.start, there.numel)
            yield Slice(name, tuple(parameter.shape), here.start, data)


def _pieces(engine: Engine, ranks: Ranks, key: str | None) -> Iterator[Slice]:
    """Stage 3: this rank's piece, without its padding, of each parameter (in fp32) or of a moment of it."""
    parameters: dict[str, Any] = dict(engine.module.named_parameters())
    for name, parameter in parameters.items():
        data, _ = engine.zero._get_fp32_opt_state_partition(parameter, release_swap_buffers=False, optim_state_key=key)
        start = ranks.rank * parameter.ds_tensor.ds_numel
        if (count := min(parameter.ds_numel - start, len(data))) > 0:
            yield Slice(name, tuple(parameter.ds_shape), start, data.detach()[:count])
