"""Depths that only tests have: most of a test's time goes into tracing blocks.

Importing registers them, for the command line as well.
"""

from simclr_tf.models import resnet
from simclr_tf.models.blocks import basic_block, bottleneck

# The first and the last group alone: every kind of block that a network of basic blocks has, with and without a stride.
resnet.DEPTHS[6] = (basic_block, 1, (1, 0, 0, 1))
# Bottlenecks, which selective kernels need.
resnet.DEPTHS[29] = (bottleneck, 4, (1, 1, 1, 1))
