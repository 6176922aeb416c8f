"""200 crafted checkpoints: a load or one clear error, nothing run or deleted, cheap."""
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name('crafted.py')


@pytest.mark.parametrize('arguments, files', [
    pytest.param(['--sample'], 40, id='sample'),
    pytest.param([], 200, id='all', marks=pytest.mark.slow)])
def test_crafted_checkpoints(arguments, files):
    result = subprocess.run([sys.executable, '-W', 'ignore', SCRIPT, *arguments],
                            capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    print(result.stdout)
    assert f'| all | {files} |' in result.stdout
