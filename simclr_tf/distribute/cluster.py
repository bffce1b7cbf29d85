"""Devices and strategies. The only file that names the resolvers of TPUs and of several workers."""

from __future__ import annotations

import contextlib
import glob
import os
import sys
from collections.abc import Iterator
from typing import NamedTuple

from simclr_tf.core import checks
from simclr_tf.core.errors import StartAgain, UserError, first_line
from simclr_tf.core.tf import tf
from simclr_tf.distribute import hosts, preemption

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")


class Role(NamedTuple):
    """This process's part in its run.

    Attributes:
      index: The process's number.
      count: The number of processes. One process leads a TPU pod, whatever its number of hosts.
    """

    index: int
    count: int

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the files that only one process may write."""
        return self.index == 0


def role(strategy: tf.distribute.Strategy) -> Role:
    """Returns this process's role under a strategy that `make_strategy` made."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return Role(0, 1)
    resolver = strategy.cluster_resolver
    return Role(resolver.task_id or 0, max(1, len(resolver.cluster_spec().as_dict().get("worker", []))))


def may_lose_hosts(strategy: tf.distribute.Strategy) -> bool:
    """Whether the run depends on other machines, which may go away through nobody's fault."""
    return role(strategy).count > 1 or isinstance(strategy, tf.distribute.TPUStrategy)


def reads_elsewhere(strategy: tf.distribute.Strategy) -> bool:
    """Whether input pipelines run in other processes, which cannot call Python functions of this one."""
    if not isinstance(strategy, tf.distribute.TPUStrategy):
        return False
    return tf.DeviceSpec.from_string(strategy.extended.worker_devices[0]).job not in (None, "localhost")


# Errors that TensorFlow raises when another process went away.
LOST_HOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


@contextlib.contextmanager
def lost_hosts_start_again(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Turns TensorFlow's errors about a process that went away into `StartAgain`, inside the block."""
    try:
        yield
    except LOST_HOST as error:
        if not may_lose_hosts(strategy):
            raise
        count = role(strategy).count
        who = f"another of the {count} workers" if count > 1 else "the TPU, or a host of it,"
        again = "start all of them again: they go" if count > 1 else "start again: the run goes"
        raise StartAgain(f"{who} went away ({first_line(error)}); {again} on from the last checkpoint") from None


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


def _tpu_address(name: str) -> str:
    """Returns the resolver's argument for --tpu; "local" becomes the addresses of all hosts of a TPU with several."""
    if name != "local":
        return name
    workers = hosts.of_tpu_vm()
    if workers is None or len(workers.addresses) == 1:
        return name
    if workers.index:
        raise UserError(
            f"this is host {workers.index} of a TPU with {len(workers.addresses)} hosts (according to "
            f"{workers.told_by}); start the run on host 0 only, which leads the others"
        )
    return ",".join(f"grpc://{address}" for address in workers.addresses)


def _tpu(name: str) -> tf.distribute.Strategy:
    address = _tpu_address(name)
    try:
        with preemption.fatal():
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=address)
            tf.config.experimental_connect_to_cluster(resolver)
            tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, OSError, RuntimeError, ImportError, tf.errors.OpError) as error:
        raise UserError(
            f"no TPU answers to --tpu={name} ({first_line(error)}); use 'local' on a TPU VM, else its name or grpc://address:port"
        ) from None
    return tf.distribute.TPUStrategy(resolver)


def _mirrored(virtual_devices: int) -> tf.distribute.Strategy:
    gpus = tf.config.list_logical_devices("GPU")
    if gpus and not virtual_devices:
        return tf.distribute.MirroredStrategy([gpu.name for gpu in gpus])
    cpus = tf.config.list_logical_devices("CPU")[: virtual_devices or None]
    # Devices of one CPU share its memory. Summing on one of them is faster than collectives made for networks, and it
    # sums in a fixed order.
    return tf.distribute.MirroredStrategy(
        [cpu.name for cpu in cpus], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


def _workers() -> hosts.Workers:
    if os.environ.get("TF_CONFIG"):
        return hosts.from_tf_config(os.environ["TF_CONFIG"])
    if hosts.started_by_srun(os.environ):
        return hosts.from_slurm(os.environ)
    raise UserError(
        "--strategy=multi_worker needs to know its cluster; set TF_CONFIG on every worker, or start all of them by srun"
    )


def _multi_worker(workers: hosts.Workers) -> tf.distribute.Strategy:
    count = len(workers.addresses)
    if count > 1:
        print(
            f"worker {workers.index} of {count} (according to {workers.told_by}); waiting for the others at "
            f"{', '.join(workers.addresses)}",
            file=sys.stderr,
            flush=True,
        )
    # A resolver uses only the GPUs that it is told of. They are counted as physical devices, because listing logical
    # ones would start TensorFlow too early.
    gpus = len(tf.config.list_physical_devices("GPU"))
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(workers.addresses)}),
        task_type="worker",
        task_id=workers.index,
        num_accelerators={"GPU": gpus} if gpus else None,
        rpc_layer="grpc",
    )
    kinds = tf.distribute.experimental.CommunicationImplementation
    exchange = tf.distribute.experimental.CommunicationOptions(implementation=kinds.NCCL if gpus else kinds.AUTO)
    try:
        with preemption.fatal():
            return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver, communication_options=exchange)
    except tf.errors.OpError as error:
        raise UserError(
            f"worker {workers.index} cannot join {', '.join(workers.addresses)} ({first_line(error)});"
            " start all workers with the same list, and see that their ports are free and reachable"
        ) from None
    except RuntimeError as error:
        if "after" not in str(error) and "initial" not in str(error):
            raise
        raise UserError(f"several workers must be set up before TensorFlow starts ({error}); do it first") from None


def _choose(tpu: str, virtual_devices: int) -> tuple[str, str]:
    """Returns the strategy that "auto" stands for, and why."""
    gpus = len(tf.config.list_physical_devices("GPU"))
    if tpu:
        return "tpu", f"--tpu={tpu}"
    if os.environ.get("TF_CONFIG"):
        return "multi_worker", "TF_CONFIG is set"
    if hosts.in_slurm_step(os.environ):
        return "multi_worker", "srun started several tasks"
    if virtual_devices > 1:
        return "mirrored", f"--virtual_devices={virtual_devices}"
    if tf.config.list_physical_devices("TPU"):
        return "tpu", "this machine has a TPU"
    if gpus > 1:
        return "mirrored", f"this machine has {gpus} GPUs"
    return "one_device", "this machine has one GPU" if gpus else _why_no_gpu()


def _why_no_gpu() -> str:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if glob.glob("/dev/nvidia[0-9]*") and not hidden:
        return "this machine has an NVIDIA GPU that TensorFlow cannot use: see docs/troubleshooting.md"
    return "no GPU or TPU was found"


def make_strategy(kind: str = "auto", *, tpu: str = "", virtual_devices: int = 0) -> tf.distribute.Strategy:
    """Makes the strategy under which all variables are created, and prints which one it is.

    Args:
      kind: One of `STRATEGIES`. "auto" takes the first that applies: the TPU `tpu`, several workers if TF_CONFIG is set
        or srun started several tasks, all virtual devices, the machine's TPU, all GPUs if there are several, else the
        machine's only device.
      tpu: The name or grpc address of a TPU, or "local" on a TPU VM (on host 0 where the TPU has several).
      virtual_devices: The number of devices to split the CPU into, to try distribution without hardware; 0 for none.

    Raises:
      UserError: where the devices asked for are missing, or the arguments contradict each other.
    """
    checks.choice("--strategy", kind, STRATEGIES)
    if tpu and kind not in ("auto", "tpu"):
        raise UserError(f"--tpu={tpu} and --strategy={kind} contradict each other; drop one of them")
    reason = f"--strategy={kind}"
    if kind == "auto":
        kind, reason = _choose(tpu, virtual_devices)
    if virtual_devices and kind in ("multi_worker", "tpu"):
        raise UserError(f"--virtual_devices={virtual_devices} splits one CPU and cannot go with {kind} ({reason})")
    if virtual_devices:
        _split_cpu(virtual_devices)
    if kind == "tpu":
        strategy = _tpu(tpu or "local")
    elif kind == "multi_worker":
        strategy = _multi_worker(_workers())
    elif kind == "mirrored":
        strategy = _mirrored(virtual_devices)
    else:
        strategy = tf.distribute.get_strategy()
    here = role(strategy)
    if here.is_chief:
        several = f", {here.count} workers" if here.count > 1 else ""
        print(f"strategy: {kind}, {strategy.num_replicas_in_sync} replica(s){several} ({reason})")
    return strategy
