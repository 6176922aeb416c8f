import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))  # as Python does for a script

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['get_flops.py', *map(str, arguments)])
        runpy.run_path(str(ROOT / 'tools/get_flops.py'), run_name='__main__')

    return run


def test_figures_are_those_of_the_readme(tool, capsys):
    tool(ROOT / 'configs/bisenetv2_fcn_cityscapes.py', '--size', '1024x512')
    out = capsys.readouterr().out
    assert 'GMAC           24.60\n' in out
    assert '14.80 in training, 3.36 without auxiliary heads' in out
    readme = (ROOT / 'README.md').read_text()
    assert '24.6' in readme and '98.4' in readme  # at four times the pixels
    assert '14.80 M parameters, 3.36 M' in readme


def test_grey_images(tool, tmp_path, capsys):
    config = tmp_path / 'grey.py'
    config.write_text(f"_base_ = {str(ROOT / 'configs/bisenetv2_fcn_cityscapes.py')!r}\n"
                      'model = dict(backbone=dict(in_channels=1), data_preprocessor=dict('
                      'mean=[127.5], std=[60.0], bgr_to_rgb=False))')
    tool(config, '--size', '128x64')
    assert 'GMAC' in capsys.readouterr().out


@pytest.mark.parametrize('content', [None, 'model = dict(type=', "model = dict(type='None')"])
def test_config_that_cannot_be_built(tool, tmp_path, content):
    if content:
        (tmp_path / 'bad.py').write_text(content)
    with pytest.raises(SystemExit, match=r'bad\.py'):
        tool(tmp_path / 'bad.py')
