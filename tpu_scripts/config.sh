# shellcheck shell=bash disable=SC2034  # common.sh reads all of it.
# The one file to fill in. Every script reads it; --config=FILE reads another.

PROJECT=my-project
ZONE=europe-west4-a
NAME=simclr                     # The name of the TPU, and of its queued request.
ACCELERATOR_TYPE=v3-32          # v3-8, v3-128, v4-32, v5litepod-8, ...
SPOT=yes                        # yes: cheap, but Google may take it away at any time; launch.sh then makes a new one.
QUEUED=no                       # yes: wait in Google's queue for the TPU instead of asking once.
STACK=2.15                      # 2.15: TensorFlow of the TPU image (any size). 2.20: tensorflow-tpu from pip (one host).
RUNTIME_VERSION=                # TPU software version; empty: the one for this stack, type and size.
CREATE_FLAGS=()                 # More flags of gcloud's create command, such as (--network=... --reserved).

# In a bucket of the TPU's region: the disk of a TPU VM is lost with it, and a pod's hosts share nothing else.
WORKDIR=gs://my-bucket/runs/pretrain_r50
# For ImageNet, better a path on a disk that every host mounts: see README.md, "The paper's runs".
DATA_DIR=gs://my-bucket/tfds

# What to run; launch.sh adds --workdir, --data_dir and --tpu.
RUN=(--mode=pretrain --gin_file=imagenet --gin_file=models/r50)

POLL_SECONDS=60                 # Between two checks by launch.sh.
MAX_CRASHES=5                   # launch.sh gives up after this many ends in a row by a signal (no memory, a fault).
