"""Splits the CPU before TensorFlow starts, so that any test may ask for up to four replicas."""

from simclr_tf.stack import tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration() for _ in range(4)]
)
