"""Splits the CPU before TensorFlow starts, so that any test may ask for up to four replicas; a run to read from."""

import gc
import os

import pytest

from simclr_tf.core.tf import tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration() for _ in range(4)]
)

import small_networks  # noqa: E402, F401 (not before the CPU is split)

# Modules and graphs are many objects that stay; the command line looks for garbage among them as seldom.
gc.freeze()
gc.set_threshold(100_000)

# Files that take longest begin first, so that the last worker does not begin one of them when others are done.
_LONGEST = (
    "test_resume",
    "test_multi_worker",
    "test_sequence",
    "test_errors",
    "test_report",
    "test_gin_files",
    "test_plan",
)


# Scripts, texts and arithmetic: what neither TensorFlow nor Python's version decides.
_ONE_STACK = {
    "test_subset",
    "test_docs",
    "test_plan_compiler",
    "test_plan_estimates",
    "test_report",
    "test_results",
    "test_tpu_scripts",
}


def pytest_collection_modifyitems(items):
    rank = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
    for item in items:
        if item.path.stem in _ONE_STACK:
            item.add_marker(pytest.mark.one_stack)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No test looks for a TPU's metadata on the network, or takes itself for a part of the job that runs the tests."""
    monkeypatch.setenv("GCE_METADATA_HOST", "localhost:1")
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TPU_WORKER_", "TF_CONFIG"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def network():
    """A tiny network as if trained."""
    from exported_run import make_network  # Not before the CPU is split.

    return make_network()


@pytest.fixture(scope="module")
def workdir(network, tmp_path_factory) -> str:
    """A workdir as if a run had left this network there."""
    from exported_run import make_run

    return make_run(tmp_path_factory.mktemp("run"), network)
