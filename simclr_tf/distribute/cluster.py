"""Devices and strategies. The only file that names TPU, GPU and multi-worker resolvers."""

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
    """What part this process has in its run.

    Attributes:
      index: its number.
      count: how many processes there are. A TPU pod is led by one process, whatever its number of hosts.
    """

    index: int
    count: int

    @property
    def is_chief(self) -> bool:
        """Whether this process writes what is to be written once."""
        return self.index == 0


def role(strategy: tf.distribute.Strategy) -> Role:
    """Returns this process's part in a strategy that `make_strategy` made."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return Role(0, 1)
    resolver = strategy.cluster_resolver
    return Role(resolver.task_id or 0, max(1, len(resolver.cluster_spec().as_dict().get("worker", []))))


def may_lose_hosts(strategy: tf.distribute.Strategy) -> bool:
    """Whether the run depends on other processes, which may go away through nobody's fault."""
    return role(strategy).count > 1 or isinstance(strategy, tf.distribute.TPUStrategy)


def reads_elsewhere(strategy: tf.distribute.Strategy) -> bool:
    """Whether input pipelines run in other processes, where none of this one's Python can be called."""
    if not isinstance(strategy, tf.distribute.TPUStrategy):
        return False
    return tf.DeviceSpec.from_string(strategy.extended.worker_devices[0]).job not in (None, "localhost")


# What TensorFlow raises when another process went away.
LOST_HOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


@contextlib.contextmanager
def lost_hosts_start_again(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Within it, what TensorFlow raises when another process went away becomes `StartAgain`."""
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
    """What the resolver needs for --tpu: "local" becomes all hosts' addresses where the TPU has several."""
    if name != "local":
        return name
    workers = hosts.of_tpu_vm()
    if workers is None or len(workers.addresses) == 1:
        return name
    if workers.index:
        raise UserError(
            f"this is host {workers.index} of a TPU with {len(workers.addresses)} hosts (says {workers.told_by}); "
            "start the run on host 0 only, which leads the others"
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
    # Devices of one CPU share its memory: adding on one of them is quicker than the collectives meant for networks, and
    # keeps a fixed order of summation.
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
            f"worker {workers.index} of {count} (says {workers.told_by}); waiting for the others at "
            f"{', '.join(workers.addresses)}",
            file=sys.stderr,
            flush=True,
        )
    # A resolver that is not told of GPUs has none, and asking for logical ones would start TensorFlow too early.
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
    """What "auto" takes, and why."""
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
    """Makes the strategy that all variables are created under, and says which one it is.

    Args:
      kind: one of `STRATEGIES`; "auto" takes the TPU when `tpu` is given, several workers when TF_CONFIG is set or srun
        started several tasks, the machine's TPU, all GPUs or all virtual devices when there is more than one, else the
        one device there is.
      tpu: "local" on a TPU VM (host 0 of a TPU with several), or a TPU's name or grpc address.
      virtual_devices: splits the CPU into so many devices, for trying distribution without hardware; 0 does not.

    Raises:
      UserError: when what was asked for is not there, or contradicts itself.
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
