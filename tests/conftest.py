"""Makes tests/golden.py importable, and MMSegmentation the default scope, as its tools do."""
import sys
from pathlib import Path

import pytest
from mmengine.registry import init_default_scope

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not
init_default_scope('mmseg')  # for fixtures of modules, which come before the one below


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')
