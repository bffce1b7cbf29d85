"""Devices and strategies. The only file that names TPU, GPU and multi-worker resolvers."""

from __future__ import annotations

import os

from absl import logging

from simclr_tf.errors import UserError
from simclr_tf.stack import tf

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")


def _split_cpu(virtual_devices: int) -> None:
    if virtual_devices < 1:
        raise UserError(f"--virtual_devices is {virtual_devices}; use a positive number")
    cpu = tf.config.list_physical_devices("CPU")[0]
    wanted = [tf.config.LogicalDeviceConfiguration() for _ in range(virtual_devices)]
    try:
        tf.config.set_logical_device_configuration(cpu, wanted)
    except RuntimeError:
        found = len(tf.config.list_logical_devices("CPU"))
        if found < virtual_devices:
            raise UserError(
                f"--virtual_devices is {virtual_devices}, but TensorFlow has already started with {found}; "
                "ask for them before anything else runs"
            ) from None


def _tpu(name: str) -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"no TPU answers to --tpu={name!r} ({reason}); use 'local' on a TPU VM, else its name") from None
    return tf.distribute.TPUStrategy(resolver)


def _mirrored(virtual_devices: int) -> tf.distribute.Strategy:
    gpus = tf.config.list_logical_devices("GPU")
    if gpus and not virtual_devices:
        return tf.distribute.MirroredStrategy([gpu.name for gpu in gpus])
    cpus = tf.config.list_logical_devices("CPU")[: virtual_devices or None]
    # Devices of one CPU share its memory: adding on one of them is quicker than the collectives meant for networks, and
    # keeps a fixed order of summation.
    return tf.distribute.MirroredStrategy(
        [cpu.name for cpu in cpus], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


def make_strategy(kind: str = "auto", *, tpu: str = "", virtual_devices: int = 0) -> tf.distribute.Strategy:
    """Makes the strategy that all variables are created under.

    Args:
      kind: one of `STRATEGIES`; "auto" takes the TPU when `tpu` is given, several workers when TF_CONFIG is set, all
        GPUs or all virtual devices when there is more than one, else the one device there is.
      tpu: "local" on a TPU VM, or a TPU's name or grpc address.
      virtual_devices: splits the CPU into so many devices, for trying distribution without hardware; 0 does not.

    Raises:
      UserError: when what was asked for is not there.
    """
    if kind not in STRATEGIES:
        raise UserError(f"--strategy is {kind!r}; choose one of {', '.join(STRATEGIES)}")
    if virtual_devices:
        _split_cpu(virtual_devices)
    if kind == "auto":
        if tpu:
            kind = "tpu"
        elif os.environ.get("TF_CONFIG"):
            kind = "multi_worker"
        elif virtual_devices > 1 or len(tf.config.list_physical_devices("GPU")) > 1:
            kind = "mirrored"
        else:
            kind = "one_device"
    if kind == "tpu":
        strategy = _tpu(tpu or "local")
    elif kind == "multi_worker":
        if not os.environ.get("TF_CONFIG"):
            raise UserError("--strategy=multi_worker needs the cluster in TF_CONFIG, which is not set; set it on every worker")
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    elif kind == "mirrored":
        strategy = _mirrored(virtual_devices)
    else:
        strategy = tf.distribute.get_strategy()
    logging.info("strategy %s: %d replica(s)", kind, strategy.num_replicas_in_sync)
    return strategy
