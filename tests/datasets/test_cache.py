"""A decoded cache gives the same samples, or an error that names what is wrong with it."""
import json
import multiprocessing
import os
import pickle
import runpy
import shutil
import signal
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mmseg_bisenetv2  # noqa: F401
from mmseg_bisenetv2.datasets import cache, validated
from mmseg_bisenetv2.datasets.cache import CacheError, build_cache, find_cached, read_index

from mmseg.registry import DATASETS

OURS = 'mmseg_bisenetv2.'
TOOL = Path(__file__).parents[2] / 'tools' / 'cache_dataset.py'
SIZES = dict(a=(20, 30), b=(16, 16), c=(9, 40))
LOAD = [dict(type=OURS + 'LoadImageFromFile'), dict(type=OURS + 'LoadAnnotations')]
TRAIN = [
    *LOAD, dict(type=OURS + 'RandomResizeCrop', scale=(40, 40), crop_size=(12, 12)),
    dict(type=OURS + 'PhotoMetricDistortion'), dict(type=OURS + 'PackSegInputs')]


@pytest.fixture
def root(tmp_path):
    """Three images of different sizes and their label maps."""
    rng = np.random.default_rng(0)
    for folder, channels, suffix in (('img', (3,), '.jpg'), ('ann', (), '.png')):
        (tmp_path / folder / 'city').mkdir(parents=True)
        for name, size in SIZES.items():
            pixels = rng.integers(0, 9, (*size, *channels), np.uint8)
            cv2.imwrite(str(tmp_path / folder / 'city' / f'{name}{suffix}'), pixels)
    return tmp_path


def files(root):
    """The images, and the label maps."""
    return [sorted(str(path) for path in (root / folder).rglob('*.*')) for folder in ('img', 'ann')]


def all_files(root):
    return [path for paths in files(root) for path in paths]


def build(root, pipeline=TRAIN, **kwargs):
    return DATASETS.build(dict(
        type=OURS + 'BaseSegDataset', data_root=str(root), pipeline=pipeline,
        data_prefix=dict(img_path='img', seg_map_path='ann'),
        metainfo=dict(classes=list('abcdefghi')), **kwargs))


def load(root, idx, **kwargs):
    """Before anything is done with it."""
    dataset = build(root, LOAD, **kwargs)
    return dataset.pipeline(dataset.get_data_info(idx))


def samples(dataset):
    for i in range(len(dataset)):
        np.random.seed(i)
        sample = dataset[i]
        yield sample['inputs'], sample['data_samples'].gt_sem_seg.data, sample['data_samples']


def test_samples_are_those_of_the_files(root, monkeypatch):
    expected = list(samples(build(root)))
    assert build_cache(root, *files(root), num_workers=3) == (6, 0)
    for folder in ('img', 'ann'):  # nothing but the cache is read
        for path in (root / folder).rglob('*.*'):
            status = path.stat()
            path.write_bytes(bytes(status.st_size))
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    log = []
    monkeypatch.setattr(validated, 'print_log', lambda line, **kwargs: log.append(line))
    dataset = build(root)
    assert log[-1] == f'BaseSegDataset: reads the decoded cache of {root}'
    for copy in (dataset, pickle.loads(pickle.dumps(dataset))):  # as a spawned worker gets it
        for ours, theirs in zip(samples(copy), expected, strict=True):
            assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
            assert ours[2].metainfo == theirs[2].metainfo


def test_pixels_are_mapped_and_what_is_written_to_them_stays_private(root):
    build_cache(root, *files(root))
    results = load(root, 0)
    for key in ('img', 'gt_seg_map'):
        assert isinstance(results[key], np.memmap) and results[key].shape[:2] == SIZES['a']
        kept = results[key].copy()
        results[key][:] = 77
        np.testing.assert_array_equal(load(root, 0)[key], kept)


def test_renumbered_classes_come_from_the_cache_as_from_the_files(root):
    kwargs = dict(reduce_zero_label=True)
    expected = [load(root, i, **kwargs)['gt_seg_map'] for i in range(3)]
    build_cache(root, *files(root))
    for i in range(3):
        np.testing.assert_array_equal(load(root, i, **kwargs)['gt_seg_map'], expected[i])


def test_cache_of_another_split_is_no_cache(root):
    build_cache(root, [], [])
    assert find_cached(root, all_files(root)) == {}
    assert not build(root).cached


def test_pipeline_without_our_loaders_does_not_look_for_it(root):
    build_cache(root, *files(root))
    (root / 'cache_mmseg_bisenetv2/index.jsonl').write_text('garbage')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    assert not build(root, pipeline).cached


def assert_refused_until_mended(root, pattern, decoded):
    with pytest.raises(CacheError, match=pattern + r'.*python tools/cache_dataset\.py'):
        build(root)
    assert build_cache(root, *files(root))[0] == decoded
    paths = all_files(root)
    found = find_cached(root, paths)
    for path in paths:
        pixels = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(np.fromfile(found[path][0], np.uint8), pixels.ravel())
        assert found[path][1] == pixels.shape


def test_changed_file_is_noticed(root):
    build_cache(root, *files(root))
    path = root / 'ann/city/b.png'
    cv2.imwrite(str(path), np.full((18, 16), 3, np.uint8))
    assert_refused_until_mended(root, r'ann/city/b\.png: changed', 1)


def test_changed_file_of_the_same_size_is_noticed(root):
    build_cache(root, *files(root))
    path = root / 'img/city/b.jpg'
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(0, 12345))
    assert_refused_until_mended(root, r'img/city/b\.jpg: changed', 1)


def test_copied_files_of_another_time_are_the_same(root):
    build_cache(root, *files(root))
    for path in all_files(root):
        os.utime(path, ns=(0, 12345))
    assert len(build(root).cached) == 6
    assert build_cache(root, *files(root)) == (0, 6)


def test_new_file_is_noticed(root):
    build_cache(root, *files(root))
    for folder, suffix in (('img', '.jpg'), ('ann', '.png')):
        shutil.copy(root / folder / f'city/b{suffix}', root / folder / f'city/d{suffix}')
    assert_refused_until_mended(root, r'img/city/d\.jpg: is not in the decoded cache', 2)


def test_removed_file_does_no_harm(root):
    build_cache(root, *files(root))
    for path in ('img/city/b.jpg', 'ann/city/b.png'):
        (root / path).unlink()
    assert len(build(root).cached) == 4


@pytest.mark.parametrize('damage', ['cut', 'gone'])
def test_damaged_pixels_are_noticed(root, damage):
    build_cache(root, *files(root))
    path = root / 'cache_mmseg_bisenetv2/ann/city/c.png.raw'
    path.unlink() if damage == 'gone' else os.truncate(path, 100)
    assert_refused_until_mended(root, r'city/c\.png\.raw: expected 360 bytes', 1)


def test_pixels_that_vanish_while_training_are_named(root):
    build_cache(root, *files(root))
    dataset = build(root)
    shutil.rmtree(root / 'cache_mmseg_bisenetv2/img')
    with pytest.raises(ValueError, match=r'city/a\.jpg\.raw: .*cannot be read'):
        dataset[0]


def test_changed_pixels_are_found_by_their_hash(root):
    build_cache(root, *files(root))
    path = root / 'cache_mmseg_bisenetv2/ann/city/c.png.raw'
    path.write_bytes(bytes(9 * 40))
    assert build_cache(root, *files(root)) == (1, 5)
    np.testing.assert_array_equal(
        np.fromfile(path, np.uint8),
        cv2.imread(str(root / 'ann/city/c.png'), cv2.IMREAD_UNCHANGED).ravel())


def test_other_version_is_refused(root):
    build_cache(root, *files(root))
    index = root / 'cache_mmseg_bisenetv2/index.jsonl'
    index.write_text(index.read_text().replace('{"format": 1}', '{"format": 2}'))
    assert_refused_until_mended(root, r'index\.jsonl: a decoded cache of format 2, expected 1', 6)


@pytest.mark.parametrize('line', [
    'x', '3', '[]', 'null', '{}', '{"path": 1}', '[' * 100000, '\udcff', '1' * 5000,
    json.dumps(dict(path='a', size=1, mtime_ns=1, sha256='', shape=[], pixels='')),
    json.dumps(dict(path='a', size=1, mtime_ns=1, sha256='', shape=[2, -3], pixels='')),
    json.dumps(dict(path='a', size=1, mtime_ns=1, sha256='', shape=[2, 3, 4], pixels='')),
    json.dumps(dict(path='a', size=True, mtime_ns=1, sha256='', shape=[2, 3], pixels=''))])
def test_broken_line_is_refused(root, line):
    build_cache(root, *files(root))
    with open(root / 'cache_mmseg_bisenetv2/index.jsonl', 'ab') as file:
        file.write(line.encode(errors='surrogateescape') + b'\n')
    assert_refused_until_mended(root, r'index\.jsonl: the index of a decoded cache is broken', 6)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """The folder and the content of the index of a finished cache."""
    root = tmp_path_factory.mktemp('finished')
    for i in range(3):
        cv2.imwrite(str(root / f'{i}.png'), np.full((4, 5), i, np.uint8))
    build_cache(root, [], [str(root / f'{i}.png') for i in range(3)])
    return root, (root / 'cache_mmseg_bisenetv2/index.jsonl').read_bytes()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_index_is_refused_or_gives_what_is_there(finished, data):
    root, content = finished
    paths = [str(root / f'{i}.png') for i in range(3)]
    content = bytearray(content)
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(content), data.draw(st.integers(0, len(content)))]))
    (root / 'cache_mmseg_bisenetv2/index.jsonl').write_bytes(content[:cut])
    try:
        found = find_cached(root, paths)
    except CacheError as error:
        assert str(root) in str(error) and 'tools/cache_dataset.py' in str(error)
    else:
        for path, (pixels, shape) in found.items():
            assert np.fromfile(pixels, np.uint8).size == np.prod(shape) == 20 and path in paths


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=300))
def test_garbage_is_no_index(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp('garbage')
    (folder / 'index.jsonl').write_bytes(content)
    with pytest.raises(CacheError, match=str(folder)):
        read_index(folder)


def _build_and_die(root, monkeypatch):
    decode, count = cache.decode_image, iter(range(100))

    def dying(content, path):
        if next(count) == 2:
            while len(read_index(root / 'cache_mmseg_bisenetv2')) < 2:
                time.sleep(0.01)
            with open(root / 'cache_mmseg_bisenetv2/index.jsonl', 'a') as file:
                file.write('{"path": "img/ci')  # as if killed while writing
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(content, path)

    monkeypatch.setattr(cache, 'decode_image', dying)
    build_cache(root, *files(root))


def test_goes_on_where_it_was_killed(root, monkeypatch):
    process = multiprocessing.get_context('fork').Process(
        target=_build_and_die, args=(root, monkeypatch))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(read_index(root / 'cache_mmseg_bisenetv2')) == 2
    assert_refused_until_mended(root, r'ann/city/a\.png: is not in the decoded cache', 4)


def test_interrupted_by_the_user_it_stops_at_once_and_goes_on_later(root, monkeypatch):
    decode, decoded = cache.decode_image, []

    def interrupted(content, path):
        decoded.append(path)
        if len(decoded) == 2:
            raise KeyboardInterrupt
        return decode(content, path)

    with monkeypatch.context() as patch:
        patch.setattr(cache, 'decode_image', interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_cache(root, *files(root))
    assert len(decoded) < 4
    assert build_cache(root, *files(root))[0] == 5


def test_file_that_cannot_be_decoded_is_named(root):
    (root / 'img/city/b.jpg').write_bytes(b'no image')
    with pytest.raises(ValueError, match=r'img/city/b\.jpg: the image cannot be decoded'):
        build_cache(root, *files(root))


def test_file_outside_is_named(root):
    with pytest.raises(ValueError, match=r'a\.jpg: lies outside the data set'):
        build_cache(root / 'ann', files(root)[0], [])


def test_too_little_space_is_said_first(root, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(9, 9, 4863))
    with pytest.raises(OSError, match=r'0\.0 GB needed, 0\.0 GB free.*--out'):
        build_cache(root, *files(root))  # (20 * 30 + 16 * 16 + 9 * 40) * 4 = 4864
    assert not list((root / 'cache_mmseg_bisenetv2').iterdir())
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(9, 9, 4864))
    build_cache(root, *files(root))
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(9, 9, 0))
    build_cache(root, *files(root))  # nothing more is needed


def test_on_another_disk(root, tmp_path_factory):
    out = tmp_path_factory.mktemp('fast') / 'cache'
    for _ in range(2):
        build_cache(root, *files(root), out=out)
        assert len(build(root).cached) == 6 and (out / 'index.jsonl').exists()
    with pytest.raises(FileExistsError, match='Delete it first'):
        build_cache(root, *files(root), out=tmp_path_factory.mktemp('other'))


def test_tool(root, monkeypatch, capsys):
    config = root / 'config.py'
    config.write_text(f'''dataset = dict(
        type='mmseg_bisenetv2.BaseSegDataset', data_root={str(root)!r},
        data_prefix=dict(img_path='img', seg_map_path='ann'), pipeline=[],
        metainfo=dict(classes=['a']))
train_dataloader = val_dataloader = dict(dataset=dataset)
''')
    monkeypatch.setattr(sys, 'argv', [
        'cache_dataset.py', str(config), '--split', 'train', 'val', '--num-workers', '2'])
    runpy.run_path(str(TOOL), run_name='__main__')
    output = capsys.readouterr().out
    assert 'train: 6 files decoded, 0 were finished' in output
    assert 'val: 0 files decoded, 6 were finished' in output
    assert len(build(root).cached) == 6


def test_tool_names_a_config_that_is_missing(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['cache_dataset.py', 'nowhere.py'])
    with pytest.raises(SystemExit, match=r'nowhere\.py'):
        runpy.run_path(str(TOOL), run_name='__main__')


@pytest.mark.parametrize('wrap', [
    "dict(type='RepeatDataset', times=2, dataset=dataset)",
    "dict(type='ConcatDataset', datasets=[dataset, dataset])",
    "dict(type='MultiImageMixDataset', dataset=dict(type='RepeatDataset', times=3, "
    "dataset=dataset), pipeline=[])"])
def test_tool_decodes_the_data_sets_inside_of_wrappers(root, monkeypatch, capsys, wrap):
    config = root / 'config.py'
    config.write_text(f'''dataset = dict(
        type='mmseg_bisenetv2.BaseSegDataset', data_root={str(root)!r},
        data_prefix=dict(img_path='img', seg_map_path='ann'), pipeline=[],
        metainfo=dict(classes=['a']))
train_dataloader = dict(dataset={wrap})
''')
    monkeypatch.setattr(sys, 'argv', ['cache_dataset.py', str(config)])
    runpy.run_path(str(TOOL), run_name='__main__')
    output = capsys.readouterr().out
    assert output.count('train: ') == wrap.count('dataset,') + 1
    assert 'train: 6 files decoded' in output and len(build(root).cached) == 6
