"""Own data is looked at: at a few files when a run starts, at every file by the tool."""
import copy
import importlib.metadata
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

import mmseg_bisenetv2  # noqa: F401
from mmseg_bisenetv2.datasets import inspection, validated

from mmseg.registry import DATASETS

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools/check_dataset.py'
SIZE = (24, 32)
OURS = [dict(type=f'mmseg_bisenetv2.{name}')
        for name in ('LoadImageFromFile', 'LoadAnnotations', 'PackSegInputs')]
MMSEG_PIPELINE = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]


def write_pair(root, split, name, seed, labels=None):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, SIZE).astype(np.uint8) if labels is None else labels
    for folder in ('img_dir', 'ann_dir'):
        (root / folder / split).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(root / 'ann_dir' / split / f'{name}.png'), labels)
    cv2.imwrite(str(root / 'img_dir' / split / f'{name}.jpg'),
                rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8))


@pytest.fixture
def root(tmp_path):
    """Own data in the layout of the custom config: four pictures to train on, two to measure on."""
    for split, names in (('train', 'abcd'), ('val', 'yz')):
        for name in names:
            write_pair(tmp_path / 'data', split, name, ord(name))
    return tmp_path / 'data'


@pytest.fixture(scope='module')
def custom_config():
    return Config.fromfile(ROOT / 'configs/bisenetv2_fcn_custom.py')


@pytest.fixture
def config(root, custom_config):
    config = copy.deepcopy(custom_config)
    for split in ('train', 'val', 'test'):
        dataset = config[f'{split}_dataloader'].dataset
        # Serialising collects garbage, which takes half a second with everything imported.
        dataset.update(data_root=str(root), serialize_data=False)
    config.train_dataloader.dataset.pipeline[2].update(scale=SIZE[::-1], crop_size=SIZE)
    return config


@pytest.fixture
def run(root, config, monkeypatch, capsys):
    """Runs the tool on the config; returns its exit code and what it printed."""
    def run_tool(*options):
        config.dump(root.parent / 'mine.py')
        monkeypatch.chdir(root.parent)
        monkeypatch.setenv('COLUMNS', '100')
        monkeypatch.setattr(sys, 'argv', ['check_dataset.py', 'mine.py', *options])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(TOOL), run_name='__main__')
        return end.value.code, capsys.readouterr().out
    return run_tool


@pytest.fixture
def log(monkeypatch):
    lines = []
    monkeypatch.setattr(validated, 'print_log', lambda line, **kwargs: lines.append(line))
    return lines


# When a run starts.


@pytest.mark.parametrize('there, remedy', [
    ('ann_dir/train/c_mask.png', r"There is c_mask\.png: seg_map_suffix='_mask\.png'\?"),
    ('ann_dir/train/c.PNG', r"There is c\.PNG: seg_map_suffix='\.PNG'\?"),
    ('ann_dir/train/c.json', r'There is .*c\.json: LabelMe .*python tools/convert_labels\.py'),
    ('img_dir/train/c.json', r'There is .*c\.json: LabelMe .*python tools/convert_labels\.py'),
    ('ann_dir/train/instances.json', r'There is .*instances\.json: .* COCO\? python tools/conv'),
    ('ann_dir/train/cat_mask.png', r'train/c\.png$'),
    ('ann_dir/train/c.txt', r'train/c\.png$')])
def test_missing_label_map_is_named_with_the_remedy(root, config, there, remedy):
    (root / 'ann_dir/train/c.png').unlink()
    (root / there).write_bytes(b'{}')
    with pytest.raises(FileNotFoundError, match=(
            r'1 of 4 pictures have no label map: .*img_dir/train/c\.jpg needs .*' + remedy)):
        DATASETS.build(config.train_dataloader.dataset)


def test_published_data_set_says_how_to_make_its_label_maps(tmp_path):
    for folder in ('leftImg8bit', 'gtFine'):
        (tmp_path / folder).mkdir()
    (tmp_path / 'leftImg8bit/a_leftImg8bit.png').write_bytes(b'')
    (tmp_path / 'gtFine/a_gtFine_labelIds.png').write_bytes(b'')
    with pytest.raises(FileNotFoundError, match=r'1 of 1 pictures .* mim run mmseg cityscapes'):
        DATASETS.build(dict(
            type='mmseg_bisenetv2.CityscapesDataset', data_root=str(tmp_path),
            data_prefix=dict(img_path='leftImg8bit', seg_map_path='gtFine'), pipeline=OURS))


def test_label_maps_that_nobody_reads_may_be_missing(root, config):
    (root / 'ann_dir/val/y.png').unlink()
    config.val_dataloader.dataset.pipeline = config.val_dataloader.dataset.pipeline[:1]
    assert len(DATASETS.build(config.val_dataloader.dataset)) == 2


def test_folder_of_labelme_files_is_recognised(root, config):
    shutil.rmtree(root / 'ann_dir')
    (root / 'img_dir/train/a.json').write_text('{}')
    with pytest.raises(FileNotFoundError, match=r'no folder .*ann_dir/train.*python tools/convert'):
        DATASETS.build(config.train_dataloader.dataset)


def test_files_of_other_suffixes_are_said_in_one_line(root, config, log):
    for name in ('e.png', 'f.png', 'README'):
        (root / 'img_dir/train' / name).write_bytes(b'')
    DATASETS.build(config.train_dataloader.dataset)
    line, = [line for line in log if 'left out' in line]
    assert line == ('BaseSegDataset: files with other suffixes than .jpg are left out: '
                    '2 .png, 1 without')


def test_pictures_and_label_maps_in_one_folder_belong_together(root, config, log):
    for path in (root / 'ann_dir/train').iterdir():
        path.rename(root / 'img_dir/train' / path.name)
    dataset = config.train_dataloader.dataset
    dataset.data_prefix.seg_map_path = dataset.data_prefix.img_path
    assert len(DATASETS.build(dataset)) == 4
    assert not [line for line in log if 'left out' in line]


@pytest.mark.parametrize('file', ['img_dir/train/b.jpg', 'ann_dir/train/b.png'])
@pytest.mark.parametrize('ours', [True, False])
def test_broken_file_ends_the_run_before_it_begins(root, config, file, ours):
    (root / file).write_bytes((root / file).read_bytes()[:50])
    dataset = config.train_dataloader.dataset
    if not ours:
        dataset.pipeline = MMSEG_PIPELINE
    with pytest.raises(Exception) as error:
        DATASETS.build(dataset)
    assert str(root / file) in '\n'.join([str(error.value), *error.value.__notes__])


def test_a_look_at_the_files_draws_no_random_numbers(config):
    dataset = DATASETS.build(dict(config.train_dataloader.dataset, lazy_init=True))
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    dataset.full_init()
    assert np.array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


# The tool.


def test_numbers_are_those_of_the_files(root, config, run):
    code, out = run('--json')
    found = json.loads(out)
    assert code == 0
    assert not any(split['errors'] + split['warnings'] for split in found['splits'].values())
    for split, number in (('train', 4), ('val', 2)):
        result = found['splits'][split]
        pictures = np.stack([cv2.imread(str(path))[..., ::-1]
                             for path in (root / 'img_dir' / split).iterdir()])
        labels = np.stack([cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
                           for path in (root / 'ann_dir' / split).iterdir()])
        assert result['pictures'] == number and result['sizes'] == {'32x24': number}
        assert result['ids'] == {str(i): dict(pixels=int((labels == i).sum()), label_maps=number)
                                 for i in range(2)}
        assert np.allclose(result['mean_rgb'], pictures.mean((0, 1, 2)), atol=0.01)
        assert np.allclose(result['std_rgb'], pictures.std((0, 1, 2)), atol=0.01)
    assert found['installation']['versions']['torch'] == importlib.metadata.version('torch')
    assert cv2.imread(found['picture']).std() > 20
    assert found['picture'] == 'work_dirs/mine/dataset.png'


def test_table_for_people(root, run):
    code, out = run('--picture', 'look.png')
    assert code == 0 and (root.parent / 'look.png').exists()
    assert 'background' in out and 'drivable' in out and 'train: 4 pictures of 32x24 (4)' in out
    assert 'A training can start: mim train mmseg mine.py' in out
    assert max(map(len, out[:out.index('train: 4')].splitlines())) <= 100


def break_id(root, config):
    for name, ids in (('c', 3), ('d', 200)):
        write_pair(root, 'train', name, 0, np.full(SIZE, ids, np.uint8))


def break_size(root, config):
    for name in 'ab':
        write_pair(root, 'train', name, ord(name), np.zeros((24, 30), np.uint8))


def break_channels(root, config):
    write_pair(root, 'val', 'z', 0, np.zeros((*SIZE, 3), np.uint8))


def break_picture(root, config):
    (root / 'img_dir/train/d.jpg').write_bytes(b'\xff\xd8nothing')


def break_pairs(root, config):
    (root / 'ann_dir/val/z.png').unlink()


def break_folder(root, config):
    config.val_dataloader.dataset.data_prefix.img_path = 'img_dir/validation'


def break_palette(root, config):
    config.train_dataloader.dataset.metainfo.palette = [[0, 0, 0]] * 3


def break_order(root, config):
    (root / 'classes.txt').write_text('drivable\nbackground\n')


def break_heads(root, config):
    config.model.auxiliary_head[1].num_classes = 1


@pytest.mark.parametrize('damage, expected', [
    (break_id, [
        'train: error: 2 classes, but there are ids beyond them: 3 (1 of 4 label maps, such as '
        '{root}/ann_dir/train/c.png), 200 (1 of 4', 'Class ids must run from 0 to']),
    (break_size, ['train: error: {root}/ann_dir/train/a.png: a map of (24, 30) for an image of',
                  '(1 more like it)']),
    (break_channels, ['val: error: {root}/ann_dir/val/z.png: ', 'several channels']),
    (break_picture, ['train: error: {root}/img_dir/train/d.jpg: the image cannot be decoded']),
    (break_pairs, ['val: error: 1 of 2 pictures have no label map']),
    (break_folder, ['val: error: BaseSegDataset: no folder {root}/img_dir/validation']),
    (break_palette, ['train: error: ', 'palette does not match classes']),
    (break_order, [
        "train: error: the config has the classes ['background', 'drivable'], but the label maps "
        "have ['drivable', 'background'] in the order of their ids, says {root}/classes.txt. Write",
        'val: error: the config has the classes']),
    (break_heads, ['train: error: 2 classes, but a head has num_classes=1'])])
def test_error_where_a_training_would_fail(root, config, damage, expected):
    damage(root, config)
    splits = inspection.inspect_config(config, ['train', 'val'], 2)
    found = '\n'.join(f'{name}: error: {text}' for name, split in splits.items()
                      for text in split.errors)
    for text in expected:
        assert text.format(root=root) in found


def test_exit_code_is_1_with_errors_and_0_with_warnings(root, config, run):
    hide_class(root, config)
    code, out = run()
    assert code == 0 and 'val: warning: no pixel of' in out and 'A training can start' in out
    for damage in (break_id, break_folder):  # Nothing of val is left to be drawn.
        damage(root, config)
    code, out = run()
    assert code == 1 and 'A training would fail: 2 errors' in out and 'dataset.png' in out
    assert 'train: error: 2 classes, but there are ids beyond' in out and 'no class' in out


def test_no_picture_is_named_if_nothing_could_be_loaded(root, config, run):
    break_folder(root, config)
    code, out = run('--split', 'val')
    assert code == 1 and out.endswith('A training would fail: 1 error\n')
    assert 'dataset.png' not in out and not list(root.parent.rglob('dataset.png'))
    assert json.loads(run('--split', 'val', '--json')[1])['picture'] is None


@pytest.mark.parametrize('content, message', [
    (None, 'cannot be read: FileNotFoundError: '), ('a = (', 'cannot be read: SyntaxError: '),
    ('a = 1 / 0', 'cannot be read: ZeroDivisionError: '),
    ('a = 1', 'expected a model, and a data loader of train, val')])
def test_config_that_cannot_be_read_is_one_line(tmp_path, monkeypatch, content, message):
    if content:
        (tmp_path / 'mine.py').write_text(content + '\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['check_dataset.py', 'mine.py'])
    with pytest.raises(SystemExit, match=f'^mine.py:? {message}') as end:
        runpy.run_path(str(TOOL), run_name='__main__')
    assert '\n' not in end.value.code  # Python prints a text and exits with 1.


def hide_class(root, config):
    for name in 'yz':
        write_pair(root, 'val', name, ord(name), np.ones(SIZE, np.uint8))


def hide_class_of_train(root, config):
    for name in 'abcd':
        write_pair(root, 'train', name, ord(name), np.full(SIZE, 1, np.uint8))


def copy_picture(root, config):
    shutil.copy(root / 'img_dir/train/b.jpg', root / 'img_dir/val/y.jpg')
    shutil.copy(root / 'img_dir/train/b.jpg', root / 'img_dir/train/c.jpg')


def save_masks(root, config):
    for name in 'yz':
        mask = np.random.default_rng(0).integers(0, 2, SIZE).astype(np.uint8) * 255
        write_pair(root, 'val', name, ord(name), mask)


def add_pictures(root, config):
    (root / 'img_dir/val/x.JPG').write_bytes(b'')


@pytest.mark.parametrize('change, expected', [
    (hide_class, ['val: warning: no pixel of 1 of 2 classes: background. mIoU']),
    (hide_class_of_train, ['train: warning: no pixel of 1 of 2 classes: background. The network']),
    (copy_picture, [
        'train: warning: 1 of 4 pictures are copies of one in train, such as '
        '{root}/img_dir/train/c.jpg of {root}/img_dir/train/b.jpg',
        'val: warning: 1 of 2 pictures are copies of one in train', 'The score counts what was']),
    (save_masks, ['val: warning: the label maps hold only 0 and 255', 'drivable']),
    (add_pictures, ['val: warning: files with other suffixes than .jpg are left out: 1 .JPG'])])
def test_warning_where_a_result_would_mislead(root, config, change, expected):
    change(root, config)
    splits = inspection.inspect_config(config, ['train', 'val'], 2)
    assert not any(split.errors for split in splits.values())
    found = '\n'.join(f'{name}: warning: {text}' for name, split in splits.items()
                      for text in split.warnings)
    for text in expected:
        assert text.format(root=root) in found


@pytest.mark.parametrize('scale, crop_size, test_scale, expected', [
    ((64, 48), (40, 64), None, []),  # Pictures of 32x24, twice as large, times 0.5 to 2.
    ((32, 24), (25, 32), None, [
        'crop_size=(25, 32), (height, width), is larger than 4 of 4 pictures, before they are '
        'scaled at random: those of 32x24 are 32x24 when they are cropped']),
    ((64, 64), (32, 65), None, ['those of 32x24 are 64x48 when they are cropped']),
    ((160, 120), (24, 32), None, [
        'scale=(160, 120) does not fit: training shows pictures of 32x24 at 2.50 to 10.00 times '
        'their size, and they are tested at 1.00 times. Expected scale=(32, 24), or the same']),
    ((160, 120), (24, 32), (160, 120), []), ((32, 24), (24, 32), (160, 120), ['tested at 5.00'])])
@pytest.mark.parametrize('ours', [True, False])
def test_scale_and_crops_that_do_not_fit_the_pictures(
        config, ours, scale, crop_size, test_scale, expected):
    pipeline = config.train_dataloader.dataset.pipeline
    if ours:
        pipeline[2].update(scale=scale, crop_size=crop_size)
    else:
        config.train_dataloader.dataset.update(type='BaseSegDataset', pipeline=[
            *MMSEG_PIPELINE[:2],
            dict(type='RandomResize', scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True),
            dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75), MMSEG_PIPELINE[2]])
    if test_scale:
        config.val_dataloader.dataset.pipeline.insert(
            1, dict(type='Resize', scale=test_scale, keep_ratio=True))
    splits = inspection.inspect_config(config, ['train', 'val'], 2)
    assert len(splits['train'].warnings) == len(expected) and not splits['val'].warnings
    for text, found in zip(expected, splits['train'].warnings, strict=True):
        assert text in found


def test_sizes_that_follow_from_something_else(config):
    pipeline = config.train_dataloader.dataset.pipeline
    pipeline[2] = dict(type='RandomResize', scale=(999, 999), ratio_range=(1, 2))  # no ratio kept
    splits = inspection.inspect_config(config, ['train', 'val'], 2)
    assert not splits['train'].warnings
    splits = inspection.inspect_config(config, ['train'], 2)
    assert not splits['train'].warnings


def test_data_sets_in_wrappers_and_those_of_mmsegmentation(config):
    inner = dict(config.train_dataloader.dataset, type='BaseSegDataset', pipeline=MMSEG_PIPELINE)
    val = dict(config.val_dataloader.dataset)
    config.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=dict(
        type='ConcatDataset', datasets=[inner, val]))
    splits = inspection.inspect_config(config, ['train', 'val'], 2)
    assert len(splits['train'].pairs) == 6 and not splits['train'].errors
    assert '2 of 2 pictures are copies of one in train' in '\n'.join(splits['val'].warnings)


def test_ids_are_those_that_the_network_is_given(root, config):
    config.val_dataloader.dataset.reduce_zero_label = True  # 0, 1 become 255, 0.
    split = inspection.inspect_config(config, ['val'], 2)['val']
    assert set(np.flatnonzero(split.pixels)) == {0, 255}
    assert not any('only 0 and 255' in text for text in split.warnings)


# The installation.


@pytest.mark.parametrize('installed, expected', [
    ({'opencv-python': '4.10', 'opencv-python-headless': '4.9', 'mmcv': '2.1.0'},
     r'opencv-python and opencv-python-headless are both installed.*pip uninstall -y opencv-python '
     r'opencv-python-headless && pip install'),
    ({'mmcv': '2.1.0', 'mmcv-lite': '2.1.0'}, r'mmcv and mmcv-lite are both installed'),
    ({'mmengine': '0.10.7', 'onedl-mmengine': '0.10.12'}, r'mmengine and onedl-mmengine are both'),
    ({'mmcv-lite': '2.1.0', 'opencv-python': '4.10', 'mmengine': '0.10.7'}, None)])
def test_module_that_was_installed_twice(monkeypatch, installed, expected):
    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, 'version', version)
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    versions, warnings = inspection.describe_installation()
    assert versions == installed
    if expected is None:
        assert not warnings
    else:
        assert len(warnings) == 1
        assert re.search(expected, warnings[0])


@pytest.mark.parametrize('cuda, available, expected', [
    (None, False, 'the build for CPUs'), ('12.8', False, 'driver'), ('12.8', True, None)])
def test_graphics_card_that_pytorch_does_not_use(monkeypatch, cuda, available, expected):
    monkeypatch.setattr(shutil, 'which', lambda name: f'/usr/bin/{name}')
    monkeypatch.setattr(torch.version, 'cuda', cuda)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: available)
    warnings = [text for text in inspection.describe_installation()[1] if 'nvidia-smi' in text]
    assert (len(warnings) == 1 and expected in warnings[0]) if expected else not warnings
