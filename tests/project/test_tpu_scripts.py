"""The TPU scripts against a stand-in for gcloud, which records its calls and runs what is sent over ssh in a folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_gcloud import SCRIPTS, Stand


@pytest.fixture
def stand(tmp_path):
    return Stand(tmp_path)


@pytest.fixture
def ready(stand):
    """With a TPU that is set up."""
    assert stand.run("create.sh").returncode == stand.run("setup.sh").returncode == 0
    return stand


def changes(verbs: list[str]) -> list[str]:
    """The calls that make or delete something."""
    return [verb for verb in verbs if verb.split()[1] in ("create", "delete", "scp")]


def test_a_run_from_nothing_to_its_end(stand):
    stand.write("codes", "0\n")
    done = stand.run("launch.sh")
    assert done.returncode == 0, done.stderr
    assert changes(stand.verbs()) == ["tpu-vm create", "tpu-vm scp"]
    create = next(call for call in stand.read("calls") if "tpu-vm create" in call)
    assert "--spot" in create
    assert "--version=tpu-vm-tf-2.15.1-pjrt" in create
    # What is in the configuration arrives, spaces and quotes and all.
    assert stand.read("starts") == [
        "run.py --mode=pretrain --gin_param=Data.source='tfds:x y' --workdir=gs://bucket/run --tpu=local --data_dir=gs://bucket/data"
    ]
    assert "--system-site-packages" in stand.read("venv")[0]
    assert stand.read("environment") == ["TPU_LOAD_LIBRARY=unset"]
    assert stand.read("plugin") == [" "]  # There is no library.
    assert (stand.folder / "home/simclr_run/log").read_text() == "this run ends with 0\n"


def test_exit_code_75_starts_again_and_others_do_not(stand):
    stand.write("codes", "75\n75\n1\n")
    done = stand.run("launch.sh")
    assert done.returncode == 1
    assert len(stand.read("starts")) == 3
    assert "this run ends with 1" in done.stderr
    assert changes(stand.verbs()) == ["tpu-vm create", "tpu-vm scp"]


def test_a_run_that_dies_is_started_again_a_few_times(stand):
    stand.write("codes", "137\n137\n137\n137\n")
    done = stand.run("launch.sh")
    assert done.returncode == 137
    assert len(stand.read("starts")) == 3


def test_a_run_that_was_told_to_end_is_no_crash(stand):
    stand.write("codes", "143\n143\n143\n143\n0\n")
    done = stand.run("launch.sh")
    assert done.returncode == 0, done.stderr
    assert len(stand.read("starts")) == 5


@pytest.mark.parametrize("queued", ["no", "yes"])
def test_a_preempted_tpu_is_made_anew(stand, queued):
    stand.configure(QUEUED=queued)
    stand.write("codes", "waits\n0\n")
    stand.write("preempt_at", "3\n")
    done = stand.run("launch.sh")
    assert done.returncode == 0, done.stderr
    kind = "queued-resources" if queued == "yes" else "tpu-vm"
    assert changes(stand.verbs()) == [
        f"{kind} create",
        "tpu-vm scp",
        f"{kind} delete",
        f"{kind} create",
        "tpu-vm scp",
    ]
    assert len(stand.read("starts")) == 2
    assert "PREEMPTED" in done.stderr


def test_the_next_stage_on_the_same_tpu(stand):
    stand.write("codes", "0\n0\n")
    assert stand.run("launch.sh").returncode == 0
    again = stand.run("launch.sh")
    assert again.returncode == 0 and "costs money" in again.stderr
    assert len(stand.read("starts")) == 1
    stand.configure(RUN="(--mode=finetune)", WORKDIR="gs://bucket/next")
    assert stand.run("launch.sh").returncode == 0
    assert [line.split()[1] for line in stand.read("starts")] == ["--mode=pretrain", "--mode=finetune"]
    assert changes(stand.verbs()) == ["tpu-vm create", "tpu-vm scp"]


def test_another_run_is_left_alone(ready):
    ready.write("codes", "waits\n")
    ready.on_vm("start", "1", "--mode=pretrain")
    for set_up_again in (False, True):
        if set_up_again:  # Cut short; what is running is told first all the same.
            (ready.folder / "home/simclr_ready").unlink()
        done = ready.run("launch.sh")
        assert done.returncode == 1 and "another run is going on" in done.stderr
        assert len(ready.read("starts")) == 1
    ready.on_vm("stop")


def test_what_failed_before_is_tried_once_more(stand):
    stand.write("codes", "1\n0\n")
    assert stand.run("launch.sh").returncode == 1
    assert stand.run("launch.sh").returncode == 0
    assert len(stand.read("starts")) == 2
    # With what was put right in the checkout.
    assert stand.verbs().count("tpu-vm scp") == 2


def test_nothing_starts_on_half_a_set_up(stand):
    stand.write("codes", "1\n0\n")
    assert stand.run("launch.sh").returncode == 1
    stand.write("pip_fails", "x\n")
    done = stand.run("launch.sh")
    assert done.returncode == 0, done.stderr
    assert len(stand.read("starts")) == 2
    assert stand.verbs().count("tpu-vm scp") == 3


def test_a_set_up_that_fails_is_tried_again(stand):
    stand.write("codes", "0\n")
    stand.write("pip_fails", "x\nx\n")
    done = stand.run("launch.sh")
    assert done.returncode == 0, done.stderr
    assert stand.verbs().count("tpu-vm scp") == 3
    stand.run("delete.sh")
    stand.write("pip_fails", "x\n" * 9)
    done = stand.run("launch.sh")
    assert done.returncode == 1 and "costs money" in done.stderr
    assert len(stand.read("starts")) == 1


def test_what_will_never_be_granted_is_asked_for_once(stand):
    stand.write("refused", "")
    done = stand.run("launch.sh")
    assert done.returncode == 1 and "asking again will not help" in done.stderr
    assert stand.verbs().count("tpu-vm create") == 1


def test_a_request_keeps_its_place_in_line(stand):
    stand.configure(QUEUED="yes")
    stand.write("codes", "0\n")
    stand.write("queue", "WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
    done = stand.run("launch.sh")
    assert done.returncode == 0, done.stderr
    assert changes(stand.verbs()) == ["tpu-vm scp"]


def test_without_gcloud(stand):
    tools = stand.folder / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "basename", "sed"):
        (tools / tool).symlink_to(shutil.which(tool))
    stand.environment["PATH"] = str(tools)
    done = stand.run("launch.sh")
    assert done.returncode == 1 and done.stderr.splitlines() == [
        "launch.sh: there is no gcloud here; install Google's Cloud CLI and log in"
    ]


def test_without_a_login(stand):
    stand.write("no_account", "")
    done = stand.run("launch.sh")
    assert done.returncode == 1
    assert "You do not currently have an active account" in done.stderr and "put right what gcloud said" in done.stderr
    assert changes(stand.verbs()) == []


def test_no_capacity_is_asked_for_again(stand):
    stand.write("no_capacity", "")
    stand.write("codes", "0\n")
    done = stand.run("launch.sh")
    assert done.returncode == 0, done.stderr
    assert stand.verbs().count("tpu-vm create") == 2


def test_watching_again_starts_nothing(ready):
    ready.write("codes", "waits\n")
    assert ready.on_vm("start", "1", "--mode=pretrain") == "started\n"
    assert ready.on_vm("start", "1", "--mode=pretrain") == "running\n"
    assert ready.on_vm("status") == "running\n"
    deadline = time.monotonic() + 60
    while not (ready.folder / "trapped").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ready.on_vm("stop") == "exited 75\n"
    assert len(ready.read("starts")) == 1


def test_a_single_host_is_told_where_the_tpus_library_lies(ready):
    library = ready.folder / "libtpu.so"
    library.touch()
    ready.environment["TPU_LIBRARY_PATH"] = str(library)
    ready.write("codes", "0\n0\n0\n")
    for hosts in ("1", "4"):
        assert ready.on_vm("start", hosts, "--mode=pretrain", f"--workdir={hosts}") == "started\n"
        deadline = time.monotonic() + 60
        while not ready.on_vm("status").startswith("exited") and time.monotonic() < deadline:
            time.sleep(0.05)
    own = ready.folder / "home/simclr_venv/libtpu.so"
    own.touch()
    ready.write("own_library", f"{own}\n")
    assert ready.on_vm("start", "1", "--mode=pretrain", "--workdir=own") == "started\n"
    deadline = time.monotonic() + 60
    while not ready.on_vm("status").startswith("exited") and time.monotonic() < deadline:
        time.sleep(0.05)
    # A pod's servers have the TPU; what pip installed comes before the image's.
    assert ready.read("plugin") == [f"true {library}", " ", f"true {own}"]


def test_a_host_that_went_down_counts_as_lost(ready):
    assert ready.on_vm("status") == "none\n"
    folder = ready.folder / "home/simclr_run"
    folder.mkdir()
    (folder / "pid").write_text("999999999")
    assert ready.on_vm("status") == "lost\n"


def test_a_pod_is_led_by_host_0(stand):
    stand.configure(ACCELERATOR_TYPE="v3-32")
    stand.write("codes", "0\n")
    assert stand.run("launch.sh").returncode == 0
    calls = stand.read("calls")
    assert any("--version=tpu-vm-tf-2.15.1-pod-pjrt" in call for call in calls)
    assert any("--worker=all" in call and "remote_run.sh start 4" in call for call in calls)
    assert stand.read("environment") == ["TPU_LOAD_LIBRARY=0"]
    stand.write("worker", "2")
    assert stand.on_vm("start", "4", "--mode=pretrain") == "host 2 serves host 0\n"


def test_stack_of_pip(stand):
    stand.configure(STACK="2.20")
    stand.write("tensorflow", "2.20.0\n")
    stand.write("codes", "0\n")
    assert stand.run("launch.sh").returncode == 0
    assert any("requirements-tf2.20.txt" in line for line in stand.read("pip"))
    assert "--system-site-packages" not in stand.read("venv")[0]
    stand.configure(STACK="2.20", ACCELERATOR_TYPE="v3-32")
    refused = stand.run("create.sh")
    assert refused.returncode == 1
    assert "4 hosts" in refused.stderr


def test_a_wrong_tensorflow_stops_the_set_up(stand):
    stand.write("tensorflow", "2.14.0\n")
    stand.run("create.sh")
    done = stand.run("setup.sh")
    assert done.returncode == 1
    assert "2.14.0" in done.stderr


def test_fetch_logs_delete(stand):
    assert stand.run("create.sh").returncode == 0
    assert stand.run("fetch.sh").returncode == 0
    assert stand.read("calls")[-1] == "storage rsync --recursive --exclude=^checkpoints/ gs://bucket/run results/run"
    assert stand.run("fetch.sh", "--all").returncode == 0
    assert stand.read("calls")[-1] == "storage rsync --recursive gs://bucket/run results/run"
    assert stand.run("delete.sh").returncode == 0
    assert stand.read("calls")[-1] == "compute tpus tpu-vm delete tpu --project=p --zone=z --quiet"


@pytest.mark.parametrize("script", ["create.sh", "setup.sh", "launch.sh", "logs.sh", "fetch.sh", "delete.sh"])
def test_print_shows_and_runs_nothing(stand, script):
    for queued in ("no", "yes"):
        stand.configure(QUEUED=queued)
        done = stand.run(script, "--print")
        assert done.returncode == 0, done.stderr
        assert "gcloud" in done.stdout
        assert all(line.split()[0] in ("gcloud", "tar") for line in done.stdout.splitlines())
    assert stand.read("calls") == []
    assert not (stand.folder / "results").exists()


def test_print_is_what_is_run(stand):
    printed = set(stand.run("create.sh", "--print").stdout.splitlines())
    stand.run("create.sh")
    assert printed == {f"gcloud {call}" for call in stand.read("calls")}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"WORKDIR": "/home/me/run"}, "not in a bucket"),
        ({"SPOT": "maybe"}, "yes or no"),
        ({"STACK": "2.21"}, "2.15 or 2.20"),
        ({"ZONE": ""}, "sets no ZONE"),
        ({"ACCELERATOR_TYPE": "v3"}, "v3-8"),
        ({"NAME": "My_TPU"}, "small letters"),
        ({"RUN": "()"}, "RUN is empty"),
    ],
)
def test_configurations_that_cannot_be_meant(stand, change, complaint):
    stand.configure(**change)
    done = stand.run("launch.sh", "--print")
    assert done.returncode == 1
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert stand.read("calls") == []


def test_hosts_of_a_type(stand):
    # Machines by type, as Google's tables have them.
    tables = {"v2-8": 1, "v3-32": 4, "v3-128": 16, "v4-8": 1, "v4-32": 4, "v5litepod-8": 1, "v5litepod-16": 4}
    for kind, hosts in tables.items():
        stand.configure(ACCELERATOR_TYPE=kind)
        assert f"remote_run.sh\\ start\\ {hosts}\\ " in stand.run("launch.sh", "--print").stdout, kind


def test_shellcheck():
    beside = Path(sys.executable).parent / "shellcheck"
    tool = str(beside) if beside.exists() else shutil.which("shellcheck")
    if tool is None:
        pytest.skip("shellcheck is not installed; it is in requirements-dev.txt")
    done = subprocess.run(
        [tool, "-x", *sorted(str(path) for path in SCRIPTS.glob("*.sh"))], text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout
