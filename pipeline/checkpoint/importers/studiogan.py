"""Checkpoint folders of PyTorch-StudioGAN: model=G-best-weights-step=N.pth, and G_ema, D; `best` or `current`.

Its spectral norm is torch's, with both vectors stored. Attention has a place of its own in the list of blocks.
"""

import re
from collections.abc import Callable
from typing import Any

from pipeline import storage
from pipeline.checkpoint.format import Progress, Tensors
from pipeline.checkpoint.importers.convert import (
    ROLES,
    Imported,
    Options,
    Weights,
    adam_moments,
    at_place,
    block_places,
    convert,
    one_table,
    rename,
)
from pipeline.checkpoint.importers.files import as_tensors, read_file
from pipeline.errors import ConfigError

NAME = "PyTorch-StudioGAN"
LOOKED_FOR = "model=G-best-weights-step=N.pth"

_FILE = re.compile(r"model=(?P<part>G|G_ema|D)-(?P<when>\w+)-weights-step=(?P<step>\d+)\.pth$")
_RULES = [
    (r"^seed\.", "linear0."),
    (r"^linear\.", "linear1."),
    (r"^embed\.", "embedding."),
    (r"^input\.", "input_conv."),
    (r"^output_bn\.norm\.(mean|var)$", r"bn4.running_\1"),
    (r"^output_bn\.gain$", "bn4.weight"),
    (r"^output_bn\.bias$", "bn4.bias"),
    (r"^output\.", "conv2d5."),
    (r"^(?:blocks|attention)\.(\d+)\.", r"blocks.\1.0."),
    (r"\.conv(\d)\.", r".conv2d\1."),
    (r"\.shortcut\.", ".conv2d0."),
    (r"\.norm\.(mean|var)$", r".bn.running_\1"),
    (r"\.query\.", ".conv1x1_theta."),
    (r"\.key\.", ".conv1x1_phi."),
    (r"\.value\.", ".conv1x1_g."),
    (r"\.output\.", ".conv1x1_attn."),
    (r"\.gamma$", ".sigma"),
    (r"(?<!^shared)(?<!^bn4)\.weight$", ".weight_orig"),
    (r"\.(u|v)$", r".weight_\1"),
]
_BN_EPS, _SN_EPS = 1e-4, 1e-6


def find(names: list[str], options: Options) -> dict[str, str] | None:
    """File of each part (`G`, `G_ema`, `D`) among `names`; None if this is no such folder."""
    saved: dict[str, dict[str, dict[str, str]]] = {}
    for name in names:
        if found := _FILE.match(name):
            saved.setdefault(found["when"], {}).setdefault(found["step"], {})[found["part"]] = name
    if not saved:
        return None
    wanted = options.name_suffix or ("best" if "best" in saved else min(saved))
    if wanted not in saved:
        raise ConfigError(f"--name-suffix {wanted}: there is {', '.join(f'--name-suffix {when}' for when in sorted(saved))}")
    if len(saved[wanted]) > 1:
        raise ConfigError(f"model=...-{wanted}-...: of steps {' and '.join(sorted(saved[wanted]))}; keep the files of one step")
    (files,) = saved[wanted].values()
    if not {"G", "G_ema"} & files.keys():
        raise ConfigError(f"{files['D']} has no G beside it: copy that, too")
    return files


def read(src: str, files: dict[str, str], options: Options, say: Callable[[str], None]) -> Imported:
    """See `pipeline.checkpoint.importers.detect.read`."""
    if options.generator_only:
        files = {part: file for part, file in files.items() if part != "D"}
    networks, saved = {}, {}
    for part, role in ROLES.items():
        if part in files:
            uri = storage.join(src, files[part])
            say(f"reading {uri}")
            found = read_file(uri)
            if not isinstance(found, dict) or "state_dict" not in found:
                raise ConfigError(f"{uri} is not as {NAME} saves it: it has no 'state_dict'")
            saved[role], networks[role] = found, _weights(uri, as_tensors(uri, found["state_dict"]))
    fixed: dict[str, Any] = {"bn_eps": options.bn_eps or _BN_EPS, "sn_eps": options.sn_eps or _SN_EPS}
    if "discriminator" in networks:
        fixed["d_relu_shortcut"] = True  # its D's ReLU is in-place, before the shortcut reads the same tensor
    config, ours = convert(networks, fixed, options)
    optimizers = {
        role: adam_moments(networks[role].uri, found["optimizer"], networks[role], ours[role])
        for role, found in saved.items()
        if "optimizer" in found
    }
    ema = ours.get("ema") or ours["generator"]
    return Imported(
        config=config,
        generator=ours.get("generator") or ema,
        ema=ema,
        discriminator=ours.get("discriminator"),
        optimizers=optimizers,
        statistics=one_table(ema),
        progress=Progress(0, int(re.findall(r"step=(\d+)", str(files))[0])),
        source={"format": NAME, "path": src, "files": files},
        notes=[f"images: {NAME} counts steps, not images, so they start at 0"],
    )


def _weights(uri: str, tensors: Tensors) -> Weights:
    tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith(".num_batches_tracked")}
    places = block_places(tensors, r"blocks\.(\d+)\.", r"blocks\.(\d+)\.\d+\.conv1x1_")
    return Weights(uri, tensors, lambda name: rename(at_place(name, places), _RULES), lambda name, tensor: tensor)
