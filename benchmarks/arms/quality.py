"""Run `biggan train` for `benchmarks.quality`, as the only worker: `plain` or `quick`, then its arguments.

`plain` is the network as it is written: convolutions by `benchmarks.support.as_written`, attention as a table of all pairs.
"""

import sys
from contextlib import nullcontext

from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.support.as_written import convolve_as_written
from jobs import cli


def main() -> int:
    way, *words = sys.argv[1:]
    if way == "plain":
        convolve_as_written()
    with sdpa_kernel(SDPBackend.MATH) if way == "plain" else nullcontext():
        return cli.main(["train", *words])


if __name__ == "__main__":
    sys.exit(main())
