"""Clusters as their environment tells of them, and what --strategy=auto makes of it."""

from __future__ import annotations

import http.server
import json
import threading

import pytest

from simclr_tf.core.errors import StartAgain, UserError
from simclr_tf.core.tf import tf
from simclr_tf.distribute import cluster, hosts


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a", ["a"]),
        ("localhost", ["localhost"]),
        ("a,b", ["a", "b"]),
        ("node[1-3]", ["node1", "node2", "node3"]),
        ("node[08-11]", ["node08", "node09", "node10", "node11"]),
        ("node[001,7,9-10].cluster", ["node001.cluster", "node7.cluster", "node9.cluster", "node10.cluster"]),
        ("gpu[1-2],cpu-[5,7],x", ["gpu1", "gpu2", "cpu-5", "cpu-7", "x"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("r1n-[01-02]-ib", ["r1n-01-ib", "r1n-02-ib"]),
    ],
)
def test_node_lists(text, names):
    assert hosts.expand_nodelist(text) == names


@pytest.mark.parametrize("text", ["", "a[", "a[]", "a]1[", "a[2-1]", "a[x]", "a,,b", "a[1-2", "a[1-2]]"])
def test_node_lists_that_make_no_sense(text):
    with pytest.raises(UserError, match="node list"):
        hosts.expand_nodelist(text)


def test_tasks_per_node():
    assert hosts.expand_tasks("2(x3),1") == [2, 2, 2, 1]
    assert hosts.expand_tasks("4") == [4]
    with pytest.raises(UserError, match="tasks per node"):
        hosts.expand_tasks("2x3")


def test_slurm_one_task_a_node():
    environ = {
        "SLURM_JOB_ID": "40123",
        "SLURM_PROCID": "2",
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_STEP_NODELIST": "n[1-3]",
        "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
    }
    assert hosts.from_slurm(environ) == (("n1:25123", "n2:25123", "n3:25123"), 2, "SLURM")
    assert hosts.in_slurm_step(environ)


def test_slurm_several_tasks_a_node_get_ports_of_their_own():
    environ = {
        "SLURM_JOB_ID": "1",
        "SLURM_PROCID": "0",
        "SLURM_NTASKS": "3",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_TASKS_PER_NODE": "2,1",
    }
    assert hosts.from_slurm(environ).addresses == ("n1:15001", "n1:15002", "n2:15001")


def test_slurm_without_a_layout_or_with_one_host_twice():
    environ = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "localhost"}
    assert hosts.from_slurm(environ).addresses == ("localhost:15000", "localhost:15001")
    environ["SLURM_JOB_NODELIST"] = "localhost,localhost"
    assert hosts.from_slurm(environ).addresses == ("localhost:15000", "localhost:15001")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"SLURM_PROCID": "5"}, "number 5"),
        ({"SLURM_PROCID": "x"}, "not a number"),
        (
            {"SLURM_PROCID": "1", "SLURM_JOB_NODELIST": "a,b", "SLURM_NODEID": "0"},
            "on node 0 of its step, not on 1; .*block",
        ),
        ({"SLURM_TASKS_PER_NODE": "7"}, "1 node"),
        ({"SLURM_JOB_NODELIST": ""}, "does not set SLURM_STEP_NODELIST"),
    ],
)
def test_slurm_that_does_not_fit_together(change, complaint):
    environ = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "a", **change}
    with pytest.raises(UserError, match=complaint):
        hosts.from_slurm(environ)


def test_a_batch_script_is_no_step():
    environ = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_SUBMIT_DIR": "/home"}
    assert not hosts.in_slurm_step(environ)
    assert hosts.in_slurm_step({**environ, "SLURM_STEP_ID": "0"})
    assert not hosts.in_slurm_step({**environ, "SLURM_STEP_ID": "0", "SLURM_NTASKS": "1"})


def tf_config(cluster_spec, kind="worker", index=0) -> str:
    return json.dumps({"cluster": cluster_spec, "task": {"type": kind, "index": index}})


def test_tf_config():
    text = tf_config({"worker": ["a:1", "b:2"]}, index=1)
    assert hosts.from_tf_config(text) == (("a:1", "b:2"), 1, "TF_CONFIG")
    both = {"worker": ["b:2", "c:3"], "chief": ["a:1"]}
    assert hosts.from_tf_config(tf_config(both, "chief")) == (("a:1", "b:2", "c:3"), 0, "TF_CONFIG")
    assert hosts.from_tf_config(tf_config(both, "worker", 1)).index == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "cannot be understood"),
        ("[]", "cannot be understood"),
        ('{"cluster": {"worker": ["a:1"]}}', "cannot be understood"),
        (tf_config({"worker": ["a:1"]}, index=1), "this is worker 1, but its cluster has 1"),
        (tf_config({"worker": ["a:1"], "ps": ["b:1"]}), "names ps"),
        (tf_config({"worker": ["a:1"]}, "evaluator"), "names evaluator"),
        (tf_config({"worker": ["a:1"]}, "chief"), "this is chief 0"),
    ],
)
def test_tf_config_that_cannot_be_meant(text, complaint):
    with pytest.raises(UserError, match=complaint):
        hosts.from_tf_config(text)


@pytest.fixture
def metadata():
    """A stand-in for Google Cloud's metadata server; yields its answers and its address."""
    answers: dict[str, str] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition("/")[2]
            known = self.headers["Metadata-Flavor"] == "Google" and name in answers
            self.send_response(200 if known else 404)
            self.end_headers()
            if known:
                self.wfile.write(answers[name].encode())

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield answers, f"localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_tpu_vm_metadata(metadata):
    answers, address = metadata
    environ = {"GCE_METADATA_HOST": address}
    assert hosts.of_tpu_vm(environ) is None
    answers["worker-network-endpoints"] = "unknown:unknown:10.0.0.2,unknown:8470:10.0.0.3"
    answers["agent-worker-number"] = "1"
    assert hosts.of_tpu_vm(environ)[:2] == (("10.0.0.2:8470", "10.0.0.3:8470"), 1)
    answers["agent-worker-number"] = "2"
    with pytest.raises(UserError, match="2 TPU host"):
        hosts.of_tpu_vm(environ)


def test_tpu_hosts_from_the_environment():
    environ = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}
    assert hosts.of_tpu_vm(environ) == (("a:8470", "b:8470"), 1, "TPU_WORKER_HOSTNAMES")


def test_a_pod_is_led_by_host_0(monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    monkeypatch.setenv("TPU_WORKER_ID", "0")
    assert cluster._tpu_address("local") == "grpc://a:8470,grpc://b:8470"
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=cluster._tpu_address("local"))
    assert resolver.cluster_spec().as_dict() == {"worker": ["a:8470", "b:8470"]}
    monkeypatch.setenv("TPU_WORKER_ID", "1")
    with pytest.raises(UserError, match="host 1 of a TPU with 2 hosts"):
        cluster.make_strategy(tpu="local")
    assert cluster._tpu_address("grpc://c:1") == "grpc://c:1"


@pytest.fixture
def nothing_set(monkeypatch):
    for name in list(cluster.os.environ):
        if name.startswith(("SLURM_", "TF_CONFIG", "TPU_")):
            monkeypatch.delenv(name)
    return monkeypatch


def fake_devices(monkeypatch, **counts: int) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind] * counts.get(kind, 0))


@pytest.mark.parametrize(
    ("devices", "environ", "flags", "expected"),
    [
        ({}, {}, {}, "one_device"),
        ({"GPU": 1}, {}, {}, "one_device"),
        ({"GPU": 2}, {}, {}, "mirrored"),
        ({"TPU": 8}, {}, {}, "tpu"),
        ({"TPU": 8}, {}, {"virtual_devices": 2}, "mirrored"),
        ({}, {}, {"tpu": "name"}, "tpu"),
        ({"GPU": 4}, {"TF_CONFIG": "{}"}, {}, "multi_worker"),
        ({"GPU": 4}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, {}, "multi_worker"),
        ({"GPU": 4}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, {}, "mirrored"),
    ],
)
def test_auto(nothing_set, devices, environ, flags, expected):
    fake_devices(nothing_set, **devices)
    for name, value in environ.items():
        nothing_set.setenv(name, value)
    kind, reason = cluster._choose(**{"tpu": "", "virtual_devices": 0, **flags})
    assert kind == expected
    assert reason


@pytest.mark.parametrize(("hidden", "told"), [(None, "TensorFlow cannot use"), ("-1", "no GPU or TPU was found")])
def test_a_gpu_that_tensorflow_cannot_use_is_named(nothing_set, hidden, told):
    fake_devices(nothing_set)
    nothing_set.setattr(cluster.glob, "glob", lambda pattern: ["/dev/nvidia0"])
    nothing_set.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden:
        nothing_set.setenv("CUDA_VISIBLE_DEVICES", hidden)
    kind, reason = cluster._choose("", 0)
    assert kind == "one_device" and told in reason


def test_auto_says_what_it_picked(nothing_set, capsys):
    nothing_set.setattr(cluster.glob, "glob", lambda pattern: [])
    strategy = cluster.make_strategy()
    assert strategy.num_replicas_in_sync == 1
    assert capsys.readouterr().out == "strategy: one_device, 1 replica(s) (no GPU or TPU was found)\n"
    cluster.make_strategy(virtual_devices=2)
    assert "strategy: mirrored, 2 replica(s) (--virtual_devices=2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({"kind": "pipeline"}, "choose one of auto, one_device"),
        ({"kind": "mirrored", "tpu": "local"}, "contradict"),
        ({"kind": "multi_worker"}, "set TF_CONFIG on every worker"),
        ({"kind": "tpu", "virtual_devices": 2}, "cannot go with tpu"),
        ({"tpu": "local"}, "no TPU answers to --tpu=local"),
        ({"virtual_devices": 99}, "--virtual_devices is 99"),
        ({"virtual_devices": -1}, "positive"),
    ],
)
def test_what_cannot_be_had(nothing_set, flags, complaint):
    nothing_set.setenv("GCE_METADATA_HOST", "localhost:1")
    with pytest.raises(UserError, match=complaint) as error:
        cluster.make_strategy(**flags)
    assert "\n" not in str(error.value)


def test_role():
    assert cluster.role(cluster.make_strategy()) == (0, 1)
    assert cluster.Role(0, 2).is_chief
    assert not cluster.Role(1, 2).is_chief


def test_every_gpu_of_a_worker_takes_part(nothing_set):
    made = []
    nothing_set.setattr(tf.distribute, "MultiWorkerMirroredStrategy", lambda **settings: made.append(settings))
    for gpus in (8, 0):
        fake_devices(nothing_set, GPU=gpus)
        cluster._multi_worker(hosts.Workers(("localhost:1",), 0, "a test"))
        found = made[-1]["cluster_resolver"].num_accelerators()
        assert found.get("GPU", 0) == gpus
    nccl, automatic = (settings["communication_options"].implementation.value for settings in made)
    assert (nccl, automatic) == ("NCCL", "AUTO")


class TwoWorkers(tf.distribute.MultiWorkerMirroredStrategy):
    """Says that there are two processes; none is started."""

    def __init__(self):
        pass

    @property
    def cluster_resolver(self):
        spec = tf.train.ClusterSpec({"worker": ["a:1", "b:1"]})
        return tf.distribute.cluster_resolver.SimpleClusterResolver(spec, task_type="worker", task_id=1)


def test_a_lost_worker_asks_for_another_start():
    lost = tf.errors.UnavailableError(None, None, "connection reset\nmore of it")
    told = pytest.raises(StartAgain, match=r"another of the 2 workers went away \(connection reset\)")
    with told, cluster.lost_hosts_start_again(TwoWorkers()):
        raise lost
    with pytest.raises(tf.errors.UnavailableError), cluster.lost_hosts_start_again(tf.distribute.get_strategy()):
        raise lost
    # A bug stays one.
    with pytest.raises(tf.errors.InvalidArgumentError), cluster.lost_hosts_start_again(TwoWorkers()):
        raise tf.errors.InvalidArgumentError(None, None, "shapes differ")
