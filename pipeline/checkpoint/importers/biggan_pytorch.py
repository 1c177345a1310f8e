"""Folders of BigGAN-PyTorch: G.pth, G_ema.pth, D.pth, G_optim.pth, D_optim.pth, state_dict.pth, maybe each with _best0 or so.

Each forward there makes one power iteration from the stored u0, in eval mode too, and divides by the sigma of the result.
Networks here never move their vectors, so what is stored is that result: v = norm(u0 W), u = norm(v W^T).
"""

import json
import re
from collections.abc import Callable
from operator import methodcaller
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import TypedDict

from pipeline import storage
from pipeline.checkpoint.format import Progress, Tensors
from pipeline.checkpoint.importers.convert import ROLES, Imported, Options, Weights, adam_moments, convert, one_table, rename
from pipeline.checkpoint.importers.files import CodeError, as_tensors, read_file
from pipeline.errors import ConfigError, DataError
from pipeline.untrusted import parse, parsing
from pipeline.wording import printable

NAME = "BigGAN-PyTorch"
LOOKED_FOR = "G.pth or G_ema.pth"

_RULES = [
    (r"^seed\.", "linear."),
    (r"^input\.", "input_conv."),
    (r"^output_bn\.", "output_layer.0."),
    (r"^output\.", "output_layer.2."),
    (r"^blocks\.(\d+)\.", r"blocks.\1.0."),
    (r"^attention\.(\d+)\.", r"blocks.\1.1."),
    (r"\.shortcut\.", ".conv_sc."),
    (r"\.query\.", ".theta."),
    (r"\.key\.", ".phi."),
    (r"\.value\.", ".g."),
    (r"\.output\.", ".o."),
    (r"\.norm\.(mean|var)$", r".stored_\1"),
    (r"\.(u|v)$", r".\g<1>0"),
]
_RELU = "relu", "inplace_relu", "ir"
_BUILT = {"norm_style": ("bn",), "G_nl": _RELU, "D_nl": _RELU, "G_param": ("SN",), "D_param": ("SN",)}
"""Options whose other values are other networks with the same tensors."""
_BN_EPS, _SN_EPS = 1e-5, 1e-6
"""The values of its launch scripts."""
_OUTPUT_BN_EPS = 1e-5
"""Its output layer does not get BN_eps."""


def find(names: list[str], options: Options) -> dict[str, str] | None:
    """File of each part (`G`, `G_ema`, `D`, ...) among `names`; None if this is no such folder."""
    suffixes = {found[1] or "" for name in names if (found := re.match(r"(?:G_ema|G)(?:_(?!ema|optim)(.+))?\.pth$", name))}
    if not suffixes:
        return None
    wanted = options.name_suffix or ""
    if wanted not in suffixes:
        known = ", ".join(f"--name-suffix {suffix}" if suffix else "one without" for suffix in sorted(suffixes))
        raise ConfigError(f"--name-suffix {wanted or 'is missing'}: there is {known}")
    parts = (*ROLES, "G_optim", "D_optim", "state_dict")
    files = {part: f"{part}_{wanted}.pth" if wanted else f"{part}.pth" for part in parts}
    return {part: file for part, file in files.items() if file in names}


def read(src: str, files: dict[str, str], options: Options, say: Callable[[str], None]) -> Imported:
    """See `pipeline.checkpoint.importers.detect.read`."""
    if options.generator_only:
        files = {part: file for part, file in files.items() if not part.startswith("D")}
    notes: list[str] = []
    settings = _settings(storage.join(src, files["state_dict"]), notes) if "state_dict" in files else {}
    sn_eps = options.sn_eps or settings.get("SN_eps", _SN_EPS)
    fixed = {
        "bn_eps": options.bn_eps or settings.get("BN_eps", _BN_EPS),
        "output_bn_eps": _OUTPUT_BN_EPS,
        "sn_eps": sn_eps,
    }
    if not settings:
        notes.append(f"no state_dict.pth to tell: bn_eps {fixed['bn_eps']:g} and sn_eps {sn_eps:g} (--bn-eps, --sn-eps)")
    networks = {}
    for part, role in ROLES.items():
        if part in files:
            uri = storage.join(src, files[part])
            say(f"reading {uri}")
            tensors = _prepared(uri, as_tensors(uri, read_file(uri)), sn_eps, notes)
            key = _key_of_deep_d if "input_conv.weight" in tensors else _key
            networks[role] = Weights(uri, tensors, key, _arrange("shared.weight" in tensors))
    config, ours = convert(networks, fixed, options)
    optimizers = {}
    for part, role in (("G_optim", "generator"), ("D_optim", "discriminator")):
        if part in files and role in networks:
            uri = storage.join(src, files[part])
            say(f"reading {uri}")
            optimizers[role] = adam_moments(uri, read_file(uri), networks[role], ours[role])
    ema = ours.get("ema") or ours["generator"]
    steps = settings.get("itr", 0)
    per_step = [settings.get(key, 0) for key in ("batch_size", "num_D_steps", "num_D_accumulations")]
    return Imported(
        config=config,
        generator=ours.get("generator") or ema,
        ema=ema,
        discriminator=ours.get("discriminator"),
        optimizers=optimizers,
        statistics=one_table(ema),
        progress=Progress(steps * per_step[0] * per_step[1] * per_step[2], steps),
        source={"format": NAME, "path": src, "files": files},
        notes=notes,
    )


class _Settings(TypedDict, total=False):
    """What is read of its counters and options."""

    itr: Annotated[int, Field(ge=0, lt=1 << 40)]
    batch_size: Annotated[int, Field(ge=0, lt=1 << 20)]
    num_D_steps: Annotated[int, Field(ge=0, lt=1 << 10)]
    num_D_accumulations: Annotated[int, Field(ge=0, lt=1 << 10)]
    BN_eps: Annotated[float, Field(gt=0, le=1)]
    SN_eps: Annotated[float, Field(gt=0, le=1)]


def _settings(uri: str, notes: list[str]) -> dict[str, Any]:
    """Counters and configuration of the run, after a check of what no tensor shows."""
    try:
        state = read_file(uri)
    except CodeError as error:
        # Before torch 1.6, the activation functions in it were saved as code. The weights do not need this file.
        notes.append(f"{error}; left out: progress starts at 0")
        return {}
    if not isinstance(state, dict) or not isinstance(state.get("config"), dict):
        raise DataError(f"{uri} holds no counters and 'config': copy it again, or leave it out")
    for key, known in _BUILT.items():
        if (value := state["config"].get(key, known[0])) not in known:
            raise ConfigError(f"{uri}: {key}={printable(str(value)[:40])}; only {known[0]} is built here")
    found = state["config"] | {"itr": state.get("itr", 0)}
    numbers = {key: found[key] for key in _Settings.__annotations__ if key in found}
    with parsing(uri):
        text = json.dumps(numbers, default=methodcaller("item"))  # some are NumPy's
    settings: Any = parse(_Settings, text, uri, "copy it again, or leave it out")
    return settings


def _prepared(uri: str, tensors: Tensors, sn_eps: float, notes: list[str]) -> Tensors:
    """The tensors with both vectors of each weight, and one name for the statistics of all three kinds of batch norm."""
    prepared: Tensors = {}
    for key, tensor in tensors.items():
        if re.search(r"\.(sv\d+|u[1-9]\d*|num_batches_tracked|accumulation_counter)$", key):
            continue  # logs, further singular vectors, counts
        if key.endswith(".u0") and (weight := tensors.get(key.removesuffix("u0") + "weight")) is not None:
            matrix = weight.flatten(1)
            if tensor.shape != (1, len(matrix)):
                raise DataError(f"{uri}: {key} is {list(tensor.shape)} beside a weight of {len(matrix)} outputs")
            v = F.normalize(tensor @ matrix, eps=sn_eps)
            prepared[key] = F.normalize(v @ matrix.mT, eps=sn_eps)[0]
            prepared[key.removesuffix("u0") + "v0"] = v[0]
        else:
            prepared[re.sub(r"(?:\.bn)?\.(?:stored|running)_(mean|var)$", r".stored_\1", key)] = tensor
    counts = {float(value) for key, value in tensors.items() if key.endswith(".accumulation_counter")} - {0.0}
    if counts:
        # A standing pass leaves sums. The average of G's buffers goes on over them, and then nothing can be made of them.
        whole = len(counts) == 1 and all(count.is_integer() for count in counts)
        for key in prepared:
            if key.endswith((".stored_mean", ".stored_var")):
                prepared[key] = prepared[key] / counts.copy().pop() if whole else torch.full_like(prepared[key], torch.nan)
        if not whole:
            notes.append(f"{uri}: its batch-norm statistics mix a standing pass with later averages: left out")
    return prepared


def _key(name: str) -> str:
    return rename(name, _RULES)


def _key_of_deep_d(name: str) -> str:
    """BigGAN-deep's D alone has both blocks of a resolution, and then its attention, in one list."""
    if not (found := re.match(r"(blocks|attention)\.(\d+)\.", name)):
        return _key(name)
    stage, block = divmod(int(found[2]), 2)
    place = 2 if found[1] == "attention" else block
    return re.sub(r"^blocks\.0\.0\.", f"blocks.{stage}.{place}.", _key(f"blocks.0.{name[found.end() :]}"))


def _arrange(shared: bool) -> Callable[[str, Tensor], Tensor]:
    def arrange(name: str, tensor: Tensor) -> Tensor:
        if name.endswith(".gamma"):
            return tensor.reshape(1)
        # Without a shared embedding each gain and bias is one [classes, features].
        return tensor if shared or not name.endswith((".gain.weight", ".bias.weight")) else tensor.mT

    return arrange
