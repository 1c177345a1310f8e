"""BigGAN-PyTorch's own training function (`train_fns.GAN_training_function`), out of a checkout, with nothing of it changed."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.others.originals import importing, missing_modules
from benchmarks.others.peer import Noise, Setting, searching

LR, EPS, EMA_DECAY = {"G": 1e-4, "D": 4e-4}, 1e-6, 0.9999
"""Adam's learning rates and epsilon, of launch_BigGAN_bs256x8.sh."""
BN_EPS, SN_EPS = 1e-5, 1e-6


def options(setting: Setting) -> dict[str, Any]:
    """Its options (launch_BigGAN_bs256x8.sh; without shared embedding launch_cifar_ema.sh) for `setting`."""
    shared = setting.shared_dim > 0

    def attention(sizes: tuple[int, ...]) -> str:
        return "_".join(map(str, sizes)) or "0"

    given = {"resolution": setting.resolution, "n_classes": setting.classes, "dim_z": setting.z_dim, "hier": shared}
    given |= {"G_shared": shared, "shared_dim": setting.shared_dim, "G_attn": attention(setting.g_attention)}
    given |= {"D_attn": attention(setting.d_attention), "G_ch": setting.ch, "D_ch": setting.ch}
    given |= {"BN_eps": BN_EPS, "SN_eps": SN_EPS, "adam_eps": EPS, "G_init": "ortho", "D_init": "ortho"}
    for network, lr in LR.items():
        given |= {f"{network}_lr": lr, f"{network}_B1": 0.0, f"{network}_B2": 0.999}
        given[f"{network}_activation"] = nn.ReLU(inplace=True)
    steps = {"batch_size": setting.micro_batch, "num_D_steps": 1, "num_D_accumulations": 1, "num_G_accumulations": 1}
    return given | steps | {"toggle_grads": True, "split_D": False, "G_ortho": 0.0, "D_ortho": 0.0, "ema": True}


class BigGANPyTorch:
    """A `benchmarks.others.peer.Peer`."""

    def __init__(self, folder: Path, setting: Setting, device: torch.device, noise: Noise, half: bool = False):
        """`half`: its fastest mode, fp16 weights and activations (`--G_fp16 --D_fp16`), with its fp16 Adam."""
        self.name = "BigGAN-PyTorch" + ", fp16" * half
        self.settings = options(setting)
        given = self.settings | {f"{n}_{kind}": half for n in "GD" for kind in ("fp16", "mixed_precision")}
        with importing(folder, **missing_modules("torchvision", "torchvision.transforms", "torchvision.datasets", "datasets")):
            import train_fns
            import utils

            module = __import__("BigGAN")
            self.g, self.d = (network(**given).to(device) for network in (module.Generator, module.Discriminator))
            average = module.Generator(**given | {"skip_init": True, "no_optim": True}).to(device)
        if half:
            self.g, self.d, average = (network.half() for network in (self.g, self.d, average))
        # What its sampling distributions are: tensors with a method. Its own class of them no longer works in today's torch.
        z = torch.zeros(setting.micro_batch, setting.z_dim, device=device, dtype=torch.half if half else None)
        y = torch.zeros(setting.micro_batch, dtype=torch.int64, device=device)

        def sample() -> None:
            for tensor, value in zip((z, y), noise(), strict=True):
                tensor.copy_(value)

        z.sample_, y.sample_ = sample, lambda: None  # type: ignore[attr-defined]
        self._half = half
        self._state = {"itr": 0}
        ema = utils.ema(self.g, average, EMA_DECAY)
        both = module.G_D(self.g, self.d)
        self._train = train_fns.GAN_training_function(self.g, self.d, both, z, y, ema, self._state, given)

    def update(self, x: Tensor, y: Tensor) -> dict[str, float]:
        self._state["itr"] += 1
        with searching():
            said = self._train(x.half() if self._half else x, y)
        return {"loss/d": said["D_loss_real"] + said["D_loss_fake"], "loss/g": said["G_loss"]}
