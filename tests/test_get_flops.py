import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize('size, gmac', [((512, 1024), '24.60'), ((1024, 2048), '98.41')])
def test_figures_are_those_of_the_readme(size, gmac):
    out = subprocess.run(
        [sys.executable, '-W', 'ignore', 'tools/get_flops.py',
         'configs/bisenetv2_fcn_cityscapes.py', '--size', *map(str, size)],
        cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f'GMAC           {gmac}\n' in out
    assert '14.80 in training, 3.36 without auxiliary heads' in out
    readme = (ROOT / 'README.md').read_text()
    assert f'{float(gmac):.1f}' in readme and '14.80 M parameters, 3.36 M' in readme
