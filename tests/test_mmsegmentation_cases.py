"""Cases of MMSegmentation 1.2.2's own tests: our classes and its own, on the same input.

Its wheel carries no tests. These are written anew from what its classes promise: each case goes
through both, and the results have to be equal. What is deliberately different has a test of its
own, which docs/differences.md names.
"""
import copy
import tempfile

import cv2
import numpy as np
import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.config import Config, ConfigDict
from mmengine.structures import PixelData
from torch import nn

import mmseg_bisenetv2  # noqa: F401

from mmseg.apis import MMSegInferencer, inference_model, init_model
from mmseg.models.decode_heads.cascade_decode_head import BaseCascadeDecodeHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer

PREFIXES = ('', 'mmseg_bisenetv2.')


def both(registry, kind, **options):
    """MMSegmentation's class and ours, built with the same arguments."""
    return [registry.build(ConfigDict(copy.deepcopy(options), type=prefix + kind))
            for prefix in PREFIXES]


def both_raise(registry, kind, error, **options):
    for prefix in PREFIXES:
        with pytest.raises(error):
            registry.build(dict(options, type=prefix + kind))


def assert_equal(found, expected):
    """Compares what models, data sets and transforms return."""
    if isinstance(expected, (float, np.floating)):
        assert found == pytest.approx(expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_equal(*pair)
    elif isinstance(expected, (torch.Tensor, np.ndarray)):
        found, expected = (torch.as_tensor(x) for x in (found, expected))
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, check_dtype=False)
    elif isinstance(expected, SegDataSample):
        assert found.metainfo == expected.metainfo
        assert set(found.keys()) == set(expected.keys())
        for key in expected.keys():
            assert_equal(getattr(found, key).data, getattr(expected, key).data)
    else:
        assert found == expected


# Backbone.


def test_backbone_after_init_weights():
    theirs, ours = both(MODELS, 'BiSeNetV2')
    for height, width in ((64, 128), (132, 239)):
        shapes = []
        for model in (theirs, ours):
            model.init_weights()
            shapes.append([feature.shape for feature in model.train()(
                torch.randn(2, 3, height, width))])
        assert shapes[0] == shapes[1] and len(shapes[0]) == 5
    for model in (theirs, ours):
        assert isinstance(model.detail.detail_branch[0][0], ConvModule)
        assert isinstance(model.bga.conv, ConvModule)
        assert model.semantic.stage1.pool.stride == 2
        assert model.detail(torch.randn(1, 3, 64, 128)).shape == (1, 128, 8, 16)
        assert model.bga(torch.randn(2, 128, 8, 16), torch.randn(2, 128, 2, 4)).shape == (
            2, 128, 8, 16)


# FCN head.

FCN = dict(in_channels=8, channels=4, num_classes=19)


@pytest.mark.parametrize('options', [
    {}, dict(norm_cfg=dict(type='SyncBN')), dict(norm_cfg=dict(type='BN')),
    dict(concat_input=False), dict(kernel_size=1), dict(num_convs=1), dict(dilation=2),
    dict(channels=8, num_convs=0, concat_input=False), dict(act_cfg=None),
    dict(in_channels=[3, 5], in_index=[0, 1], input_transform='resize_concat'),
    dict(num_classes=2, out_channels=1, threshold=0.4, loss_decode=dict(
        type='CrossEntropyLoss', use_sigmoid=True)),
    dict(ignore_index=3, loss_decode=[
        dict(type='CrossEntropyLoss', loss_name='loss_1'),
        dict(type='CrossEntropyLoss', loss_name='loss_2', loss_weight=0.4)]),
], ids=str)
def test_fcn_head(options):
    theirs, ours = both(MODELS, 'FCNHead', **{**FCN, 'dropout_ratio': 0, **options})
    theirs.init_weights()
    ours.load_state_dict(theirs.state_dict())
    kinds = [[(name, type(part)) for name, part in head.named_modules() if name]
             for head in (theirs, ours)]
    assert kinds[0] == kinds[1]
    theirs.eval(), ours.eval()
    if isinstance(theirs.in_index, list):
        x = [torch.randn(2, 3, 12, 14), torch.randn(2, 5, 6, 7)]
    else:
        x = [torch.randn(2, 8, 12, 14)]
    assert_equal(ours(x), theirs(x))
    labels = torch.randint(0, options.get('num_classes', 19), (2, 1, 24, 28))
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
    metas = [dict(img_shape=(24, 28))] * 2
    assert_equal(ours.loss(x, samples, None), theirs.loss(x, samples, None))
    assert_equal(ours.predict(x, metas, None), theirs.predict(x, metas, None))


@pytest.mark.parametrize('options, error', [
    (dict(num_convs=-1), AssertionError), (dict(dilation=0), AssertionError),
    (dict(num_convs=0), AssertionError),  # Other channels out than in.
    (dict(in_channels=[8, 8]), AssertionError), (dict(in_index=[0, 1]), AssertionError),
    (dict(in_channels=[8, 8], in_index=[0], input_transform='resize_concat'), AssertionError),
    (dict(out_channels=3), ValueError), (dict(loss_decode=3), TypeError)], ids=str)
def test_fcn_head_refuses(options, error):
    both_raise(MODELS, 'FCNHead', error, **{**FCN, **options})


# Segmentors.


@MODELS.register_module(force=True)
class CaseBackbone(nn.Module):
    """One convolution without padding."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x):
        return [self.conv(x)]


@MODELS.register_module(force=True)
class CaseHead(BaseDecodeHead):
    """The classifier alone."""

    def __init__(self, num_classes=19, out_channels=None, **options):
        super().__init__(3, 3, num_classes=num_classes, out_channels=out_channels, dropout_ratio=0,
                         **options)

    def forward(self, inputs):
        return self.cls_seg(inputs[0])


@MODELS.register_module(force=True)
class CaseCascadeHead(BaseCascadeDecodeHead):
    """The same as a later stage of a cascade."""

    def __init__(self):
        super().__init__(3, 3, num_classes=19, dropout_ratio=0)

    def forward(self, inputs, prev_out):
        return self.cls_seg(inputs[0]) + prev_out


SIGMOID = dict(num_classes=2, out_channels=1, threshold=0.4, loss_decode=dict(
    type='CrossEntropyLoss', use_sigmoid=True))
SLIDE = dict(mode='slide', crop_size=(5, 5), stride=(3, 3))


def segmentor(prefix, kind='EncoderDecoder', auxiliary_head=None, test_cfg=None, head=None,
              **options):
    model = MODELS.build(ConfigDict(
        type=prefix + kind, data_preprocessor=dict(type=f'{prefix}SegDataPreProcessor'),
        backbone=dict(type='CaseBackbone'), decode_head=head or dict(type='CaseHead'),
        auxiliary_head=auxiliary_head, train_cfg=None, test_cfg=test_cfg or dict(mode='whole'),
        **options))
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model.eval()


def inputs_and_samples(size=(10, 16), classes=19, number=2, **meta):
    torch.manual_seed(1)
    return torch.randn(number, 3, *size), [SegDataSample(
        metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=1.0, flip=False,
                      flip_direction='horizontal', img_path='a.png') | meta,
        gt_sem_seg=PixelData(data=torch.randint(0, classes, (1, *size)))) for _ in range(number)]


def assert_same_results(models, classes=19, **options):
    """Losses with their gradients, predictions and plain output of two segmentors."""
    results = []
    for model in models:
        inputs, samples = inputs_and_samples(classes=classes, **options)
        losses = model.forward(inputs, samples, mode='loss')
        model.zero_grad()
        sum(sum(value) if isinstance(value, list) else value
            for key, value in losses.items() if 'loss' in key).backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        with torch.no_grad():
            predicted = model.forward(inputs, samples, mode='predict')
            output = model.forward(inputs, mode='tensor')
            without = model.forward(inputs, None, mode='predict')
        results.append([losses, gradients, predicted, output, without])
        with pytest.raises(RuntimeError, match='Invalid mode'):
            model.forward(inputs, samples, mode='nothing')
    assert_equal(results[1], results[0])
    assert len(results[0][2][0].pred_sem_seg.data.unique()) > 1


@pytest.mark.parametrize('test_cfg', [dict(mode='whole'), SLIDE], ids=['whole', 'slide'])
@pytest.mark.parametrize('auxiliary_head', [
    None, dict(type='CaseHead'), [dict(type='CaseHead'), dict(type='CaseHead')]],
    ids=['alone', 'auxiliary', 'two'])
def test_encoder_decoder(auxiliary_head, test_cfg):
    models = [segmentor(prefix, auxiliary_head=auxiliary_head, test_cfg=test_cfg)
              for prefix in PREFIXES]
    assert_same_results(models)
    assert_same_results(models, ori_shape=(21, 30), flip=True, flip_direction='vertical')


@pytest.mark.parametrize('test_cfg', [dict(mode='whole'), SLIDE], ids=['whole', 'slide'])
def test_encoder_decoder_of_one_output_channel(test_cfg):
    models = [segmentor(prefix, head=dict(SIGMOID, type='CaseHead'), test_cfg=test_cfg)
              for prefix in PREFIXES]
    assert_same_results(models, classes=2)


@pytest.mark.parametrize('return_list', [False, True])
def test_cascade_of_our_head(return_list):
    """Its first stage and its auxiliary heads; the cascade itself is MMSegmentation's."""
    models = []
    for prefix in PREFIXES:
        head = dict(type=f'{prefix}FCNHead', in_channels=3, channels=3, num_convs=1, num_classes=19,
                    concat_input=False, dropout_ratio=0, init_cfg=None)
        models.append(segmentor(
            '', 'CascadeEncoderDecoder', num_stages=2,
            head=[head, dict(type='CaseCascadeHead')],
            auxiliary_head=[head, head] if return_list else head))
    assert_same_results(models)


def test_pretrained_weights_are_given_once():
    for prefix in PREFIXES:
        with pytest.raises(AssertionError, match='both backbone and segmentor'):
            MODELS.build(ConfigDict(
                type=f'{prefix}EncoderDecoder', backbone=dict(type='CaseBackbone', pretrained='a'),
                decode_head=dict(type='CaseHead'), pretrained='b'))


@pytest.mark.parametrize('head', [dict(type='CaseHead'), dict(SIGMOID, type='CaseHead')],
                         ids=['softmax', 'sigmoid'])
def test_test_time_augmentation(head):
    results = []
    for prefix in PREFIXES:
        model = MODELS.build(ConfigDict(
            type='SegTTAModel', data_preprocessor=None, module=segmentor(prefix, head=head)))
        views = [inputs_and_samples(
            (10 + i, 10 + i), number=1, ori_shape=(10, 10), flip=i % 2 == 0,
            flip_direction='horizontal' if i % 3 == 0 else 'vertical') for i in range(12)]
        data = dict(inputs=[inputs for inputs, _ in views],
                    data_samples=[samples for _, samples in views])
        for threshold in (0.2, 0.4, 0.5, 0.6):
            model.module.decode_head.threshold = threshold
            with torch.no_grad():
                results.append(model.test_step(copy.deepcopy(data))[0].pred_sem_seg.data)
    assert_equal(results[4:], results[:4])
    assert len(torch.stack(results).unique()) > 1


# Data preprocessor.


@pytest.mark.parametrize('options', [{}, dict(mean=[0, 0, 0], std=[1, 1, 1])], ids=str)
def test_preprocessor(options):
    theirs, ours = both(MODELS, 'SegDataPreProcessor', size=(20, 20), **options)
    for name in ('mean', 'std'):
        assert hasattr(ours, name) == hasattr(theirs, name) == bool(options)
    images = torch.randint(0, 256, (2, 3, 11, 10), dtype=torch.uint8)
    results = []
    for preprocessor in (theirs, ours):
        samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.ones(1, 11, 10).long()))
                   for _ in images]
        results.append(preprocessor(dict(inputs=list(images), data_samples=samples), True))
    assert_equal(results[1], results[0])
    assert results[0]['inputs'].shape == (2, 3, 20, 20)


@pytest.mark.parametrize('options', [
    dict(mean=[0, 0, 0]), dict(bgr_to_rgb=True, rgb_to_bgr=True)], ids=str)
def test_preprocessor_refuses(options):
    both_raise(MODELS, 'SegDataPreProcessor', AssertionError, **options)


# Transforms.


@pytest.fixture
def folder(tmp_path):
    """Five pictures, three of them colour, and label maps of five ids; a list of four of them."""
    rng = np.random.default_rng(0)
    for name in ('imgs', 'gts', 'splits'):
        (tmp_path / name).mkdir()
    for i in range(5):
        image = rng.integers(0, 256, (20, 30, 3) if i < 3 else (20, 30)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / f'imgs/0000{i}_img.jpg'), image)
        cv2.imwrite(str(tmp_path / f'gts/0000{i}_gt.png'),
                    rng.integers(0, 5, (20, 30)).astype(np.uint8))
    (tmp_path / 'splits/train.txt').write_text('\n'.join(f'0000{i}_' for i in range(4)))
    return tmp_path


@pytest.mark.parametrize('options', [{}, dict(to_float32=True), dict(color_type='unchanged')],
                         ids=str)
@pytest.mark.parametrize('name', ['00000_img.jpg', '00004_img.jpg'])
def test_loading_images(folder, name, options):
    theirs, ours = (transform(dict(img_path=str(folder / 'imgs' / name)))
                    for transform in both(TRANSFORMS, 'LoadImageFromFile', **options))
    assert ours['img'].dtype == theirs['img'].dtype
    assert_equal(ours, theirs)


@pytest.mark.parametrize('label_map', [
    None, {0: 0, 1: 0, 2: 0, 3: 1, 4: 0}, {0: 0, 1: 0, 2: 0, 3: 2, 4: 1}], ids=str)
@pytest.mark.parametrize('reduce_zero_label', [False, True])
def test_loading_labels(folder, label_map, reduce_zero_label):
    results = dict(seg_map_path=str(folder / 'gts/00000_gt.png'), seg_fields=[],
                   reduce_zero_label=reduce_zero_label, label_map=label_map)
    theirs, ours = (transform(copy.deepcopy(results))
                    for transform in both(TRANSFORMS, 'LoadAnnotations'))
    assert ours['gt_seg_map'].dtype == theirs['gt_seg_map'].dtype
    assert_equal(ours, theirs)


def test_time_augmentation_of_loaded_images(folder):
    results = []
    for prefix in PREFIXES:
        pipeline = TRANSFORMS.build(dict(type='TestTimeAug', transforms=[
            [dict(type='Resize', scale_factor=factor, keep_ratio=True) for factor in (0.5, 2.0)],
            [dict(type='RandomFlip', prob=prob) for prob in (0.0, 1.0)],
            [dict(type=f'{prefix}LoadAnnotations')], [dict(type=f'{prefix}PackSegInputs')]]))
        load = TRANSFORMS.build(dict(type=f'{prefix}LoadImageFromFile'))
        results.append(pipeline(load(dict(
            img_path=str(folder / 'imgs/00000_img.jpg'), seg_fields=[], reduce_zero_label=False,
            seg_map_path=str(folder / 'gts/00000_gt.png')))))
    assert_equal(results[1], results[0])
    assert len(results[0]['inputs']) == 4


@pytest.mark.filterwarnings('ignore:Please pay attention')
@pytest.mark.parametrize('shape', [(30, 40), (3, 30, 40)])
def test_packing(shape):
    rng = np.random.default_rng(0)
    keys = ('img_path', 'ori_shape', 'img_shape', 'pad_shape', 'scale_factor', 'flip',
            'flip_direction')
    results = dict(img_path='a.jpg', ori_shape=(30, 40), pad_shape=(60, 80), img_shape=(60, 80),
                   scale_factor=2.0, flip=False, flip_direction='horizontal', img_norm_cfg=None,
                   img=rng.random((30, 40)), gt_seg_map=rng.random(shape) * 5)
    transforms = both(TRANSFORMS, 'PackSegInputs', meta_keys=keys)
    theirs, ours = (transform(copy.deepcopy(results)) for transform in transforms)
    assert_equal(ours, theirs)
    assert repr(transforms[1]) == repr(transforms[0]) == f'PackSegInputs(meta_keys={keys})'


def test_photometric_distortion_needs_a_range_of_saturations():
    both_raise(TRANSFORMS, 'PhotoMetricDistortion', TypeError, saturation_range=1.0)


# Data sets.


def both_datasets(kind='BaseSegDataset', **options):
    """The two data sets; the metainfo of ours, and nothing else, has the ``ignore_index`` more."""
    theirs, ours = both(DATASETS, kind, **options)
    metainfo = dict(ours.metainfo)
    assert metainfo.pop('ignore_index') == theirs.ignore_index
    assert metainfo == theirs.metainfo
    assert ours.label_map == theirs.label_map
    assert ours.reduce_zero_label == theirs.reduce_zero_label
    return theirs, ours


SUFFIXES = dict(img_suffix='img.jpg', seg_map_suffix='gt.png')


@pytest.mark.parametrize('absolute', [False, True])
@pytest.mark.parametrize('root', [False, True])
@pytest.mark.parametrize('options, number', [
    ({}, 5), (dict(ann_file='splits/train.txt'), 4), (dict(indices=3), 3),
    (dict(metainfo=dict(classes=('a', 'b', 'c', 'd', 'e'))), 5),
    (dict(metainfo=dict(classes=('a', )), test_mode=True), 5)], ids=str)
def test_folders(folder, root, absolute, options, number, monkeypatch):
    monkeypatch.chdir(folder)
    prefix = f'{folder}/' if absolute else ''
    options = dict(options, data_prefix=dict(img_path=f'{prefix}imgs', seg_map_path=f'{prefix}gts'))
    if root:
        options['data_root'] = str(folder)
    elif 'ann_file' in options:
        options['ann_file'] = str(folder / options['ann_file'])
    theirs, ours = both_datasets(**SUFFIXES, **options)
    assert len(ours) == len(theirs) == number
    for i in range(number):
        assert_equal(ours[i], theirs[i])
        assert_equal(ours.get_data_info(i), theirs.get_data_info(i))


@pytest.mark.parametrize('kind, image_suffix, map_suffix', [
    ('CityscapesDataset', '_leftImg8bit.png', '_gtFine_labelTrainIds.png'),
    ('COCOStuffDataset', '.jpg', '_labelTrainIds.png')])
def test_published_data_sets(tmp_path, kind, image_suffix, map_suffix):
    for folder, suffix in (('img', image_suffix), ('ann', map_suffix)):
        for city in 'ab':
            (tmp_path / folder / city).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / folder / city / f'0{suffix}'), np.zeros((4, 6), np.uint8))
    theirs, ours = both_datasets(
        kind, data_prefix=dict(img_path=f'{tmp_path}/img', seg_map_path=f'{tmp_path}/ann'))
    assert_equal(list(ours), list(theirs))
    assert len(ours) == 2


@pytest.mark.parametrize('kind, classes', [
    ('CityscapesDataset', ('road', 'sidewalk')), ('COCOStuffDataset', ('bus', 'car')),
    ('BaseSegDataset', ('bus', 'car'))])
def test_classes_of_a_user(tmp_path, kind, classes):
    options = dict(data_prefix=dict(img_path=str(tmp_path)), test_mode=True, lazy_init=True)
    (tmp_path / 'classes.txt').write_text('\n'.join(classes))
    for given in (classes, list(classes), [classes[0]], str(tmp_path / 'classes.txt')):
        ours = both_datasets(kind, metainfo=dict(classes=given), **options)[1]
        assert (ours.label_map is None) == (kind == 'BaseSegDataset')
    if kind != 'BaseSegDataset':
        assert both_datasets(kind, metainfo=None, **options)[1].label_map is None
        both_raise(DATASETS, kind, ValueError, metainfo=dict(classes=['road', 'nothing']),
                   **options)
    else:
        cv2.imwrite(str(tmp_path / 'a.jpg'), np.zeros((4, 6, 3), np.uint8))
        both_raise(DATASETS, kind, AssertionError, metainfo=None, **dict(options, lazy_init=False))


def test_palettes():
    options = dict(data_prefix=dict(img_path=tempfile.gettempdir()), lazy_init=True, test_mode=True)
    ours = both_datasets(metainfo=dict(classes=('bus', 'car')), **options)[1]
    assert np.shape(ours.metainfo['palette']) == (2, 3)
    palette = [[100, 100, 100], [200, 200, 200]]
    both_datasets(metainfo=dict(classes=('bus', 'car'), palette=palette), **options)
    both_raise(DATASETS, 'BaseSegDataset', ValueError, metainfo=dict(
        classes=('bus', 'car'), palette=palette[:1]), **options)


# Metric.


@pytest.mark.parametrize('reduce_zero_label', [False, True])
def test_metric_writes_what_it_was_given(tmp_path, reduce_zero_label):
    torch.manual_seed(0)
    samples = [dict(gt_sem_seg=dict(data=torch.randint(0, 5, (1, 64, 64))),
                    pred_sem_seg=dict(data=torch.randint(0, 5, (1, 64, 64))),
                    seg_logits=dict(data=torch.randn(5, 64, 64)), img_path=f'{i}.jpg',
                    reduce_zero_label=reduce_zero_label) for i in range(2)]
    results = []
    for prefix in PREFIXES:
        for format_only in (False, True):
            out = tmp_path / prefix / str(format_only)
            metric = METRICS.build(dict(type=f'{prefix}IoUMetric', iou_metrics=['mIoU'],
                                        output_dir=str(out), format_only=format_only))
            metric.dataset_meta = dict(classes=list('abcde'), label_map={}, reduce_zero_label=False)
            metric.process([0, 0], samples)
            assert bool(metric.results) is not format_only
            scores = metric.evaluate(2)
            results.append((scores, [cv2.imread(f'{out}/{i}.png', -1) for i in range(2)]))
    assert_equal(results[2:], results[:2])
    assert results[0][1][0].max() == 4 + reduce_zero_label


# APIs.


@pytest.fixture
def config_and_weights(tmp_path):
    configs = []
    for prefix in PREFIXES:
        torch.save(dict(state_dict=segmentor(prefix).state_dict(), meta={}), tmp_path / 'a.pth')
        configs.append(ConfigDict(
            default_scope='mmseg', model=dict(
                type=f'{prefix}EncoderDecoder',
                data_preprocessor=dict(type=f'{prefix}SegDataPreProcessor'),
                backbone=dict(type='CaseBackbone'), decode_head=dict(type='CaseHead'),
                test_cfg=dict(mode='whole')),
            visualizer=dict(type='SegLocalVisualizer', name='cases',
                            vis_backends=[dict(type='LocalVisBackend')]),
            test_dataloader=dict(dataset=dict(type='ExampleDataset', pipeline=[
                dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
                dict(type='PackSegInputs')]))))
    return configs, tmp_path / 'a.pth'


@pytest.mark.filterwarnings('ignore')
def test_inferencer(config_and_weights, tmp_path):
    configs, weights = config_and_weights
    image = np.random.default_rng(0).integers(0, 256, (14, 14, 3)).astype(np.uint8)
    results = []
    for name, config in zip(('theirs', 'ours'), configs, strict=True):
        infer = MMSegInferencer(config, str(weights), device='cpu')
        out = str(tmp_path / name)
        results.append([
            infer(image)['predictions'], infer([image, image[::-1]], out_dir=out)['predictions'],
            infer(image, return_vis=True)['visualization'],
            infer(image, return_datasamples=True),
            cv2.imread(f'{out}/vis/00000000.jpg'), cv2.imread(f'{out}/pred/00000000_pred.png', -1)])
    assert_equal(results[1], results[0])
    assert results[0][0].shape == (14, 14) and len(np.unique(results[0][0])) > 1


@pytest.mark.filterwarnings('ignore')
def test_init_and_inference(config_and_weights, folder):
    configs, weights = config_and_weights
    results = []
    for config in configs:
        config = Config(dict(config, test_pipeline=[
            dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]))
        model = init_model(config, str(weights), device='cpu')
        path = str(folder / 'imgs/00000_img.jpg')
        results.append([inference_model(model, path), inference_model(model, [path, path]),
                        inference_model(model, cv2.imread(path)), model.dataset_meta])
    assert_equal(results[1], results[0])


def test_visualizer_draws_our_predictions():
    pictures = []
    for prefix in PREFIXES:
        inputs, samples = inputs_and_samples((20, 24))
        with torch.no_grad():
            sample = segmentor(prefix).forward(inputs, samples, mode='predict')[0]
        visualizer = SegLocalVisualizer(alpha=0.5)
        visualizer.dataset_meta = dict(
            classes=[str(i) for i in range(19)], palette=[[i * 9, 0, 255 - i] for i in range(19)])
        visualizer.add_datasample('a', np.full((20, 24, 3), 99, np.uint8), sample)
        pictures.append(visualizer.get_image())
    assert_equal(*pictures)
    assert pictures[0].std() > 1
