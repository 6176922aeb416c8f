"""tools/draw_curves.py: several trainings in one picture."""
import json
import runpy
import sys
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tool(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['draw_curves.py', *map(str, arguments)])
        runpy.run_path(str(ROOT / 'tools/draw_curves.py'), run_name='__main__')

    return run


@pytest.fixture
def runs(tmp_path):
    paths = [tmp_path / name for name in ('ours/work', 'stock/work')]
    for path in paths:
        (path / 'now/vis_data').mkdir(parents=True)
        (path / 'now/vis_data/scalars.json').write_text(json.dumps(dict(iter=1, loss=2, step=1)))
    return paths


def test_runs_of_equal_names_need_labels(tool, runs, tmp_path, capsys):
    out = tmp_path / 'new/curves.png'
    with pytest.raises(SystemExit):
        tool(*runs, '--out', out)
    assert 'two trainings have the same label, work, work: name each by --labels' in (
        capsys.readouterr().err)
    with pytest.raises(SystemExit):
        tool(*runs, '--out', out, '--labels', 'ours')
    assert 'expected 2, one for each training, got 1' in capsys.readouterr().err
    assert not out.exists()
    tool(*runs, '--out', out, '--labels', 'ours', 'stock')
    assert cv2.imread(str(out)).std() > 5 and capsys.readouterr().out == f'{out}\n'


def test_svg(tool, runs, tmp_path):
    tool(runs[0], '--out', tmp_path / 'curve.svg')
    assert '<svg' in (tmp_path / 'curve.svg').read_text()


def test_what_is_no_training_or_no_picture(tool, runs, tmp_path):
    with pytest.raises(SystemExit, match=r'No training was logged in .*nowhere'):
        tool(runs[0], tmp_path / 'nowhere')
    with pytest.raises(SystemExit, match='not supported'):
        tool(runs[0], '--out', tmp_path / 'curves.docx')
