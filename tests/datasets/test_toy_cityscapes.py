import json
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmseg_bisenetv2.datasets.toy_cityscapes import draw_scene, make_toy_cityscapes

SIZE = (128, 256)
# The official table, cityscapesscripts/helpers/labels.py: label id -> train id.
OFFICIAL = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11,
            25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
SUFFIXES = ('leftImg8bit', 'gtFine_labelIds', 'gtFine_labelTrainIds')


def content(root):
    return {str(path.relative_to(root)): path.read_bytes()
            for path in sorted(root.rglob('*')) if path.is_file()}


def read(root, split, suffix):
    paths = sorted((root / suffix.split('_')[0] / split).glob(f'*/*_{suffix}.png'))
    return np.stack([cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths])


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    return make_toy_cityscapes(tmp_path_factory.mktemp('data') / 'toy', 24, 12, SIZE)


def test_files_have_the_names_of_cityscapes(toy):
    expected = {'toy_cityscapes.json'}
    for split, city, count in (('train', 'toyville', 24), ('val', 'toyburg', 12)):
        for i in range(count):
            expected |= {f'{suffix.split("_")[0]}/{split}/{city}/{city}_{i:06d}_000019_{suffix}.png'
                         for suffix in SUFFIXES}
    assert set(content(toy)) == expected


def test_mmsegmentation_reads_it(toy):
    from mmseg.datasets import CityscapesDataset
    from mmseg.utils import register_all_modules
    register_all_modules(init_default_scope=True)
    dataset = CityscapesDataset(
        data_root=str(toy),
        data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')])
    assert len(dataset) == 12
    sample = dataset[3]
    image, label = draw_scene(np.random.default_rng([0, 1, 3]), SIZE)
    assert np.array_equal(sample['img'], image)
    assert np.array_equal(sample['gt_seg_map'], label)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_images_and_labels_agree(toy, split):
    images, label_ids, train_ids = (read(toy, split, suffix) for suffix in SUFFIXES)
    assert images.dtype == label_ids.dtype == train_ids.dtype == np.uint8
    assert images.shape == (*train_ids.shape, 3) and label_ids.shape == train_ids.shape
    assert train_ids.shape[1:] == SIZE
    table = np.full(256, 255, np.uint8)
    table[list(OFFICIAL)] = list(OFFICIAL.values())
    assert np.array_equal(train_ids, table[label_ids])
    ignored = (train_ids == 255).mean((1, 2))
    assert .02 < ignored.min() and ignored.max() < .2


@pytest.mark.parametrize('split', ['train', 'val'])
def test_every_class_can_be_learned(toy, split):
    labels = read(toy, split, 'gtFine_labelTrainIds')
    pixels = np.stack([(labels == c).sum((1, 2)) for c in range(19)])
    assert set(np.unique(labels)) == {*range(19), 255}
    # At 128 x 256 a square of 5 pixels can just be told apart.
    assert ((pixels > 25).mean(1) > .2).all()


def test_colour_alone_tells_no_class(toy):
    """A table from colour to class, learned from the training images, gets little further."""
    votes = np.zeros((4096, 256), int)
    for split in ('train', 'val'):
        colours = (read(toy, split, SUFFIXES[0]) // 16).astype(int) @ (256, 16, 1)
        labels = read(toy, split, SUFFIXES[2])
        if split == 'train':
            np.add.at(votes, (colours, labels), 1)
    guesses = np.where(labels == 255, 255, votes[:, :19].argmax(1)[colours])
    iou = [((guesses == c) & (labels == c)).sum() / ((guesses == c) | (labels == c)).sum()
           for c in range(19)]
    assert np.mean(iou) < .2, np.mean(iou)


def test_no_image_occurs_twice(toy):
    images = [data for name, data in content(toy).items() if name.endswith('leftImg8bit.png')]
    assert len(set(images)) == len(images) == 36


def test_sizes_grow_with_nearness():
    """The lower its wheels stand in the picture, that is the nearer, the taller a car is."""
    feet, heights = [], []
    for i in range(20):
        _, label = draw_scene(np.random.default_rng(i), (256, 512))
        _, _, boxes, _ = cv2.connectedComponentsWithStats((label == 13).astype(np.uint8))
        for left, top, width, height, area in boxes[1:]:
            if area > 60 and left > 0 and left + width < 512:
                feet.append(top + height)
                heights.append(height)
    assert np.corrcoef(feet, heights)[0, 1] > .7


@pytest.mark.parametrize('size', [(64, 64), (96, 200), (256, 512), (1024, 2048)])
def test_scene_has_the_size_that_was_asked_for(size):
    image, label = draw_scene(np.random.default_rng(0), size)
    assert image.shape == (*size, 3) and label.shape == size
    assert image.dtype == label.dtype == np.uint8
    assert image.std() > 20 and len(np.unique(label)) > 6


def test_scene_is_the_same_at_every_size():
    _, small = draw_scene(np.random.default_rng(5), (128, 256))
    _, large = draw_scene(np.random.default_rng(5), (512, 1024))
    assert (small == large[2::4, 2::4]).mean() > .95


def test_seed_decides_every_byte(tmp_path):
    first, again, other = (content(make_toy_cityscapes(tmp_path / name, 2, 1, SIZE, seed))
                           for name, seed in (('a', 0), ('b', 0), ('c', 1)))
    assert first == again
    assert all(first[name] != other[name] for name in first)


def test_larger_set_begins_with_the_smaller_one(tmp_path):
    small, large = (content(make_toy_cityscapes(tmp_path / str(n), n, n, SIZE)) for n in (1, 3))
    assert all(large[name] == small[name] for name in small if name.endswith('.png'))


def test_own_output_is_replaced(tmp_path):
    make_toy_cityscapes(tmp_path, 3, 2, SIZE)
    make_toy_cityscapes(tmp_path, 2, 1, (64, 128), seed=4)
    assert len(list(tmp_path.rglob('*.png'))) == 3 * 3
    assert read(tmp_path, 'train', 'gtFine_labelTrainIds').shape == (2, 64, 128)
    assert json.loads((tmp_path / 'toy_cityscapes.json').read_text()) == {
        'train': 2, 'val': 1, 'size': [64, 128], 'seed': 4}


def test_other_data_is_left_alone(tmp_path):
    real = tmp_path / 'leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png'
    real.parent.mkdir(parents=True)
    real.write_bytes(b'real')
    with pytest.raises(FileExistsError, match=r'toy_cityscapes\.json'):
        make_toy_cityscapes(tmp_path, 1, 1, SIZE)
    assert content(tmp_path) == {str(real.relative_to(tmp_path)): b'real'}


@pytest.mark.parametrize('wrong', [
    dict(num_train=0), dict(num_val=-1), dict(size=(32, 256)), dict(seed=-1)])
def test_bad_argument_writes_nothing(tmp_path, wrong):
    with pytest.raises(ValueError, match='got'):
        make_toy_cityscapes(tmp_path / 'new', **wrong)
    assert not (tmp_path / 'new').exists()


def test_command_line(tmp_path, monkeypatch, capsys):
    tool = Path(__file__).parents[2] / 'tools/make_toy_cityscapes.py'
    arguments = [tool, tmp_path / 'toy', '--train', 1, '--val', 1, '--size', '128x64', '--seed', 3]
    monkeypatch.setattr(sys, 'argv', [str(argument) for argument in arguments])
    runpy.run_path(str(tool), run_name='__main__')
    assert capsys.readouterr().out == (
        f'{tmp_path / "toy"}: 1 training and 1 validation images of 128x64\n')
    expected = make_toy_cityscapes(tmp_path / 'expected', 1, 1, (64, 128), 3)
    assert content(tmp_path / 'toy') == content(expected)
