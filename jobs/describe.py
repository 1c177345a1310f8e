"""`biggan describe`: what a configuration's networks consist of and cost, before anything is trained."""

import argparse
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.describe import Description

HELP = "layers, shapes, parameters and FLOPs of a preset or config"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Job`."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a preset")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", default=[], help="configuration on top of CONFIG: model.ch=64"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def run(args: argparse.Namespace) -> None:
    """Print both networks and their totals. The data are not touched."""
    from dataclasses import asdict

    from model.describe import describe, training_cost
    from pipeline.config import load_config

    config = load_config(args.config, args.overrides)
    g, d = describe(config.model)
    d_steps = config.batch.d_steps
    cost = training_cost(config.model)
    training = cost.per_image(d_steps)
    if args.json:
        costs = {"d_steps": d_steps, "flops_per_image": training, **asdict(cost)}
        print(json.dumps({"generator": asdict(g), "discriminator": asdict(d), "training": costs}))
        return
    for name, network in (("generator", g), ("discriminator", d)):
        print(f"{_table(name, network)}\n")
    for name, network in (("generator", g), ("discriminator", d)):
        print(f"{name:<13}  {network.parameters:,} parameters, {network.flops / 1e9:.4g} GFLOP an image forward")
    print(f"training       {training / 1e9:.4g} GFLOP for each real image that D sees (D steps for each G step: {d_steps})")


def _table(title: str, network: "Description") -> str:
    header = [title, "kind", "output", "parameters", "MFLOP"]
    lines = [
        [layer.name, layer.kind, " x ".join(map(str, layer.shape)), f"{layer.parameters:,}", f"{layer.flops / 1e6:,.2f}"]
        for layer in network.layers
    ]
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    aligned = [
        [cell.ljust(width) if i < 3 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths, strict=True))]
        for line in [header, *lines]
    ]
    return "\n".join("  ".join(line) for line in aligned)
