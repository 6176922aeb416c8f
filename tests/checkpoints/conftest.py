"""What the tests of this folder share."""
import pytest
from mmengine.logging import MMLogger


@pytest.fixture
def log(monkeypatch):
    """The messages that are logged, whichever logger is the current one."""
    lines = []
    monkeypatch.setattr(
        MMLogger, 'callHandlers', lambda self, record: lines.append(record.getMessage()))
    return lines
