"""Folders of Hugging Face's pytorch-pretrained-BigGAN: config.json and pytorch_model.bin (or model.safetensors), G only.

BigGAN-deep as converted from TF-Hub. Conditions are [z | y] where ours are [y | z]; the first layer's outputs are (4, 4, C)
where ours are (C, 4, 4). Batch norm has a table of statistics for each of 51 truncations. The last convolution keeps the 128
outputs that its sigma was estimated on, of which three are an image.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import TypedDict

from pipeline import storage
from pipeline.checkpoint.format import Progress
from pipeline.checkpoint.importers.convert import Imported, Options, Weights, at_place, block_places, convert, rename
from pipeline.checkpoint.importers.files import as_tensors, read_file
from pipeline.errors import ConfigError
from pipeline.untrusted import parse

NAME = "Hugging Face pytorch-pretrained-BigGAN"
LOOKED_FOR = "config.json with pytorch_model.bin or model.safetensors"


class _Settings(TypedDict):
    """What is read of config.json."""

    layers: Annotated[list[Annotated[list[bool | int], Field(min_length=1)]], Field(max_length=100)]
    eps: Annotated[float, Field(gt=0, le=1)]


_RULES = [
    (r"^shared\.", "embeddings."),
    (r"^seed\.", "generator.gen_z."),
    (r"^output_bn\.norm\.(mean|var)$", r"generator.bn.running_\1s"),
    (r"^output_bn\.gain$", "generator.bn.weight"),
    (r"^output_bn\.bias$", "generator.bn.bias"),
    (r"^output\.", "generator.conv_to_rgb."),
    (r"^(?:blocks|attention)\.(\d+)\.", r"generator.layers.\1."),
    (r"\.norm\.(mean|var)$", r".running_\1s"),
    (r"\.gain\.", ".scale."),
    (r"\.bias\.", ".offset."),
    (r"\.query\.", ".snconv1x1_theta."),
    (r"\.key\.", ".snconv1x1_phi."),
    (r"\.value\.", ".snconv1x1_g."),
    (r"\.output\.", ".snconv1x1_o_conv."),
    (r"(?<!^embeddings)(?<!^generator\.bn)\.weight$", ".weight_orig"),
    (r"\.(u|v)$", r".weight_\1"),
]


def find(names: list[str], options: Options) -> dict[str, str] | None:
    """File of each part (`config`, `weights`) among `names`; None if this is no such folder."""
    weights = [name for name in ("pytorch_model.bin", "model.safetensors") if name in names]
    return {"config": "config.json", "weights": weights[0]} if weights and "config.json" in names else None


def read(src: str, files: dict[str, str], options: Options, say: Callable[[str], None]) -> Imported:
    """See `pipeline.checkpoint.importers.detect.read`."""
    settings = _settings(storage.join(src, files["config"]))
    uri = storage.join(src, files["weights"])
    say(f"reading {uri}")
    tensors = as_tensors(uri, read_file(uri))
    layer = r"generator\.layers\.(\d+)\."
    places = block_places(tensors, layer, layer + "gamma")
    weights = Weights(uri, tensors, lambda name: _key(at_place(name, places)), _arrange)
    fixed = {
        "channels": 3,
        "output_width": weights.get("output.weight").shape[0] if weights.has("output.weight") else None,
        "bn_eps": options.bn_eps or settings["eps"],
        "sn_eps": options.sn_eps or settings["eps"],
    }
    config, ours = convert({"generator": weights}, fixed, options)
    tables = {name: tensors[weights.key(name)] for name in ours["generator"] if name.endswith((".norm.mean", ".norm.var"))}
    (count,) = {len(table) for table in tables.values()}
    return Imported(
        config=config,
        generator=ours["generator"],
        ema=ours["generator"],
        discriminator=None,
        optimizers={},
        statistics={"truncations": torch.linspace(0, 1, count), **tables},
        progress=Progress(),
        source={"format": NAME, "path": src, "files": files},
    )


def _settings(uri: str) -> dict[str, Any]:
    """config.json, after a check of what no tensor shows."""
    data = storage.read_bytes(uri)
    parse(dict[str, Any], data, uri, "copy it again")
    settings: Any = parse(_Settings, data, f"{uri} is not that of a BigGAN", error=ConfigError)
    ups = [bool(layer[0]) for layer in settings["layers"]]
    if ups != [False, True] * (len(ups) // 2):
        raise ConfigError(f"{uri}: layers {ups} do not upsample in every second one, as BigGAN-deep's do")
    return settings


def _key(name: str) -> str:
    return rename(re.sub(r"\.(bn|conv)(\d)\.", lambda found: f".{found[1]}_{int(found[2]) - 1}.", name), _RULES)


def _arrange(name: str, tensor: Tensor) -> Tensor:
    if name == "shared.weight":
        return tensor.mT
    if name.endswith((".norm.mean", ".norm.var")):
        return tensor[-1]
    if name.startswith("seed.") and name != "seed.v":
        tensor = tensor.unflatten(0, (16, -1)).transpose(0, 1).flatten(0, 1)
    if name in ("seed.weight", "seed.v") or re.search(r"\.(gain|bias)\.(weight|v)$", name):
        return tensor.roll(tensor.shape[-1] // 2, -1)
    return tensor
