"""What is wrong with a data set is said with the file and the remedy, before it does harm."""
import logging
import re

import cv2
import mmengine.fileio as fileio
import numpy as np
import pytest
from mmengine.fileio.backends import BaseStorageBackend, register_backend
from mmengine.logging import MMLogger

from mmseg_bisenetv2.datasets import validated

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


OURS = [dict(type=f'mmseg_bisenetv2.{transform["type"]}') for transform in PIPELINE]


@pytest.mark.parametrize('pipeline', [PIPELINE, OURS])
@pytest.mark.parametrize('label_map, expected', [
    ({7: 0, 26: 1}, [[255, 255, 0], [1, 255, 255]]),
    ({0: 1, 1: 0, 7: 255}, [[1, 0, 255], [255, 255, 255]]),
    ({0: 0, 255: 1}, [[0, 255, 255], [255, 255, 1]]),
    ({0: 0, 1: 1, 7: 1}, [[0, 1, 1], [255, 255, 255]])])
def test_label_map_gives_ids_their_class_and_ignores_others(tmp_path, pipeline, label_map,
                                                             expected):
    write(tmp_path, np.array([[0, 1, 7], [26, 200, 255]], np.uint8))
    dataset = build(tmp_path, pipeline=pipeline, label_map=label_map)
    assert dataset[0]['data_samples'].gt_sem_seg.data[0].tolist() == expected
    assert dataset.metainfo['label_map'] == dataset.label_map


@pytest.mark.parametrize('label_map, kwargs, message', [
    ({7: 0}, {}, 'no id becomes rest'),
    ({7: 0, 8: 2}, {}, '8 becomes 2.*a class of 0 to 1 or 255'),
    ({7: 0, 300: 1}, {}, '300 becomes 1'),
    ({'7': 0, 8: 1}, {}, "'7' becomes 0"),
    ({7: 0, 8: 1}, dict(reduce_zero_label=True), 'goes neither with reduce_zero_label=True'),
    ({7: 0, 8: 1}, dict(ignore_index=-100), 'an ignore_index beyond 0 to 255.*-100')])
def test_label_map_that_leads_nowhere_is_refused(tmp_path, label_map, kwargs, message):
    write(tmp_path, np.zeros((4, 6), np.uint8))
    with pytest.raises(ValueError, match=message):
        build(tmp_path, label_map=label_map, **kwargs)


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


OURS = [dict(type=f'mmseg_bisenetv2.{t["type"]}') for t in PIPELINE]


@pytest.fixture
def warnings_logged(monkeypatch):
    """The warnings, a list that grows."""
    lines = []
    monkeypatch.setattr(validated, 'print_log', lambda line, logger=None, level=logging.INFO: (
        lines.append(line) if level == logging.WARNING else None))
    return lines


def test_pipeline_that_does_not_pack(tmp_path):
    """As RandomMosaic wants it; the labels are checked nevertheless."""
    for name in 'ab':
        write(tmp_path, np.array([[0, 1], [255, 0]] * 4, np.uint8), name=name)
    inner = dict(type='mmseg_bisenetv2.BaseSegDataset', data_root=str(tmp_path),
                 data_prefix=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'),
                 metainfo=dict(classes=('road', 'rest')), pipeline=OURS[:2])
    mosaic = DATASETS.build(dict(type='MultiImageMixDataset', dataset=inner, pipeline=[
        dict(type='RandomMosaic', prob=1, img_scale=(8, 8)), OURS[2]]))
    sample = mosaic[0]
    assert sample['inputs'].shape == (3, 16, 16)
    assert set(sample['data_samples'].gt_sem_seg.data.unique().tolist()) <= {0, 1, 255}
    write(tmp_path, np.full((8, 2), 9, np.uint8), name='b')
    with pytest.raises(ValueError, match=r'b\.png: class ids \[9\]'):
        DATASETS.build(inner)[1]


@pytest.mark.parametrize('pipeline', [OURS[:1], OURS[:2], [*OURS[:1], OURS[2]]])
def test_pipelines_without_labels_or_without_a_packed_sample(tmp_path, pipeline):
    write(tmp_path, np.zeros((4, 6), np.uint8))
    assert build(tmp_path, pipeline=pipeline)[0]


def test_data_set_without_classes(tmp_path):
    """MMSegmentation takes it, for a training whose config names the number of classes."""
    write(tmp_path, np.array([[0, 77]] * 2, np.uint8))
    sample = build(tmp_path, metainfo={})[0]
    assert sample['data_samples'].gt_sem_seg.data.max() == 77


def test_classes_from_a_file(tmp_path):
    write(tmp_path, np.array([[0, 2]] * 2, np.uint8))
    (tmp_path / 'classes.txt').write_text('road\nparked car\nrest\n')
    dataset = build(tmp_path, metainfo=dict(classes=str(tmp_path / 'classes.txt')))
    assert dataset.metainfo['classes'] == ['road', 'parked car', 'rest']
    with pytest.raises(ValueError, match=r"classes is 'nothing\.txt', and there is no such file"):
        build(tmp_path, metainfo=dict(classes='nothing.txt'))


@pytest.mark.parametrize('written, kwargs, refused', [
    ('road\nrest\n', {}, False), ('rest\nroad\n', {}, True), ('road\nrest\ncar\n', {}, True),
    ('road\n', {}, True), ('road\nothers\n', {}, True), ('\n', {}, True),
    ('void\nroad\nrest\n', dict(reduce_zero_label=True), False),
    ('void\nrest\nroad\n', dict(reduce_zero_label=True), True),
    ('void\nrest\nroad\n', dict(label_map={1: 1, 2: 0}), False)])
def test_classes_that_are_not_those_beside_the_label_maps(tmp_path, written, kwargs, refused):
    """In another order each class would be trained and scored under the name of another."""
    write(tmp_path, np.array([[0, 1]] * 2, np.uint8))
    (tmp_path / 'classes.txt').write_text(written)
    if refused:
        names = written.rstrip().splitlines()[bool(kwargs):]
        with pytest.raises(ValueError, match=re.escape(
                f"BaseSegDataset: the config has the classes ['road', 'rest'], but the label maps "
                f'have {names} in the order of their ids, says {tmp_path}/classes.txt. Write')):
            build(tmp_path, **kwargs)
    else:
        assert len(build(tmp_path, **kwargs)) == 1
    assert len(build(tmp_path, metainfo={})) == 1  # Nothing to compare with.


def test_classes_file_that_is_no_text_is_named(tmp_path):
    write(tmp_path, np.array([[0, 1]] * 2, np.uint8))
    (tmp_path / 'classes.txt').write_bytes(b'\xff\xfe')
    with pytest.raises(ValueError, match=r'classes\.txt: expected names of classes, as text'):
        build(tmp_path)


@register_backend('mapped', prefixes='far', force=True)
class MappedBackend(BaseStorageBackend):
    """Storage that knows its files under another path, as Petrel with ``path_mapping`` does."""

    def __init__(self, path_mapping=None):
        self.path_mapping = path_mapping or {}
        self.local = fileio.LocalBackend()

    def _map(self, path):
        for old, new in self.path_mapping.items():
            path = str(path).replace(old, new)
        return path

    def get(self, path):
        return self.local.get(self._map(path))

    def get_text(self, path, encoding='utf-8'):
        return self.local.get_text(self._map(path), encoding)

    def list_dir_or_file(self, path, *args, **kwargs):
        return self.local.list_dir_or_file(self._map(path), *args, **kwargs)

    def join_path(self, *paths):
        return self.local.join_path(*paths)


@pytest.mark.parametrize('root', ['data/nowhere', 'far://away'])
def test_storage_that_maps_paths(tmp_path, root):
    write(tmp_path, np.array([[0, 1]] * 2, np.uint8))
    backend = dict(backend='mapped', path_mapping={root: str(tmp_path)})
    pipeline = [dict(t, backend_args=backend) for t in OURS[:2]] + OURS[2:]
    dataset = build(root, pipeline=pipeline, backend_args=backend)
    assert dataset[0]['data_samples'].gt_sem_seg.data.tolist() == [[[0, 1], [0, 1]]]
    with pytest.raises(FileNotFoundError, match=r'no image \*\.bmp below'):
        build(root, pipeline=pipeline, backend_args=backend, img_suffix='.bmp')


BINARY = r'label maps hold only 0 and 255.*write 1 in its place: .*\(2 looked at\)\. .*a\.png'


@pytest.mark.parametrize('labels', [[0, 255], [255, 255]])
def test_masks_of_0_and_255_are_said_once_when_the_run_starts(tmp_path, warnings_logged, labels):
    for name in 'ab':
        write(tmp_path, np.array([labels] * 2, np.uint8), name=name)
    dataset = build(tmp_path)
    assert dataset[0] and dataset[1]
    dataset.full_init()
    assert len(warnings_logged) == 1 and re.search(BINARY, warnings_logged[0])


@pytest.mark.parametrize('labels, kwargs', [
    ([0, 1], {}), ([0, 0], {}), ([1, 255], {}), ([0, 255], dict(reduce_zero_label=True)),
    ([0, 255], dict(metainfo=dict(classes=['road'])))])
def test_other_label_maps_are_not_taken_for_masks(tmp_path, warnings_logged, labels, kwargs):
    write(tmp_path, np.array([[0, 255]] * 2, np.uint8), name='a')
    write(tmp_path, np.array([labels] * 2, np.uint8), name='b')
    if labels == [0, 0]:
        write(tmp_path, np.array([labels] * 2, np.uint8), name='a')
    build(tmp_path, **kwargs)
    assert not any('only 0 and 255' in line for line in warnings_logged)


@pytest.mark.parametrize('number, said', [(20, 'no pixel of 2 of 4 classes: car, sky. From these '
                                                'label maps a network'), (21, None)])
def test_classes_that_never_occur_are_said_when_the_run_starts(
        tmp_path, warnings_logged, monkeypatch, number, said):
    monkeypatch.setattr(validated, 'MAX_MAPS_LOADED', 20)  # Of larger data sets a part is read.
    for i in range(number):  # That of one class is in none of the pairs that are loaded.
        write(tmp_path, np.full((4, 6), 2 * (i == 7), np.uint8), name=f'{i:02}')
    build(tmp_path, metainfo=dict(classes=('road', 'car', 'kerb', 'sky')))
    if said is None:
        assert not warnings_logged
    else:
        assert len(warnings_logged) == 1 and said in warnings_logged[0].replace('20 label', 'label')
    build(tmp_path, metainfo=dict(classes=('road', )), pipeline=OURS[:1])  # Nothing was read.
    assert len(warnings_logged) == (said is not None)
