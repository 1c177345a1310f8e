#!/bin/sh
# The step that Dockerfile and biggan.def share: what constraints.txt pins, by its hashes, and this project, into a new
# environment at $1. Run it in the repository's root. torch comes from TORCH_INDEX if that is set, which may have CPU wheels;
# without it, torch brings CUDA.
set -eu

export PIP_NO_CACHE_DIR=1
VENV=$1 python3 install.py --image --extra s3 --extra gpu
"$1/bin/biggan" --version
