"""A faithful and fast BiSeNetV2 for MMSegmentation; importing it makes all of it usable.

``compat`` comes first: it lets MMSegmentation itself be imported.
"""
from pathlib import Path  # noqa: I001

from mmseg_bisenetv2 import compat  # noqa: F401
from mmseg_bisenetv2 import datasets, metrics, models  # noqa: F401

# configs/, tools/ and weights/: in a clone links to these folders, in a wheel the files themselves.
MIM_FOLDER = Path(__file__).parent / '.mim'
__version__ = '0.1.0'
