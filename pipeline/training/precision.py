"""`precision=auto`: bf16 on GPUs; on a CPU bf16 or fp32, whichever it convolves faster in, measured at a run's first start.

A CPU may have instructions for bf16 and be slower in it: so is AVX-512 without AMX. What was found is part of the run from
then on (`pipeline.runs.run_folder.as_begun`), so that no other machine changes the training.
"""

import time
from dataclasses import replace

import torch
from torch.nn import functional as F

from pipeline.config import RunConfig
from pipeline.engine import agreement
from pipeline.engine.ranks import Ranks
from pipeline.runs.run_folder import as_begun

MARGIN = 1.1
"""How many times as fast fp32 has to be: bf16 takes half the memory, and chance should decide nothing."""

_IMAGES, _CHANNELS, _SIDE = 16, 128, 8
_SECONDS, _MOST = 0.3, 30


def settle(config: RunConfig, ranks: Ranks) -> RunConfig:
    """`config` with bf16 or fp32 in place of `auto`: as the run began, or as rank 0 finds, which says so. Collective."""
    if config.precision != "auto":
        return config
    bf16 = agreement.from_main(bool, _settled(config, ranks.device).precision == "bf16" if ranks.main else None, ranks)
    return replace(config, precision="bf16" if bf16 else "fp32")


def _settled(config: RunConfig, device: torch.device) -> RunConfig:
    begun, why = as_begun(config), "as this run began"
    if begun.precision == "auto" and device.type == "cuda":
        begun, why = replace(config, precision="bf16"), "as on every GPU"
    elif begun.precision == "auto":
        bf16, fp32 = (convolution_rate(dtype) for dtype in (torch.bfloat16, torch.float32))
        begun = replace(config, precision="fp32" if fp32 > MARGIN * bf16 else "bf16")
        why = f"as a thread of this CPU convolves at {bf16 / 1e9:.0f} GFLOP/s in bf16, {fp32 / 1e9:.0f} in fp32"
    print(f"precision=auto: {begun.precision}, {why}", flush=True)
    return begun


def convolution_rate(dtype: torch.dtype) -> float:
    """FLOP/s of one thread of a CPU in a 3x3 convolution, forward and backward: the best of 0.3 seconds.

    By this process's own time, which stands still while the processor is somebody else's; two threads would wait in it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    x = torch.randn(_IMAGES, _CHANNELS, _SIDE, _SIDE, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    w = torch.randn(_CHANNELS, _CHANNELS, 3, 3, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()

    def seconds() -> float:
        began = time.process_time()
        y = F.conv2d(x, w, padding=1)
        torch.autograd.grad(y, (x, w), y.detach())
        return time.process_time() - began

    seconds()  # the library compiles its kernels
    best, end, left = seconds(), time.perf_counter() + _SECONDS, _MOST
    while left and time.perf_counter() < end:
        best, left = min(best, seconds()), left - 1
    torch.set_num_threads(threads)
    return 3 * 2 * 9 * w.shape[0] * w.shape[1] * x[:, 0].numel() / best
