"""``python -m mmseg_bisenetv2 TOOL``: our tools, and MMSegmentation's with mmcv-lite."""
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import PixelData

from mmseg_bisenetv2 import tool_runner
from mmseg_bisenetv2.new_config import write_config

from mmseg.structures import SegDataSample

ROOT = Path(__file__).parents[1]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['mmseg_bisenetv2', *map(str, arguments)])
    monkeypatch.setattr(sys, 'path', [*sys.path])
    tool_runner.main()


@pytest.fixture
def config(tmp_path):
    """A config of two classes, which the left and the right half of the pictures belong to."""
    labels = np.repeat(np.uint8([[0, 1]]), 48, 1).repeat(64, 0)
    for split in ('train', 'val'):
        for folder, content in (('img_dir', np.zeros((64, 96, 3), np.uint8)),
                                ('ann_dir', labels)):
            (tmp_path / 'data' / folder / split).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / 'data' / folder / split / 'a.png'), content)
    write_config(tmp_path / 'my.py', tmp_path / 'data', ['left', 'right'])
    return tmp_path / 'my.py'


@pytest.mark.parametrize('arguments', [[], ['--help'], ['-h']])
def test_without_a_tool_all_are_listed(monkeypatch, capsys, arguments):
    run(monkeypatch, *arguments)
    out = capsys.readouterr().out
    for script in ROOT.glob('tools/[!_]*.py'):
        first = script.read_text().strip('"').partition('\n')[0].rstrip('"')
        assert f'{script.stem} ' in out and first in out
    for name in ('browse_dataset', 'print_config', 'analyze_logs', 'coco_stuff10k'):
        assert name in out
    assert '_arguments' not in out and 'publish_model' not in out


def test_unknown_tool_is_refused_with_the_list(monkeypatch):
    with pytest.raises(SystemExit, match=r"(?s)no tool 'predcit'\..*predict .*browse_dataset"):
        run(monkeypatch, 'predcit')


@pytest.mark.parametrize('name, remedy', [
    ('publish_model', 'convert_checkpoint IN.pth OUT.pth --strip'),
    ('confusion_matrix', 'into test_confusion.png .*: mim test ')])
def test_tools_that_ours_replace_say_so(monkeypatch, name, remedy):
    with pytest.raises(SystemExit, match=f'{name}: .*{remedy}'):
        run(monkeypatch, name, 'a', 'b')


def test_confusion_matrix_of_mmsegmentation_is_wrong():
    """The reason for replacing it; if this fails, theirs has been mended and can be run."""
    script = tool_runner.MMSEG_TOOLS / 'analysis_tools/confusion_matrix.py'
    labels = np.arange(19, dtype=np.uint8)[None]
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.from_numpy(labels)))
    dataset = type('', (list, ), dict(
        METAINFO=dict(classes=range(19)), ignore_index=255, reduce_zero_label=False))(
            [dict(data_samples=sample)])
    matrix = runpy.run_path(str(script))['calculate_confusion_matrix'](dataset, [labels])
    assert not np.array_equal(matrix, np.eye(19))


def test_tool_of_this_package_gets_the_arguments(monkeypatch, tmp_path, capsys):
    run(monkeypatch, 'make_toy_cityscapes', tmp_path / 'toy', '--train', 1, '--val', 1,
        '--size', '128x64')
    assert '1 training and 1 validation images of 128x64' in capsys.readouterr().out
    assert [*(tmp_path / 'toy').rglob('*_leftImg8bit.png')]


def test_datasets_are_browsed_in_the_colours_of_own_classes(config, tmp_path):
    crop = 'train_dataloader.dataset.pipeline.2'
    # In a process of its own: MMEngine keeps one visualizer for all that run in one.
    subprocess.run(
        [sys.executable, '-m', 'mmseg_bisenetv2', 'browse_dataset', config, '--not-show',
         '--output-dir', tmp_path / 'out', '--cfg-options', f'{crop}.flip_prob=0',
         f'{crop}.ratio_range=1,1'], check=True, env=dict(os.environ, PYTHONPATH=str(ROOT)))
    picture = cv2.imread(str(next((tmp_path / 'out').rglob('*.png'))))[..., ::-1]
    for column, colour in zip((0, -1), Config.fromfile(config).palette, strict=True):
        seen = 0.8 * np.array(colour)  # The visualizer's opacity, over black.
        # Brightness, of at most 32, and contrast, of at most 1.5, are random: 32 x 1.5 x 0.2 = 9.6.
        np.testing.assert_allclose(np.median(picture[:, column], 0), seen, atol=11)


def test_learning_curves_are_drawn(monkeypatch, tmp_path, capsys):
    styles = []
    monkeypatch.setitem(sys.modules, 'seaborn', SimpleNamespace(set_style=styles.append))
    log = tmp_path / 'scalars.json'
    log.write_text('\n'.join(json.dumps(dict(loss=1 / step, step=step)) for step in (1, 2, 3)))
    run(monkeypatch, 'analyze_logs', log, '--keys', 'loss', '--out', tmp_path / 'loss.png')
    assert cv2.imread(str(tmp_path / 'loss.png')) is not None and styles == ['dark']


def test_config_is_printed_in_a_new_process_from_any_folder(config, tmp_path):
    """MMSegmentation's print_config imports mmseg.apis, which needs this package before it."""
    (tmp_path / 'elsewhere').mkdir()
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'mmseg_bisenetv2', 'print_config', config],
        cwd=tmp_path / 'elsewhere', stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout
    assert "type='mmseg_bisenetv2.BiSeNetV2'" in result.stdout
    assert Config.fromfile(tmp_path / 'elsewhere/example.py').classes == ('left', 'right')
