"""Makes the modules of tests/ and tools/ importable, and MMSegmentation the default scope."""
import sys
from pathlib import Path

import pytest
from mmengine.registry import init_default_scope

# pytest's importlib mode adds neither this folder, with golden.py and others, nor that of the
# tools, which Python adds for a script.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / 'tools')]
init_default_scope('mmseg')  # for fixtures of modules, which come before the one below


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')
