"""Classes that replace MMSegmentation's take the same arguments, and do the same with them."""
import inspect

import cv2
import mmcv.transforms
import numpy as np
import pytest
import torch
from mmengine.registry import TRANSFORMS

from mmseg_bisenetv2 import datasets
from mmseg_bisenetv2.metrics import IoUMetric

import mmseg.datasets
import mmseg.datasets.transforms
import mmseg.evaluation

OURS = 'mmseg_bisenetv2.'
ORIGINALS = {
    datasets.LoadImageFromFile: mmcv.transforms.LoadImageFromFile,
    datasets.LoadAnnotations: mmseg.datasets.transforms.LoadAnnotations,
    datasets.PhotoMetricDistortion: mmseg.datasets.transforms.PhotoMetricDistortion,
    datasets.PackSegInputs: mmseg.datasets.transforms.PackSegInputs,
    datasets.BaseSegDataset: mmseg.datasets.BaseSegDataset,
    datasets.CityscapesDataset: mmseg.datasets.CityscapesDataset,
    datasets.COCOStuffDataset: mmseg.datasets.COCOStuffDataset,
    IoUMetric: mmseg.evaluation.IoUMetric,
}


def test_every_drop_in_is_listed():
    classes = [getattr(datasets, name) for name in datasets.__all__] + [IoUMetric]
    assert set(ORIGINALS) == {c for c in classes if 'drop-in' in c.__doc__.lower()}


@pytest.mark.parametrize('ours', ORIGINALS, ids=lambda ours: ours.__name__)
def test_signature_is_the_originals_with_new_arguments_last(ours):
    theirs = ORIGINALS[ours]
    assert issubclass(ours, theirs)
    methods = [name for name in vars(ours) if name in dir(theirs) and callable(getattr(ours, name))]
    for name in {'__init__', *methods}:
        found, expected = ([(p.name, p.default, p.kind) for p in
                            inspect.signature(getattr(c, name)).parameters.values()
                            if p.kind is not p.VAR_KEYWORD] for c in (ours, theirs))
        assert found[:len(expected)] == expected, name


@pytest.mark.parametrize('kind, options', [
    ('LoadImageFromFile', {}), ('LoadAnnotations', {}), ('PhotoMetricDistortion', {}),
    ('PackSegInputs', {}), ('RandomResizeCrop', dict(scale=(9, 8), crop_size=(4, 5)))])
def test_repr_shows_the_arguments(kind, options):
    transform = TRANSFORMS.build(dict(type=OURS + kind, **options))
    assert repr(transform).startswith(f'{kind}(')
    for name in inspect.signature(type(transform).__init__).parameters:
        assert f'{name}=' in repr(transform) or name in ('self', 'file_client_args')


@pytest.fixture
def files(tmp_path):
    """A colour image and a label map of 12x18."""
    rng = np.random.default_rng(0)
    paths = tmp_path / 'a.png', tmp_path / 'a_labels.png'
    for path, shape in zip(paths, ((12, 18, 3), (12, 18)), strict=True):
        cv2.imwrite(str(path), rng.integers(0, 256, shape, np.uint8))
    return paths


def run(kind, options, results):
    return TRANSFORMS.build(dict(type=kind, **options))(results)


@pytest.mark.parametrize('options', [
    dict(to_float32=True), dict(color_type='grayscale'), dict(color_type='unchanged'),
    dict(imdecode_backend='pillow'), dict(to_float32=True, imdecode_backend='pillow'),
    dict(file_client_args=dict(backend='disk')), dict(backend_args=dict(backend='local'))])
def test_options_of_image_loading(files, options):
    theirs, ours = (run(prefix + 'LoadImageFromFile', options, dict(img_path=str(files[0])))
                    for prefix in ('', OURS))
    assert ours['img'].dtype == theirs['img'].dtype
    np.testing.assert_array_equal(ours.pop('img'), theirs.pop('img'))
    assert ours == theirs


def test_missing_images_are_left_out_where_that_is_wanted(tmp_path):
    results = dict(img_path=str(tmp_path / 'nothing.png'))
    assert run(OURS + 'LoadImageFromFile', dict(ignore_empty=True), results) is None


@pytest.mark.parametrize('options, reduce_zero_label', [
    (dict(reduce_zero_label=True), True), (dict(reduce_zero_label=False), False),
    (dict(imdecode_backend='cv2'), True), (dict(backend_args=dict(backend='local')), False)])
def test_options_of_label_loading(files, options, reduce_zero_label):
    theirs, ours = (
        run(prefix + 'LoadAnnotations', options, dict(
            seg_map_path=str(files[1]), seg_fields=[], reduce_zero_label=reduce_zero_label,
            ori_shape=(12, 18)))
        for prefix in ('', OURS))
    np.testing.assert_array_equal(ours.pop('gt_seg_map'), theirs.pop('gt_seg_map'))
    assert ours == theirs


def test_loader_and_data_set_must_agree_on_the_zero_label(files):
    results = dict(seg_map_path=str(files[1]), seg_fields=[], reduce_zero_label=False)
    with pytest.raises(ValueError, match='reduce_zero_label=True, its data set False'):
        run(OURS + 'LoadAnnotations', dict(reduce_zero_label=True), results)


@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'uint16', 'int32', 'int64', 'float32',
                                   'float64', 'bool'])
@pytest.mark.parametrize('shape', [(9, 7), (9, 7, 1), (9, 7, 2), (9, 7, 3), (9, 7, 4), (9, 7, 5),
                                   (9, 7, 12), (1, 1, 3), (0, 7, 3)])
@pytest.mark.parametrize('flipped', [False, True])
def test_any_image_is_packed_as_mmsegmentation_packs_it(dtype, shape, flipped):
    image = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    image = np.ascontiguousarray(image[:, ::-1])[:, ::-1] if flipped else image
    if flipped and len(shape) == 3 and shape[2] == 1:
        image = np.ascontiguousarray(image)  # MMSegmentation cannot pack it otherwise.
    theirs, ours = (run(prefix + 'PackSegInputs', {}, dict(img=image)) for prefix in ('', OURS))
    assert ours['inputs'].dtype == theirs['inputs'].dtype
    assert ours['inputs'].shape == theirs['inputs'].shape
    assert torch.equal(ours['inputs'], theirs['inputs']) and ours['inputs'].is_contiguous()


@pytest.mark.filterwarnings('ignore:Please pay attention')
@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'uint16', 'int32', 'int64', 'float32', 'bool'])
@pytest.mark.parametrize('shape', [(9, 7), (1, 9, 7), (3, 9, 7), (0, 7)])
def test_any_label_map_is_packed_as_mmsegmentation_packs_it(dtype, shape):
    labels = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    theirs, ours = (run(prefix + 'PackSegInputs', {}, dict(
        img=np.zeros((9, 7, 3), np.uint8), gt_seg_map=labels))
        for prefix in ('', OURS))
    theirs, ours = theirs['data_samples'], ours['data_samples']
    if dtype == 'uint8' and len(shape) == 2:
        assert ours.gt_sem_seg.data.dtype == torch.uint8
    else:
        assert ours.gt_sem_seg.data.dtype == torch.int64
    assert torch.equal(ours.gt_sem_seg.data.long(), theirs.gt_sem_seg.data)


@pytest.mark.parametrize('image', [
    np.linspace(0, 255, 8 * 9 * 3, dtype=np.float32).reshape(8, 9, 3),
    np.linspace(0, 255, 8 * 9 * 3, dtype=np.float64).reshape(8, 9, 3).astype(np.uint16)],
    ids=['float32', 'uint16'])
def test_other_images_are_distorted_as_mmsegmentation_distorts_them(image):
    def distort(prefix, seed):
        np.random.seed(seed)
        try:
            result = run(prefix + 'PhotoMetricDistortion', {}, dict(img=image.copy()))['img']
        except cv2.error:
            result = None  # MMSegmentation cannot convert such an image to HSV either.
        return result, np.random.get_state()[2]

    for seed in range(20):
        (expected, state), (result, our_state) = distort('', seed), distort(OURS, seed)
        np.testing.assert_array_equal(result, expected)
        assert our_state == state and getattr(result, 'dtype', 0) == getattr(expected, 'dtype', 0)
