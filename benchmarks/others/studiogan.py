"""The training step of PyTorch-StudioGAN, out of a checkout of it, on a GPU or the CPU.

Nothing of it is changed: its `Configurations` reads a YAML file, its loader's functions build networks and optimisers, and
`WORKER.train_discriminator` and `train_generator` make the steps, with its losses and EMA. An update is what one turn of the
loop in its src/loader.py does: the step of D on the batches that a data loader hands it, and the step of G.

Stand-ins take the place of what its modules import for other work: torchvision, scikit-learn, seaborn, kornia, its metrics
(evaluation, figures, augmentation), wandb (`WORKER` opens a run of it), and `utils.style_ops` (StyleGAN's CUDA extensions).
None of them is called in a step. `RUN` holds what src/main.py has by default for the keys that a step reads; main.py itself
wants a GPU and a data set.
"""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
import yaml
from torch import Tensor

from benchmarks.others.originals import importing
from benchmarks.others.peer import Setting, searching
from pipeline.errors import ConfigError

_STAND_INS = (
    *("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.utils"),
    *("sklearn", "sklearn.manifold", "seaborn", "kornia", "kornia.filters", "wandb", "utils.style_ops"),
    *("metrics", "metrics.features", "metrics.fid", "metrics.ins", "metrics.prdc", "metrics.resnet"),
)
_RUN = {
    "train": True, "distributed_data_parallel": False, "synchronized_bn": False, "freezeD": -1, "empty_cache": False,
    "batch_statistics": False, "standing_statistics": False, "langevin_sampling": False,
    "project": None, "entity": None, "save_dir": "./",
}  # fmt: skip


@dataclass
class StudioGAN:
    """A `WORKER` of StudioGAN, and how many updates it has made."""

    worker: Any
    name: str = "PyTorch-StudioGAN"
    step: int = 0

    def update(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """See `benchmarks.others.peer.Peer`. Raises ValueError for another number of images: it would leave out the rest."""
        wanted = self.worker.OPTIMIZATION.basket_size
        if len(x) != wanted:
            raise ValueError(f"{len(x)} images: an update takes {wanted}, the micro-batch times the D steps")
        self.worker.train_iter = iter([(x, y)])
        with searching():
            _, d = self.worker.train_discriminator(current_step=self.step)
            g = self.worker.train_generator(current_step=self.step)
        self.step += 1
        return {"loss/d": d.item(), "loss/g": g.item()}


def studiogan(folder: Path, setting: Setting, mixed_precision: bool = False) -> StudioGAN:
    """The peer from a checkout at `folder`, on the GPU if there is one.

    `mixed_precision` is its own: autocast to fp16 and a GradScaler. Raises ConfigError for that without a GPU, and for a folder
    that is no checkout.
    """
    gpu = torch.cuda.is_available()
    if mixed_precision and not gpu:
        raise ConfigError("mixed precision: StudioGAN's is that of CUDA, and there is no GPU here; measure fp32 instead")
    if not (folder / "src" / "worker.py").is_file():
        raise ConfigError(f"--studiogan {folder}: no src/worker.py in it; name a checkout of PyTorch-StudioGAN")
    device = torch.cuda.current_device() if gpu else torch.device("cpu")
    with importing(folder / "src", **{name: MagicMock() for name in _STAND_INS}):
        import config
        import models.model
        import worker

        cfgs = _configurations(config.Configurations, folder, setting)
        cfgs.update_cfgs(_RUN | {"mixed_precision": mixed_precision}, super="RUN")
        parts = {name: getattr(cfgs, name) for name in ("DATA", "OPTIMIZATION", "MODEL", "STYLEGAN", "MODULES", "RUN")}
        names = ("Gen", "Gen_mapping", "Gen_synthesis", "Dis", "Gen_ema", "Gen_ema_mapping", "Gen_ema_synthesis", "ema")
        log = logging.getLogger("studiogan")
        built = models.model.load_generator_discriminator(**parts, device=device, logger=log)
        networks = dict(zip(names, built, strict=True))
    cfgs.define_optimizer(networks["Gen"], networks["Dis"])
    nothing = ("eval_model", "train_dataloader", "eval_dataloader", "mu", "sigma", "real_feats", "best_fid", "best_ckpt_path")
    return StudioGAN(
        worker.WORKER(
            cfgs=cfgs, run_name="benchmark", **networks, **dict.fromkeys(nothing), global_rank=0, local_rank=device, logger=log,
            aa_p="N/A", best_step=0, lecam_emas=None, num_eval={}, loss_list_dict={}, metric_dict_during_train={},
        )
    )  # fmt: skip


def _configurations(read: Callable[[str], Any], folder: Path, setting: Setting) -> Any:
    """Its configuration of BigGAN with our sizes, read from a file as it reads its own."""
    own = "CIFAR10/BigGAN.yaml" if setting.resolution == 32 else "ImageNet/BigGAN-2048.yaml"
    document = yaml.safe_load((folder / "src" / "configs" / own).read_text())
    for part, values in changes(setting).items():
        document[part] = document.get(part, {}) | values
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "BigGAN.yaml"
        file.write_text(yaml.safe_dump(document))
        cfgs = read(str(file))
    cfgs.OPTIMIZATION.world_size = 1
    cfgs.OPTIMIZATION.basket_size = setting.micro_batch * setting.d_steps
    return cfgs


def changes(setting: Setting) -> dict[str, dict[str, Any]]:
    """What `setting` changes in StudioGAN's own YAML file of BigGAN.

    At 32 px its D has twice `d_conv_dim` channels where ours (and BigGAN-PyTorch's) has four times `ch`, so its multiplier is
    doubled there. Raises ConfigError for 64 px, where no multiplier makes its G ours.
    """
    size = setting.resolution
    if size == 64:
        raise ConfigError("resolution 64: StudioGAN's G has half the channels of ours there; compare at 32, 128 or 256 px")
    return {
        "DATA": {"img_size": size, "num_classes": setting.classes},
        "MODEL": {
            "g_conv_dim": setting.ch,
            "d_conv_dim": setting.ch * (2 if size == 32 else 1),
            "z_dim": setting.z_dim,
            "g_shared_dim": setting.shared_dim,
            "apply_attn": bool(setting.g_attention or setting.d_attention),
            # It numbers blocks from 1: G's first makes 8 x 8, D's first halves the image.
            "attn_g_loc": [at.bit_length() - 3 for at in setting.g_attention],
            "attn_d_loc": [(size // at).bit_length() - 1 for at in setting.d_attention],
        },
        "OPTIMIZATION": {"batch_size": setting.micro_batch, "acml_steps": 1, "d_updates_per_step": setting.d_steps},
    }
