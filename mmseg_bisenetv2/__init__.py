"""A faithful and fast BiSeNetV2 for MMSegmentation; importing it makes all of it usable.

``compat`` comes first: it lets MMSegmentation itself be imported.
"""
from mmseg_bisenetv2 import compat  # noqa: F401, I001
from mmseg_bisenetv2 import datasets, metrics, models  # noqa: F401

__version__ = '0.1.0'
