"""Makes the modules of tests/ and tools/ importable, and MMSegmentation the default scope."""
import functools
import gc
import sys
from pathlib import Path

import mmengine.config.utils
import pytest
from mmengine.registry import init_default_scope

# pytest's importlib mode adds neither this folder, with golden.py and others, nor that of the
# tools, which Python adds for a script.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / 'tools')]
init_default_scope('mmseg')  # for fixtures of modules, which come before the one below
# A config that inherits from 'mmseg::...' has MMEngine read all metafiles of MMSegmentation, for a
# third of a second. The tests read them once.
mmengine.config.utils.load = functools.cache(mmengine.config.utils.load)


@pytest.fixture(scope='module', autouse=True)
def frozen():
    """Exempts what is imported by now from garbage collection.

    MMEngine collects garbage in every data set that it builds. Without this, each of these
    collections would walk through a million objects of PyTorch and others, for a third of a second.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    """Lets the interpreter free at its end what it would otherwise report as leaks."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')
