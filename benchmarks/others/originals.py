"""The original generators and discriminators, out of checkouts of their projects, under today's torch and on the CPU.

Nothing of them is changed. What they import besides torch and do not need here (datasets, plots) is replaced by a stand-in.
"""

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Original:
    """One configuration of an original: its networks and how to call them."""

    form: str
    generator: nn.Module
    discriminator: nn.Module | None
    call: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]]
    """G: (generator, z, y) -> images; D: (discriminator, x, y) -> logits [n]."""
    standing: Callable[[nn.Module, Tensor, int], None] | None
    """(generator, some z, classes): the project's own standing statistics."""
    z_dim: int
    classes: int
    resolution: int
    settings: dict[str, Any] | None = None
    """BigGAN-PyTorch's configuration, or Hugging Face's."""
    modes: tuple[str, ...] = ("train", "eval")


@contextlib.contextmanager
def importing(folder: Path, **stand_ins: Any) -> Iterator[None]:
    """Put `folder` first on the path, and remove its modules afterwards: two originals both have a `utils`."""
    folder, before = folder.resolve(), dict(sys.modules)
    sys.path.insert(0, str(folder))
    sys.modules.update(stand_ins)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name, module in sys.modules.items() if before.get(name) is not module]:
            if name in stand_ins or _within(folder, sys.modules[name]):
                del sys.modules[name]
        sys.modules.update(before)


def _within(folder: Path, module: ModuleType) -> bool:
    """A folder without an `__init__.py` is a module with a path and no file."""
    places = (getattr(module, "__file__", None), *getattr(module, "__path__", ()))
    return any(place and folder in Path(place).parents for place in places)


def missing_modules(*names: str) -> dict[str, Any]:
    """Return stand-ins for modules that an original imports and does not use here."""
    return {name: MagicMock() for name in names}


def biggan_pytorch(folder: Path, deep: bool = False, discriminator: bool = True, **options: Any) -> Original:
    """Build its networks; `options` are those of its Generator and Discriminator."""
    with importing(folder, **missing_modules("torchvision", "torchvision.transforms", "torchvision.datasets", "datasets")):
        import utils

        module = __import__("BigGANdeep" if deep else "BigGAN")
        options = {"skip_init": True, "no_optim": True} | options
        g = module.Generator(**options).double()
        d = module.Discriminator(**options).double() if discriminator else None

    def standing(net: nn.Module, z: Tensor, classes: int) -> None:
        utils.accumulate_standing_stats(net, z.clone(), torch.zeros(len(z), dtype=torch.long), classes)

    return Original(
        form="biggan-pytorch",
        generator=g,
        discriminator=d,
        call={"G": lambda net, z, y: net(z, net.shared(y)), "D": lambda net, x, y: net(x, y)[:, 0]},
        standing=standing if options.get("mybn") else None,
        z_dim=g.dim_z,
        classes=options["n_classes"],
        resolution=options["resolution"],
        settings={"BN_eps": options["BN_eps"], "SN_eps": options["SN_eps"], "batch_size": 4},
    )


def studiogan(folder: Path, backbone: str = "big_resnet", **options: Any) -> Original:
    """Build its networks from img_size, g_conv_dim, d_conv_dim, z_dim, g_shared_dim, num_classes, attn_g_loc, attn_d_loc."""
    misc = ModuleType("utils.misc")
    misc.dummy_context_mgr = contextlib.nullcontext  # type: ignore[attr-defined]
    with importing(folder / "src", **{"utils.misc": misc}):
        import utils

        utils.misc = misc
        module = __import__(f"models.{backbone}", fromlist=["models"])
        ops = module.ops
    relu = nn.ReLU(inplace=True)
    modules = SimpleNamespace(
        g_conv2d=ops.snconv2d, g_linear=ops.snlinear, g_bn=ops.ConditionalBatchNorm2d, g_act_fn=relu,
        d_conv2d=ops.snconv2d, d_linear=ops.snlinear, d_embedding=ops.sn_embedding, d_act_fn=relu,
    )  # fmt: skip
    both = {"img_size": options["img_size"], "num_classes": options["num_classes"], "apply_attn": True}
    both |= {"mixed_precision": False, "MODULES": modules, "MODEL": SimpleNamespace(info_type="N/A")}
    depth = 2 if "deep" in backbone else None
    g = module.Generator(
        **both, z_dim=options["z_dim"], g_shared_dim=options["g_shared_dim"], g_conv_dim=options["g_conv_dim"],
        attn_g_loc=options["attn_g_loc"], g_cond_mtd="cBN", g_init="ortho", g_depth=depth,
    ).double()  # fmt: skip
    d = module.Discriminator(
        **both, d_conv_dim=options["d_conv_dim"], apply_d_sn=True, attn_d_loc=options["attn_d_loc"], d_cond_mtd="PD",
        aux_cls_type="W/O", d_embed_dim=None, normalize_d_embed=False, d_init="ortho", d_depth=depth,
    ).double()  # fmt: skip

    def standing(net: nn.Module, z: Tensor, classes: int) -> None:
        """Do what its apply_standing_statistics does, batch by batch."""
        net.train()
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_running_stats()
        for _ in range(8):
            net(torch.randn_like(z), torch.randint(classes, (len(z),)))

    return Original(
        form="studiogan",
        generator=g,
        discriminator=d,
        call={"G": lambda net, z, y: net(z, y), "D": lambda net, x, y: net(x, y)["adv_output"]},
        standing=standing,
        z_dim=options["z_dim"],
        classes=options["num_classes"],
        resolution=options["img_size"],
    )


def huggingface(folder: Path, resolution: int, ch: int, z_dim: int, classes: int) -> Original:
    """Build BigGAN-deep with the layers of the published models."""
    with importing(folder):
        from pytorch_pretrained_biggan.config import BigGANConfig
        from pytorch_pretrained_biggan.model import BigGAN
    widths = {128: (16, 16, 8, 4, 2, 1), 256: (16, 16, 8, 8, 4, 2, 1), 512: (16, 16, 8, 8, 4, 2, 1, 1)}[resolution]
    layers = [layer for a, b in pairwise(widths) for layer in ((False, a, a), (True, a, b))]
    config = BigGANConfig(
        output_dim=resolution, z_dim=z_dim, class_embed_dim=z_dim, channel_width=ch, num_classes=classes, layers=layers
    )
    return Original(
        form="huggingface",
        generator=BigGAN(config).double(),
        discriminator=None,
        call={"G": lambda net, z, y: net(z, nn.functional.one_hot(y, classes).double(), 1.0)},
        standing=None,
        z_dim=z_dim,
        classes=classes,
        resolution=resolution,
        settings=config.to_dict(),
        modes=("eval",),  # it has no statistics of a batch
    )
