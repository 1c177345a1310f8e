"""What each scheduler says to a node, as its documentation has it."""

import json

from pipeline.cluster.topology import PORT, Topology

VERTEX = {
    "cluster": {
        "workerpool0": ["cmle-training-workerpool0-ab-0:2222"],
        "workerpool1": ["cmle-training-workerpool1-ab-0:2222", "cmle-training-workerpool1-ab-1:2222"],
        "workerpool2": ["cmle-training-workerpool2-ab-0:2222"],
    },
    "environment": "cloud",
    "task": {"type": "workerpool1", "index": 1, "trial": ""},
}
IPS = "10.0.0.4\n10.0.0.5\n10.0.0.6"


def variables(text: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in text.split())


# Node 2 of 3 in the eyes of each.
SCHEDULERS: dict[str, tuple[dict[str, str], Topology]] = {
    "torchrun": (
        variables("PET_NNODES=3 PET_NODE_RANK=2 PET_MASTER_ADDR=first PET_MASTER_PORT=1234"),
        Topology(nodes=3, rank=2, address="first", port=1234, source="torchrun or Kubeflow"),
    ),
    "TrainJob": (
        variables("PET_NNODES=3 PET_NPROC_PER_NODE=8 PET_NODE_RANK=2 PET_MASTER_ADDR=gan-node-0-0.gan PET_MASTER_PORT=29500")
        | variables("JOB_COMPLETION_INDEX=2"),
        Topology(nodes=3, rank=2, address="gan-node-0-0.gan", port=29500, source="torchrun or Kubeflow"),
    ),
    "PyTorchJob": (
        variables("MASTER_PORT=23456 PET_MASTER_PORT=23456 MASTER_ADDR=gan-master-0 PET_MASTER_ADDR=gan-master-0 WORLD_SIZE=24")
        | variables("RANK=2 PET_NODE_RANK=2 PET_NPROC_PER_NODE=8 PET_NNODES=3"),
        Topology(nodes=3, rank=2, address="gan-master-0", port=23456, source="torchrun or Kubeflow"),
    ),
    "SkyPilot": (
        variables("SKYPILOT_NUM_NODES=3 SKYPILOT_NODE_RANK=2 SKYPILOT_NUM_GPUS_PER_NODE=8") | {"SKYPILOT_NODE_IPS": IPS},
        Topology(nodes=3, rank=2, address="10.0.0.4", port=PORT, source="SkyPilot", hosts=tuple(IPS.split())),
    ),
    "AWS Batch": (
        variables("AWS_BATCH_JOB_NUM_NODES=3 AWS_BATCH_JOB_NODE_INDEX=2 AWS_BATCH_JOB_MAIN_NODE_INDEX=0")
        | variables("AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS=10.0.0.4"),
        Topology(nodes=3, rank=2, address="10.0.0.4", port=PORT, source="AWS Batch"),
    ),
    "SageMaker": (
        variables('SM_HOSTS=["algo-1","algo-2","algo-3"] SM_CURRENT_HOST=algo-3 SM_NUM_GPUS=8'),
        Topology(nodes=3, rank=2, address="algo-1", port=PORT, source="SageMaker", hosts=("algo-1", "algo-2", "algo-3")),
    ),
    "Vertex AI": (
        {"CLUSTER_SPEC": json.dumps(VERTEX)},
        Topology(
            nodes=3,
            rank=2,
            address="cmle-training-workerpool0-ab-0",
            port=2222,
            source="Vertex AI",
            hosts=("cmle-training-workerpool0-ab-0", "cmle-training-workerpool1-ab-0", "cmle-training-workerpool1-ab-1"),
        ),
    ),
    "JobSet": (
        variables("NNODES=3 JOB_COMPLETION_INDEX=2 MASTER_ADDR=gan-node-0-0.gan MASTER_PORT=29501"),
        Topology(nodes=3, rank=2, address="gan-node-0-0.gan", port=29501, source="JobSet"),
    ),
    "dstack": (
        variables("DSTACK_NODES_NUM=3 DSTACK_NODE_RANK=2 DSTACK_MASTER_NODE_IP=10.0.0.4 DSTACK_GPUS_PER_NODE=8")
        | {"DSTACK_NODES_IPS": IPS},
        Topology(nodes=3, rank=2, address="10.0.0.4", port=PORT, source="dstack", hosts=tuple(IPS.split())),
    ),
    "Slurm": (
        variables("SLURM_JOB_ID=123456 SLURM_STEP_ID=0 SLURM_NNODES=4 SLURM_JOB_NODELIST=gpu[01-04] SLURM_STEP_NUM_NODES=3")
        | variables("SLURM_STEP_NUM_TASKS=3 SLURM_STEP_NODELIST=gpu[02-04] SLURM_NODEID=2 SLURM_PROCID=2"),
        Topology(nodes=3, rank=2, address="gpu02", port=26912, source="Slurm", hosts=("gpu02", "gpu03", "gpu04")),
    ),
    "Azure ML": (
        variables("AZUREML_NODE_COUNT=3 WORLD_SIZE=3 NODE_RANK=2 RANK=2 LOCAL_RANK=0 MASTER_ADDR=10.0.0.4 MASTER_PORT=6105"),
        Topology(nodes=3, rank=2, address="10.0.0.4", port=6105, source="whoever set torch's variables"),
    ),
    "RunPod": (
        variables("NUM_NODES=3 NODE_RANK=2 NUM_TRAINERS=8 WORLD_SIZE=24 MASTER_ADDR=10.65.0.2 MASTER_PORT=29400"),
        Topology(nodes=3, rank=2, address="10.65.0.2", port=29400, source="whoever set torch's variables"),
    ),
    "Volcano": (
        variables("WORLD_SIZE=3 RANK=2 MASTER_ADDR=gan-master-0.gan MASTER_PORT=23456"),
        Topology(nodes=3, rank=2, address="gan-master-0.gan", port=23456, source="whoever set torch's variables"),
    ),
}
