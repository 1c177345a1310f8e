# shellcheck shell=bash
# What differs between clusters. Copy it to slurm/site.sh, make it right, and name it:
#
#     . slurm/site.sh && sbatch slurm/train.sbatch ...        by hand
#     biggan submit slurm CONFIG ... --site slurm/site.sh     (it puts a copy into the run's folder)
#
# It is read twice: before sbatch, which takes the SBATCH_... variables as its options, and in the job, on its first node.
export BIGGAN_SITE="${BASH_SOURCE[0]}"

# For sbatch. Other options have such names, too: see INPUT ENVIRONMENT VARIABLES in `man sbatch`.
# export SBATCH_ACCOUNT=my-project
# export SBATCH_PARTITION=gpu
# export SBATCH_EXCLUSIVE=user          # whole nodes
# export SBATCH_TIMELIMIT=24:00:00
# export SBATCH_SIGNAL=B:USR1@600       # seconds before the limit; default 300. Time for an update and a checkpoint

# The Python environment that has `biggan`, and what it needs.
# module load cuda/13.0
# export PATH=/shared/biggan/.venv/bin:$PATH

# Look at the nodes before each start, and leave out those that are bad (seconds; biggan doctor --help).
# export BIGGAN_DOCTOR=1

# The network between nodes.
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# export NCCL_IB_HCA=mlx5

# Scratch on the node's own disk: with data.cache=/scratch/biggan, shards are read from the store once.
# export TMPDIR=/scratch/$USER && mkdir -p "$TMPDIR"

# A container, if any: options for srun (Pyxis), or a command in front of biggan (Apptainer).
# srun_options=(--container-image=registry.example#biggan:1.0 --container-mounts=/shared,/scratch)
# container=(apptainer exec --nv --bind /shared,/scratch /shared/biggan.sif)
