"""`biggan report`: a run as one HTML file, with curves, samples, health and lineage, made from its folder alone."""

import argparse
from pathlib import Path

HELP = "write a run's curves, samples and lineage to one HTML file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Job`."""
    parser.add_argument("folder", metavar="RUN", type=Path, help="the run's folder, or a copy of it")
    parser.add_argument("--out", metavar="FILE", type=Path, help="where to (default RUN/report.html)")


def run(args: argparse.Namespace) -> None:
    """See `jobs.cli.Job`. Raises ConfigError for a folder without a run."""
    from pipeline import storage
    from pipeline.ui.run_report import run_page

    page = run_page(args.folder).encode()
    out = args.out or args.folder / "report.html"
    storage.write_bytes(str(out), page)
    print(f"{out}: {len(page) / 1e6:.1f} MB")
