"""What is wrong with a data set is said with the file and the remedy, before it does harm."""
import cv2
import numpy as np
import pytest
from mmengine.logging import MMLogger

import mmseg_bisenetv2  # noqa: F401

from mmseg.registry import DATASETS

PIPELINE = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
TTA = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[
        [dict(type='RandomFlip', prob=0.), dict(type='RandomFlip', prob=1.)],
        [dict(type='LoadAnnotations')], [dict(type='PackSegInputs')]])]


def write(root, label, name='a', image_suffix='.jpg'):
    for folder in ('img_dir/train', 'ann_dir/train'):
        (root / folder).mkdir(parents=True, exist_ok=True)
    image = np.zeros((*label.shape[:2], 3), np.uint8)
    cv2.imwrite(str(root / f'img_dir/train/{name}{image_suffix}'), image)
    cv2.imwrite(str(root / f'ann_dir/train/{name}.png'), label)


def build(root, kind='BaseSegDataset', pipeline=PIPELINE, **kwargs):
    if kind == 'BaseSegDataset':
        kwargs.setdefault('metainfo', dict(classes=('road', 'rest')))
    return DATASETS.build(dict(
        type=f'mmseg_bisenetv2.{kind}', data_root=str(root), pipeline=pipeline,
        data_prefix=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'), **kwargs))


@pytest.mark.parametrize('pipeline', [PIPELINE, TTA])
def test_good_labels_pass(tmp_path, pipeline):
    write(tmp_path, np.array([[0, 1], [255, 0]], np.uint8))
    assert len(build(tmp_path, pipeline=pipeline)) == 1
    build(tmp_path, pipeline=pipeline)[0]


@pytest.mark.parametrize('pipeline', [PIPELINE, TTA])
def test_id_outside_the_classes_is_named(tmp_path, pipeline):
    write(tmp_path, np.array([[0, 1], [7, 3]], np.uint8))
    with pytest.raises(ValueError, match=r'a\.png: class ids \[3, 7\].*2 classes'):
        build(tmp_path, pipeline=pipeline)[0]


@pytest.mark.parametrize('pipeline', [PIPELINE, TTA])
def test_colour_map_is_named(tmp_path, pipeline):
    write(tmp_path, np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(ValueError, match=r'a\.png: a picture of several channels.*class ids'):
        build(tmp_path, pipeline=pipeline)[0]


def test_map_of_another_size_is_named(tmp_path):
    write(tmp_path, np.zeros((4, 6), np.uint8))
    cv2.imwrite(str(tmp_path / 'ann_dir/train/a.png'), np.zeros((5, 6), np.uint8))
    with pytest.raises(ValueError, match=r'a\.png: a map of \(5, 6\) for an image of \(4, 6\)'):
        build(tmp_path)[0]


def test_resized_test_image_and_full_size_map_pass(tmp_path):
    write(tmp_path, np.zeros((4, 6), np.uint8))
    resize = dict(type='Resize', scale=(12, 8), keep_ratio=True)
    sample = build(tmp_path, pipeline=[PIPELINE[0], resize, *PIPELINE[1:]])[0]
    assert sample['inputs'].shape == (3, 8, 12)


def test_number_of_images_is_logged(tmp_path, capsys):
    write(tmp_path, np.zeros((4, 6), np.uint8))
    write(tmp_path, np.zeros((4, 6), np.uint8), name='b', image_suffix='.JPG')
    MMLogger.get_instance('images', logger_name='images')
    build(tmp_path)
    assert f'BaseSegDataset: 1 images *.jpg in {tmp_path}/img_dir/train' in capsys.readouterr().out


def test_empty_folder_is_named(tmp_path):
    (tmp_path / 'img_dir/train').mkdir(parents=True)
    (tmp_path / 'ann_dir/train').mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match='there is nothing'):
        build(tmp_path)


def test_reduced_zero_label_is_checked_as_the_loss_sees_it(tmp_path):
    write(tmp_path, np.array([[0, 1], [2, 2]], np.uint8))  # becomes 255, 0, 1, 1
    build(tmp_path, reduce_zero_label=True)[0]


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f'{tmp_path}/img_dir/train.*data_root'):
        build(tmp_path)


def test_missing_label_folder_is_named(tmp_path):
    write(tmp_path, np.zeros((2, 2), np.uint8))
    (tmp_path / 'ann_dir/train/a.png').unlink()
    (tmp_path / 'ann_dir/train').rmdir()
    with pytest.raises(FileNotFoundError, match=f'{tmp_path}/ann_dir/train'):
        build(tmp_path)


def test_folder_without_images_is_named(tmp_path):
    write(tmp_path, np.zeros((2, 2), np.uint8), image_suffix='.bmp')
    with pytest.raises(FileNotFoundError, match=r'no image \*\.jpg below.*\.bmp: set img_suffix'):
        build(tmp_path)


@pytest.mark.parametrize('kind, remedy', [
    ('CityscapesDataset', 'mim run mmseg cityscapes'),
    ('COCOStuffDataset', 'mim run mmseg coco_stuff10k'),
    ('CamVidDataset', 'tools/prepare_camvid.py'),
])
def test_each_data_set_says_how_to_prepare_it(tmp_path, kind, remedy):
    with pytest.raises(FileNotFoundError, match=remedy):
        build(tmp_path, kind)
