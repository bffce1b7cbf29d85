"""The machines of a run, read from the environment: TF_CONFIG, SLURM, or a TPU VM's metadata.

Nothing here starts or touches a device.
"""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import NamedTuple

from simclr_tf.core.errors import UserError

# The port of the servers on a TPU's hosts.
_TPU_PORT = 8470
# 15000 to 29999: below the ports that Linux gives to outgoing connections.
_SLURM_FIRST_PORT, _SLURM_PORTS = 15000, 15000


class Workers(NamedTuple):
    """The processes of one run.

    Attributes:
      addresses: The host:port of each process, in order; the first one is the chief.
      index: The number of this process.
      told_by: The name of what this was read from.
    """

    addresses: tuple[str, ...]
    index: int
    told_by: str


def from_tf_config(text: str) -> Workers:
    """Reads TF_CONFIG, `{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}`.

    A job named "chief", where there is one, comes before the workers.

    Raises:
      UserError: where it cannot be understood, or names jobs other than chief and worker.
    """
    try:
        config = json.loads(text)
        cluster, task = dict(config["cluster"]), dict(config["task"])
        kind, index = task["type"], int(task["index"])
        jobs = {name: [str(address) for address in cluster[name]] for name in cluster}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"TF_CONFIG cannot be understood ({type(error).__name__}: {error}); it looks like "
            '{"cluster": {"worker": ["host1:port", "host2:port"]}, "task": {"type": "worker", "index": 0}}'
        ) from None
    strange = sorted({*jobs, kind} - {"chief", "worker"})
    if strange:
        raise UserError(
            f"TF_CONFIG names {', '.join(strange)}, but only a chief and workers take part here; leave the rest out"
        )
    if kind not in jobs or not 0 <= index < len(jobs[kind]):
        raise UserError(
            f"TF_CONFIG says that this is {kind} {index}, but its cluster has {len(jobs.get(kind, []))} of that kind"
        )
    return Workers(
        tuple(jobs.get("chief", []) + jobs.get("worker", [])),
        index + (len(jobs.get("chief", [])) if kind == "worker" else 0),
        "TF_CONFIG",
    )


def expand_nodelist(text: str) -> list[str]:
    """Expands SLURM's short form of host names: "a[01-03,7],b" -> a01, a02, a03, a7, b.

    Raises:
      UserError: where brackets or ranges are malformed.
    """

    def wrong() -> UserError:
        return UserError(f"the SLURM node list {text!r} cannot be understood; it looks like node[01-03,07],other")

    def one(pattern: str) -> list[str]:
        head, bracket, rest = pattern.partition("[")
        if not bracket:
            if not pattern or "]" in pattern:
                raise wrong()
            return [pattern]
        inside, bracket, tail = rest.partition("]")
        if not bracket or not inside:
            raise wrong()
        tails = one(tail) if tail else [""]
        numbers = []
        for part in inside.split(","):
            match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
            if not match:
                raise wrong()
            first, last = match[1], match[2] or match[1]
            if int(last) < int(first):
                raise wrong()
            numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        return [head + number + end for number in numbers for end in tails]

    # Commas inside brackets do not separate.
    patterns = [part.strip() for part in re.split(r",(?![^\[]*\])", text.strip())]
    return [host for pattern in patterns for host in one(pattern)]


def expand_tasks(text: str) -> list[int]:
    """Expands SLURM's short form of tasks per node: "2(x3),1" -> 2, 2, 2, 1.

    Raises:
      UserError: where it cannot be understood.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not match:
            raise UserError(f"SLURM's tasks per node are {text!r}, which cannot be understood; it looks like 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def in_slurm_step(environ: Mapping[str, str]) -> bool:
    """Whether srun started this process as one of several."""
    try:
        several = int(environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or 1) > 1
    except ValueError:
        several = True  # from_slurm reports what is wrong.
    return started_by_srun(environ) and several


def started_by_srun(environ: Mapping[str, str]) -> bool:
    """Whether srun started this process."""
    # A script under sbatch or a shell under salloc sees the job's number of tasks, but is not one of them.
    alone = "SLURM_SUBMIT_DIR" in environ and not any(name.startswith("SLURM_STEP") for name in environ)
    return "SLURM_PROCID" in environ and not alone


def from_slurm(environ: Mapping[str, str]) -> Workers:
    """Reads what srun tells each of its tasks.

    All tasks compute the same ports from the job's number, and so agree on them without communication.

    Raises:
      UserError: where variables are missing or contradict each other.
    """

    def value(*names: str) -> str:
        for name in names:
            if environ.get(name):
                return environ[name]
        raise UserError(f"SLURM does not set {names[0]} here; start the run by srun, or set TF_CONFIG")

    try:
        rank = int(value("SLURM_PROCID"))
        count = int(value("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"))
        job = int(environ.get("SLURM_JOB_ID") or environ.get("SLURM_JOBID") or 0)
    except ValueError as error:
        raise UserError(f"one of SLURM_PROCID, SLURM_NTASKS and SLURM_JOB_ID is not a number ({error})") from None
    nodes = expand_nodelist(value("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"))
    layout = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE")
    if layout:
        tasks = expand_tasks(layout)
    else:
        tasks = [count // len(nodes) + (number < count % len(nodes)) for number in range(len(nodes))]
    if len(tasks) != len(nodes) or sum(tasks) != count or not 0 <= rank < count:
        raise UserError(
            f"SLURM names {len(nodes)} node(s) with {tasks} tasks, but {count} task(s), of which this is number {rank};"
            " start the run by srun, or set TF_CONFIG"
        )
    node = next(number for number in range(len(tasks)) if rank < sum(tasks[: number + 1]))
    if environ.get("SLURM_NODEID", str(node)) != str(node):
        raise UserError(
            f"SLURM runs task {rank} on node {environ['SLURM_NODEID']} of its step, not on {node}; tasks have to "
            "fill one node after the other: start the run by srun --distribution=block"
        )
    first = _SLURM_FIRST_PORT + job % _SLURM_PORTS
    addresses: list[str] = []
    for node, number in zip(nodes, tasks):
        for _ in range(number):
            used = sum(address.rpartition(":")[0] == node for address in addresses)
            addresses.append(f"{node}:{first + used}")
    return Workers(tuple(addresses), rank, "SLURM")


def _metadata(name: str, environ: Mapping[str, str]) -> str | None:
    """Returns an attribute of this Google Cloud machine from its metadata server; None elsewhere."""
    host = environ.get("GCE_METADATA_HOST") or environ.get("GCE_METADATA_IP") or "metadata.google.internal"
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/attributes/{name}", headers={"Metadata-Flavor": "Google"}
    )
    # The metadata server answers only this machine itself, not a proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, OSError):
        return None


def of_tpu_vm(environ: Mapping[str, str] = os.environ) -> Workers | None:
    """Returns the hosts of the TPU that this machine belongs to; None on a machine that is not a TPU VM.

    Reads TPU_WORKER_HOSTNAMES and TPU_WORKER_ID where they are set (GKE), else the machine's metadata.

    Raises:
      UserError: where they cannot be understood.
    """
    names, number = environ.get("TPU_WORKER_HOSTNAMES"), environ.get("TPU_WORKER_ID")
    if names:
        told_by, hosts = "TPU_WORKER_HOSTNAMES", names.split(",")
        number = number or "0"
    else:
        # Such as "unknown:8470:10.0.0.2,unknown:8470:10.0.0.3"; older machines leave out the port.
        endpoints = _metadata("worker-network-endpoints", environ)
        if not endpoints:
            return None
        told_by, hosts = "the TPU VM's metadata", [endpoint.split(":")[-1] for endpoint in endpoints.split(",")]
        number = _metadata("agent-worker-number", environ) or "0"
    hosts = [host.strip() for host in hosts]
    if not all(hosts) or not number.strip().isdigit() or int(number) >= len(hosts):
        raise UserError(f"{told_by} gives {len(hosts)} TPU host(s), {hosts}, and says that this is number {number!r}")
    return Workers(tuple(f"{host}:{_TPU_PORT}" for host in hosts), int(number), told_by)
