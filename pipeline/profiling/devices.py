"""GPUs as their makers describe them, for plans."""

from dataclasses import dataclass

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """A GPU as its maker describes it. Matrix rates are dense."""

    name: str
    memory: int
    """Bytes; what makers call GB is nearly GiB here."""
    bf16: float
    """FLOP/s."""
    tf32: float
    """FLOP/s of what cuDNN computes fp32 convolutions in."""
    link: float
    """Bytes/s that it sends to the others of its node."""
    network: float
    """Bytes/s that it sends to other nodes, in the machine of the source."""
    source: str


DEVICES = {
    "b200": DeviceSpec(
        name="B200",
        memory=180 * _GIB,
        bf16=2250e12,
        tf32=1100e12,
        link=900e9,
        network=50e9,
        source="NVIDIA DGX B200 datasheet, half of its sparse rates",
    ),
    "h200": DeviceSpec(
        name="H200 SXM",
        memory=141 * _GIB,
        bf16=989e12,
        tf32=494e12,
        link=450e9,
        network=50e9,
        source="NVIDIA H200 datasheet, half of its sparse rates; DGX H200",
    ),
    "h100": DeviceSpec(
        name="H100 SXM",
        memory=80 * _GIB,
        bf16=989e12,
        tf32=494e12,
        link=450e9,
        network=50e9,
        source="NVIDIA H100 datasheet, half of its sparse rates; DGX H100",
    ),
    "a100": DeviceSpec(
        name="A100 SXM 80GB",
        memory=80 * _GIB,
        bf16=312e12,
        tf32=156e12,
        link=300e9,
        network=25e9,
        source="NVIDIA A100 datasheet; DGX A100",
    ),
    "a100-40": DeviceSpec(
        name="A100 SXM 40GB",
        memory=40 * _GIB,
        bf16=312e12,
        tf32=156e12,
        link=300e9,
        network=25e9,
        source="NVIDIA A100 datasheet; DGX A100",
    ),
    "l40s": DeviceSpec(
        name="L40S",
        memory=48 * _GIB,
        bf16=362e12,
        tf32=183e12,
        link=32e9,
        network=12.5e9,
        source="NVIDIA L40S datasheet; PCIe 4 x16; 100 Gb/s assumed",
    ),
    "a10": DeviceSpec(
        name="A10",
        memory=24 * _GIB,
        bf16=125e12,
        tf32=62.5e12,
        link=32e9,
        network=12.5e9,
        source="NVIDIA A10 datasheet; PCIe 4 x16; 100 Gb/s assumed",
    ),
    "l4": DeviceSpec(
        name="L4",
        memory=24 * _GIB,
        bf16=121e12,
        tf32=60e12,
        link=32e9,
        network=12.5e9,
        source="NVIDIA L4 datasheet, half of its sparse rates; 100 Gb/s assumed",
    ),
}
