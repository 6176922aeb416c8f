"""200 crafted checkpoints: a load or one clear error, nothing run or deleted, cheap."""
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name('crafted.py')


def test_crafted_checkpoints():
    result = subprocess.run([sys.executable, '-W', 'ignore', SCRIPT], capture_output=True,
                            text=True, timeout=600, check=False)
    print(result.stdout)
    assert result.returncode == 0, result.stderr
    assert '| all | 200 |' in result.stdout
