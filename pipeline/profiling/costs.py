"""What a configuration will cost on machines that are described, not there: memory, FLOPs, messages, hours, money.

Counted are parameters, FLOPs and live tensors (`model.describe`, `pipeline.profiling.step_memory`), computed are the rest.
What nobody can count (the share of the peak that convolutions reach, the rates of network and store) is given, or a default
that is named.
"""

import math
from dataclasses import dataclass, replace

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from model.batchnorm import batch_norms
from model.describe import training_cost
from model.networks import build_discriminator, build_generator
from pipeline.config import RunConfig
from pipeline.engine.batch import BatchConfig, BatchPlan, micro_batches, plan_batch
from pipeline.engine.zero import BUCKET
from pipeline.profiling.step_memory import StepMemory, step_memory
from pipeline.progress import Tell, silent

_FP32 = 4


@dataclass(frozen=True, kw_only=True)
class Machines:
    """What a plan is for, and how fast it is taken to be."""

    nodes: int
    gpus: int
    """Per node."""
    flops: float
    """FLOP/s that training reaches on one GPU."""
    bandwidth: float
    """Bytes/s that one GPU sends in a collective over all."""
    store: float
    """Bytes/s at which all ranks together write to the checkpoints' store."""
    memory: float = math.inf
    """Bytes of one GPU, of which `batch.micro_batch=auto` fills at most 90 %."""

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus


@dataclass(frozen=True)
class Sizes:
    """Of one network."""

    parameters: int
    buffers: int
    """Values, not bytes."""
    norms: int
    """Layers of batch norm."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Bytes, seconds and FLOPs. `memory` is of one GPU at its fullest moment; an update is `d_steps` D steps and a G step."""

    batch: BatchPlan
    memory: dict[str, float]
    flops_per_image: float
    computed_per_image: float
    """FLOPs with those of recomputed blocks."""
    messages: dict[str, float]
    """Bytes that a rank sends in one update."""
    norm_collectives: int
    compute_seconds: float
    """Of one update."""
    communication_seconds: float
    """Of one update, as if none of it overlapped with computing."""
    images_per_second: float
    checkpoint: int
    """Bytes of tensors in a checkpoint."""
    checkpoint_seconds: float
    hours: float
    gpu_hours: float

    @property
    def total_memory(self) -> float:
        return sum(self.memory.values())


def steps(config: RunConfig, machines: Machines) -> int:
    """Return how many steps `costs` takes, of a second or more each with large networks."""
    searched = config.batch.micro_batch == "auto"
    return 3 + (len(micro_batches(config.batch, machines.ranks)).bit_length() if searched else 1)


def costs(config: RunConfig, machines: Machines, tell: Tell = silent) -> Costs:
    """Compute them, and tell of every step (see `steps`).

    Raises ConfigError (`plan_batch`) where the machines cannot share the batch.
    """
    left = steps(config, machines)

    def done(more: int) -> None:
        nonlocal left
        left -= more
        tell(more)

    g, d = network_sizes(config)
    done(1)
    plan, needed = _fitting(config, machines, g, d, done)
    d_steps = config.batch.d_steps
    computed = training_cost(config.model, config.activation_checkpointing == "blocks").per_image(d_steps)
    done(1)
    flops = training_cost(config.model).per_image(d_steps)
    done(left)  # with those of a search that took a step less
    sent = messages(config, plan, g, d)
    images = plan.global_batch * d_steps
    compute = computed * images / machines.ranks / machines.flops
    communication = sum(sent.values()) / machines.bandwidth
    speed = images / (compute + communication)
    hours = config.total_images / speed / 3600
    stored = checkpoint_bytes(config, g, d)
    return Costs(
        batch=plan,
        memory=needed,
        flops_per_image=flops,
        computed_per_image=computed,
        messages=sent,
        norm_collectives=norm_collectives(config, plan, g, d),
        compute_seconds=compute,
        communication_seconds=communication,
        images_per_second=speed,
        checkpoint=stored,
        checkpoint_seconds=stored / machines.store,
        hours=hours,
        gpu_hours=hours * machines.ranks,
    )


def _fitting(config: RunConfig, machines: Machines, g: Sizes, d: Sizes, tell: Tell) -> tuple[BatchPlan, dict[str, float]]:
    """The batch as it is shared, and its memory; of `auto` the largest micro-batch that fits, or the smallest there is."""

    def tried(batch: BatchConfig) -> tuple[BatchPlan, dict[str, float]]:
        plan = plan_batch(batch, machines.ranks)
        needed = memory(config, plan, g, d, step_memory(config, plan))
        tell(1)
        return plan, needed

    if config.batch.micro_batch != "auto":
        return tried(config.batch)
    candidates = micro_batches(config.batch, machines.ranks)
    fits, fails = 0, len(candidates)
    found = {}
    while fits < fails:
        middle = (fits + fails) // 2
        found[middle] = tried(replace(config.batch, micro_batch=candidates[middle], memory_gb=None))
        fits, fails = (middle + 1, fails) if sum(found[middle][1].values()) <= 0.9 * machines.memory else (fits, middle)
    return found[max(0, fits - 1)]


def network_sizes(config: RunConfig) -> tuple[Sizes, Sizes]:
    """Of G and D."""
    with FakeTensorMode():
        return _sizes(build_generator(config.model)), _sizes(build_discriminator(config.model))


def _sizes(network: nn.Module) -> Sizes:
    parameters, buffers = (sum(t.numel() for t in tensors) for tensors in (network.parameters(), network.buffers()))
    return Sizes(parameters, buffers, len(batch_norms(network)))


def memory(config: RunConfig, plan: BatchPlan, g: Sizes, d: Sizes, step: StepMemory) -> dict[str, float]:
    """Bytes by part on one GPU, at the fuller of the D step and the G step.

    At stage 3 layers are counted as gathered: DeepSpeed keeps up to a billion parameters until their next use.
    """
    stage, ranks, both = config.zero.stage, plan.world_size, g.parameters + d.parameters
    shared = ranks if stage > 0 else 1
    on_gpu = config.zero.offload == "none"
    moments = 2 if config.optim.optimizer == "adam" else 0
    parts = {
        "parameters": _FP32 * (both + g.buffers + d.buffers),
        "ZeRO's own copy": _FP32 * both / ranks * on_gpu if stage else 0.0,
        "parameters' shares": _FP32 * both / ranks if stage == 3 else 0.0,
        "moments": moments * _FP32 * both / shared * on_gpu,
        "EMA": _FP32 * g.parameters / (ranks if stage == 3 else 1),
    }
    # Gradients of one network at a time; from stage 2 on a share of them, and two buckets, as they overlap, on their way.
    gradients = [float(_FP32 * n.parameters) for n in (d, g)]
    if stage > 1:
        gradients = [whole / ranks + min(2 * _FP32 * BUCKET, whole) for whole in gradients]
    fullest = max(zip(gradients, (step.d_step, step.g_step), strict=True), key=sum)
    return parts | {"gradients": fullest[0], "activations": float(fullest[1])}


def messages(config: RunConfig, plan: BatchPlan, g: Sizes, d: Sizes) -> dict[str, float]:
    """Bytes that one rank sends in an update of d_steps D steps and a G step, by ring algorithms: (W - 1) / W of a tensor to
    reduce-scatter or gather it, twice that to all-reduce it. Gradients and parameters travel as fp32.
    """
    stage, times = config.zero.stage, plan.accumulation
    once = _FP32 * (plan.world_size - 1) / plan.world_size
    gradients = parameters = 0.0
    # At stage 3 each forward and each backward gathers, and so does power iteration; a D step does not go back through G, a G
    # step does through D.
    for learning, other, passes, steps in ((d, g, 1, config.batch.d_steps), (g, d, 2, 1)):
        if stage < 3:
            gradients += steps * (times if stage == 2 else 1) * 2 * once * learning.parameters
            parameters += steps * (stage > 0) * once * learning.parameters
        else:
            gradients += steps * times * once * learning.parameters
            parameters += steps * times * once * (2 * learning.parameters + passes * other.parameters)
            if config.objective.power_iteration == "forward":
                parameters += steps * times * once * (learning.parameters + other.parameters)
            else:
                parameters += steps * once * learning.parameters
    if stage == 3 and config.objective.ortho:
        parameters += once * g.parameters
    return {"gradients": gradients, "parameters": parameters}


def norm_collectives(config: RunConfig, plan: BatchPlan, g: Sizes, d: Sizes) -> int:
    """All-reduces of batch norm in an update, where its groups span ranks: small, so each lasts as long as the latency."""
    if plan.ranks_per_group == 1:
        return 0
    again = config.activation_checkpointing == "blocks"
    d_step = g.norms + (4 + 2 * again) * d.norms  # real and fake images apart
    g_step = (2 + again) * (g.norms + d.norms)
    return plan.accumulation * (config.batch.d_steps * d_step + g_step)


def checkpoint_bytes(config: RunConfig, g: Sizes, d: Sizes) -> int:
    """Of the tensors of one checkpoint: both networks with buffers, Adam's moments and step, the EMA."""
    networks = sum(n.parameters + n.buffers for n in (g, d))
    adam = config.optim.optimizer == "adam"
    optimisers = adam * sum(2 * n.parameters + 1 for n in (g, d))
    return _FP32 * (networks + optimisers + g.parameters)
