# shellcheck shell=bash disable=SC2034  # All of it is read by common.sh.
# The one file to fill in. Every script reads it; --config=FILE reads another.

PROJECT=my-project
ZONE=europe-west4-a
NAME=simclr                     # Of the TPU, and of its queued request.
ACCELERATOR_TYPE=v3-32          # v3-8, v3-128, v4-32, v5litepod-8, ...
SPOT=yes                        # yes: cheap, and taken away at any time; launch.sh makes a new one and goes on.
QUEUED=no                       # yes: wait in line for the TPU instead of asking once.
STACK=2.15                      # 2.15: TensorFlow of the TPU image (any size). 2.20: tensorflow-tpu from pip (one host).
RUNTIME_VERSION=                # TPU software version; empty: the one that fits the stack, the type and the size.
CREATE_FLAGS=()                 # More flags of gcloud's create command, such as (--network=... --reserved).

# In a bucket of the TPU's region: the disk of a TPU VM is lost with it, and a pod's hosts share nothing else.
WORKDIR=gs://my-bucket/runs/pretrain_r50
# For ImageNet rather a path on a disk that every host mounts: see README.md, "The paper's runs".
DATA_DIR=gs://my-bucket/tfds

# What to do; --workdir, --data_dir and --tpu are added.
RUN=(--mode=pretrain --gin_file=imagenet --gin_file=models/r50)

POLL_SECONDS=60                 # Between two looks of launch.sh.
MAX_CRASHES=5                   # In a row, by a signal (out of memory, a fault): then launch.sh gives up.
