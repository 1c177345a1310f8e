"""`biggan plan`: what a training needs and costs on machines that nobody has rented yet."""

import argparse
import json
import sys
from typing import TYPE_CHECKING

from pipeline.wording import plural

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.profiling.costs import Costs, Machines
    from pipeline.profiling.devices import DeviceSpec

HELP = "memory, time, messages, checkpoints and money that a config takes on N nodes of M GPUs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Command`."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a preset")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", default=[], help="configuration on top of CONFIG: batch.micro_batch=64"
    )
    parser.add_argument("--nodes", type=int, default=1, help="machines (1)")
    parser.add_argument("--gpus", type=int, default=8, help="GPUs in each (8)")
    parser.add_argument("--gpu", default="h100", help="h100 (default), h200, b200, a100, a100-40, l40s, a10, l4")
    parser.add_argument("--mfu", type=float, help="share of the GPU's matrix rate that training reaches (0.2, assumed)")
    parser.add_argument("--tflops", type=float, help="instead of --mfu: TFLOP/s that training reaches on one GPU")
    parser.add_argument("--bandwidth", type=float, help="GB/s that a GPU sends in a collective (by --gpu, and --nodes)")
    parser.add_argument("--store", type=float, default=200, help="MB/s at which checkpoints are written, in all (200, assumed)")
    parser.add_argument("--price", type=float, help="of one GPU for an hour, in any currency")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run(args: argparse.Namespace) -> None:
    """Print the plan. Nothing of the machines, the data or the run's folder is touched."""
    from dataclasses import asdict, replace

    from pipeline.config import load_config
    from pipeline.profiling.costs import costs, steps
    from pipeline.progress import progress

    config = load_config(args.config, args.overrides)
    if config.precision == "auto":
        config = replace(config, precision="bf16")  # as on every GPU
    device, machines = _machines(args, config.precision)
    with progress("planning", steps(config, machines), "step", log=sys.stderr) as tell:  # stdout is for the plan alone
        found = costs(config, machines, tell)
    price = None if args.price is None else found.gpu_hours * args.price
    if args.json:
        assumed = {"gpu": asdict(device), "machines": asdict(machines)}
        print(json.dumps(asdict(found) | {"total_memory": found.total_memory, "price": price} | assumed))
        return
    print(
        "\n".join(
            f"{name:<20} {text}" for name, text in _rows(args, config, device, machines=machines, found=found, price=price)
        )
    )


def _machines(args: argparse.Namespace, precision: str) -> "tuple[DeviceSpec, Machines]":
    from pipeline.errors import ConfigError
    from pipeline.profiling.costs import Machines
    from pipeline.profiling.devices import DEVICES

    for name in ("nodes", "gpus"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} {getattr(args, name)}: must be at least 1")
    for name in ("mfu", "tflops", "bandwidth", "store", "price"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise ConfigError(f"--{name} {value:g}: must be above 0")
    if args.gpu not in DEVICES:
        raise ConfigError(f"--gpu {args.gpu}: known are {', '.join(DEVICES)}")
    if args.mfu and args.tflops:
        raise ConfigError("--mfu and --tflops say the same in two ways: leave one out")
    device = DEVICES[args.gpu]
    peak = device.bf16 if precision == "bf16" else device.tf32
    flops = args.tflops * 1e12 if args.tflops else (args.mfu or 0.2) * peak
    bandwidth = args.bandwidth * 1e9 if args.bandwidth else device.link if args.nodes == 1 else device.network
    return device, Machines(
        nodes=args.nodes, gpus=args.gpus, flops=flops, bandwidth=bandwidth, store=args.store * 1e6, memory=device.memory
    )


def _rows(
    args: argparse.Namespace,
    config: "RunConfig",
    device: "DeviceSpec",
    machines: "Machines",
    found: "Costs",
    price: float | None,
) -> list[tuple[str, str]]:
    plan, gib = found.batch, 2**30
    peak = device.bf16 if config.precision == "bf16" else device.tf32
    left = device.memory - found.total_memory
    rate = "given" if args.mfu or args.tflops else "assumed: measure it with a short run, whose lines say MFU"
    network = "given" if args.bandwidth else "published"
    update = found.compute_seconds + found.communication_seconds
    rows = [
        (
            "batch",
            f"global {plan.global_batch} = {plural(plan.world_size, 'rank')} x "
            f"{plural(plan.accumulation, 'micro-batch', 'micro-batches')} of {plan.micro_batch}",
        ),
        ("", f"batch norm over {plan.norm_group} samples on {plan.ranks_per_group} ranks; ZeRO-{config.zero.stage}"),
        (
            "memory of a GPU",
            f"{found.total_memory / gib:.1f} GiB of {device.memory / gib:.1f} ({device.name}: {device.source})",
        ),
    ]
    rows += [("", f"{size / gib:8.2f}  {part}") for part, size in found.memory.items() if size]
    rows += [
        (
            "",
            f"{left / gib:8.2f}  left for CUDA's context, workspace and fragmentation, which are not counted"
            if left > 0
            else f"{-left / gib:8.2f}  too much: a smaller batch.micro_batch, more ranks, or activation_checkpointing=blocks",
        ),
        ("FLOPs", f"{found.flops_per_image / 1e9:.4g} GFLOP an image, {found.computed_per_image / 1e9:.4g} with recomputation"),
        ("compute", f"{machines.flops / 1e12:.4g} of {peak / 1e12:.4g} TFLOP/s ({machines.flops / peak:.0%}, {rate})"),
        (
            "messages",
            f"{sum(found.messages.values()) / 1e9:.3g} GB from each rank an update "
            + f"({', '.join(f'{part} {size / 1e9:.3g}' for part, size in found.messages.items())}) at "
            + f"{machines.bandwidth / 1e9:.4g} GB/s ({network}); {found.norm_collectives} small ones of batch norm, not timed",
        ),
        (
            "update",
            f"{update:.3g} s = {found.compute_seconds:.3g} computing + {found.communication_seconds:.3g} communicating: "
            f"{config.batch.d_steps} D steps and a G step, {plan.global_batch * config.batch.d_steps:,} images",
        ),
        (
            "speed",
            f"{found.images_per_second:,.0f} images/s, {found.images_per_second / machines.ranks:,.1f} a GPU, "
            "if data, checkpoints and samples never stop it",
        ),
        (
            "checkpoint",
            f"{found.checkpoint / 1e9:.3g} GB, written in {found.checkpoint_seconds:,.0f} s at {args.store:g} MB/s; "
            f"one every {config.checkpoint.every / found.images_per_second / 60:,.0f} min",
        ),
        ("in all", f"{found.hours:,.1f} hours, {found.gpu_hours:,.0f} GPU hours for {config.total_images:,} images"),
    ]
    return rows if price is None else [*rows, ("price", f"{price:,.0f} at {args.price:g} a GPU hour")]
