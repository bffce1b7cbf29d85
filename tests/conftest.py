"""Splits the CPU before TensorFlow starts, so that any test may ask for up to four replicas; a run to read from."""

import pytest

from simclr_tf.stack import tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration() for _ in range(4)]
)


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
