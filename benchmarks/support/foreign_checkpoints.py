"""Make checkpoints in other projects' formats from their keys and shapes alone.

Every number follows from its key by a formula, so that a benchmark beside an original and a test without it see the same
weights. They are far from trained ones: no gain is 1, no gamma 0, no singular vector has converged.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shapes = Mapping[str, Sequence[int]]


def numbers(key: str, shape: Sequence[int]) -> Tensor:
    """Uniform float64 numbers of mean 0 and variance 1 that `key` alone decides, on every machine."""
    count = int(np.prod(shape))
    bits = np.random.Philox(key=zlib.crc32(key.encode())).random_raw(count) >> np.uint64(11)
    return torch.from_numpy((bits * 2.0**-53 * 2 - 1) * 3**0.5).reshape(tuple(shape))


def state(network: str, shapes: Shapes) -> dict[str, Tensor]:
    """A state_dict of `network` (any name: G and G_ema shall differ) in float64."""
    tensors = {key: _tensor(key, numbers(f"{network}/{key}", shape)) for key, shape in shapes.items()}
    for key in shapes:
        if key.endswith(".weight_v"):  # torch's own spectral norm: vectors of W that have not converged
            matrix, u = tensors[key[:-2] + "_orig"].flatten(1), key[:-1] + "u"
            tensors[key] = F.normalize(matrix.mT @ tensors[u], dim=0)
            tensors[u] = F.normalize(matrix @ tensors[key], dim=0)
    return tensors


def _tensor(key: str, value: Tensor) -> Tensor:
    name = key.rpartition(".")[2]
    if name in ("num_batches_tracked", "accumulation_counter"):
        return torch.zeros_like(value, dtype=torch.int64 if name.startswith("num") else None)
    if "var" in name:
        return 1 + 0.25 * value
    if name in ("gain", "gamma", "sigma") or key in ("bn4.weight", "generator.bn.weight"):
        return 1 + 0.3 * value
    return 0.3 * value if "mean" in name or name == "bias" else value


def inputs(case: str, n: int, z_dim: int, classes: int, resolution: int) -> tuple[Tensor, Tensor, Tensor]:
    """z [n, z_dim], labels [n], images [n, 3, r, r] of a case."""
    y = torch.arange(n) * 7 % classes
    return numbers(f"{case}/z", (n, z_dim)), y, numbers(f"{case}/x", (n, 3, resolution, resolution)) / 3**0.5


def adam(network: str, parameters: Shapes) -> dict[str, Any]:
    """The state_dict of a torch Adam over `parameters`, in their order, after seven steps."""
    moments = {
        key: (numbers(f"{network}/m/{key}", s), 1 + 0.5 * numbers(f"{network}/v/{key}", s)) for key, s in parameters.items()
    }
    per_parameter = [{"step": torch.tensor(7.0), "exp_avg": m, "exp_avg_sq": v} for m, v in moments.values()]
    group = {"lr": 0.01, "betas": (0.5, 0.999), "eps": 1e-6, "weight_decay": 0, "amsgrad": False, "maximize": False}
    return {"state": dict(enumerate(per_parameter)), "param_groups": [group | {"params": list(range(len(moments)))}]}


def save(folder: Path, form: str, states: dict[str, dict[str, Tensor]], settings: dict[str, Any] | None = None) -> Path:
    """Write `states` (by G, G_ema, D, and G_optim, D_optim) as `form` would; returns the folder. Float64, as they are.

    `settings`: options of BigGAN-PyTorch's state_dict.pth, or Hugging Face's config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if form == "biggan-pytorch":
        for name, tensors in states.items():
            torch.save(tensors, folder / f"{name}.pth")
        if settings:  # as it keeps them: among the options are the activation functions
            config = settings | {"num_D_steps": 2, "num_D_accumulations": 3, "G_nl": "relu", "G_activation": nn.ReLU()}
            torch.save({"itr": 100, "epoch": 1, "best_IS": np.float64(9.5), "config": config}, folder / "state_dict.pth")
    elif form == "studiogan":
        for name in {"G", "G_ema", "D"} & states.keys():
            saved: dict[str, Any] = {"state_dict": states[name]}
            if name != "G_ema":
                saved["optimizer"] = states.get(f"{name}_optim", {"state": {}, "param_groups": []})
            if name == "D":
                saved |= {"seed": 1, "run_name": "run", "step": 5000, "topk": 64, "best_fid": np.float64(9.5), "lecam_emas": {}}
            torch.save(saved, folder / f"model={name}-best-weights-step=5000.pth")
    else:
        torch.save(states["G"], folder / "pytorch_model.bin")
        (folder / "config.json").write_text(json.dumps(settings))
    return folder
