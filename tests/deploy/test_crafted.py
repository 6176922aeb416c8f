"""Files from strangers: a network, or one sentence that names the file; nothing is run or lost."""
import json
import subprocess
import sys
from pathlib import Path

import pytest


def outcomes(folder, *options):
    """What crafted.py found; in a process of its own, since it forks."""
    script = Path(__file__).with_name('crafted.py')
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', script, folder, '--json', *options],
        capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return [json.loads(line) for line in result.stdout.splitlines()]


def check(found, least):
    assert [outcome for outcome in found if outcome[5]] == []
    honest = [outcome for outcome in found if 'honest' in outcome[0]]
    assert all(outcome[2] == 'loaded, 4 classes' for outcome in honest)
    assert len(found) >= least


def test_a_sample(tmp_path):
    check(outcomes(tmp_path, '--every', '30'), 9)


@pytest.mark.slow
def test_all_of_them(tmp_path):
    check(outcomes(tmp_path), 200)
