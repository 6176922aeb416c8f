import copy
import io
import pickle

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import PixelData
from small import NORM, PREPROCESSOR, WIDTHS, batch, build, image

import mmseg_bisenetv2  # noqa: F401
from mmseg_bisenetv2.models.folding import fold_batch_norm

from mmseg.apis import inference_model
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import BaseSegmentor
from mmseg.models.segmentors import EncoderDecoder as MMSegEncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample


def predict(model, **kwargs):
    with torch.no_grad():
        return model.test_step(batch(**kwargs))


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        labels, expected = a.pred_sem_seg.data, b.pred_sem_seg.data
        assert labels.dtype == expected.dtype and labels.shape == expected.shape
        assert len(expected.unique()) > 1  # else it says nothing
        assert (labels != expected).float().mean() < 1e-4
        logits = b.seg_logits.data
        assert a.seg_logits.data.shape == logits.shape
        assert torch.allclose(a.seg_logits.data, logits, atol=1e-5 * float(logits.abs().max()))


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('meta', [
    {}, dict(ori_shape=(128, 192)), dict(ori_shape=(31, 50)),
    dict(img_shape=torch.Size([64, 96]), pad_shape=(80, 96)),  # MMSegmentation takes the first
    dict(flip=True, flip_direction='horizontal'),
    dict(flip=True, flip_direction='vertical', ori_shape=(100, 90)),
    dict(flip=False, flip_direction=None),
    dict(img_padding_size=[3, 5, 2, 4], ori_shape=(58, 88)),
    dict(padding_size=[0, 16, 0, 8], ori_shape=(70, 99), flip=True, flip_direction='horizontal'),
])
def test_predictions_are_those_of_mmsegmentation(meta, align_corners):
    arguments = dict(align_corners=align_corners)
    assert_same(predict(build(True, **arguments), meta=meta),
                predict(build(False, **arguments), meta=meta))


def test_padding_in_the_data_preprocessor():
    arguments = dict(preprocessor=dict(test_cfg=dict(size_divisor=64)))
    sizes = dict(height=70, width=90)
    assert_same(predict(build(True, **arguments), **sizes),
                predict(build(False, **arguments), **sizes))


@pytest.mark.parametrize('height, width', [(1, 1), (1, 200), (33, 47), (8, 8)])
def test_any_size(height, width):
    ours = predict(build(True), height=height, width=width)
    theirs = predict(build(False), height=height, width=width)
    for a, b in zip(ours, theirs, strict=True):
        assert a.pred_sem_seg.data.shape == (1, height, width)
        assert (a.pred_sem_seg.data != b.pred_sem_seg.data).sum() <= 1e-4 * height * width


def test_without_samples():
    inputs = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        ours, theirs = (build(k).predict(inputs) for k in (True, False))
    assert_same(ours, theirs)
    assert len(ours) == 2


@pytest.mark.parametrize('arguments', [
    dict(keep_logits=True),
    dict(test_cfg=dict(mode='slide', crop_size=(32, 32), stride=(24, 24))),
])
def test_full_logits_on_demand(arguments):
    kept = predict(build(True, **arguments))
    assert type(kept[0].seg_logits) is PixelData
    arguments.pop('keep_logits', None)
    theirs = predict(build(False, **arguments))
    for a, b in zip(kept, theirs, strict=True):
        assert torch.equal(a.pred_sem_seg.data, b.pred_sem_seg.data)
        assert torch.equal(a.seg_logits.data, b.seg_logits.data)


def test_one_channel_goes_by_its_threshold():
    def one_channel(ours):
        model = build(ours, classes=2)
        model.decode_head.out_channels = model.out_channels = 1
        model.decode_head.threshold = 0.5
        model.decode_head.conv_seg = torch.nn.Conv2d(16, 1, 1)
        torch.nn.init.constant_(model.decode_head.conv_seg.weight, 0.1)
        torch.nn.init.constant_(model.decode_head.conv_seg.bias, -0.5)
        return model.eval()
    for a, b in zip(predict(one_channel(True)), predict(one_channel(False)), strict=True):
        assert torch.equal(a.pred_sem_seg.data, b.pred_sem_seg.data)


def test_full_size_logits_never_exist():
    sample = predict(build(), number=1, height=256, width=512)[0]
    full = 4 * 256 * 512 * 4  # bytes
    held = sum(v.nbytes for v in sample.seg_logits.values())
    assert held == full / 64
    stored = sample.to_dict()['seg_logits']
    assert set(stored) & {'low', 'data'} == {'low'}


def test_logits_survive_a_move():
    sample = predict(build(), number=1)[0]
    assert torch.equal(sample.cpu().to(torch.device('cpu')).seg_logits.data,
                       sample.seg_logits.data)
    assert np.array_equal(sample.numpy().seg_logits.data, sample.seg_logits.data.numpy())
    assert torch.equal(sample.seg_logits[:16, 8:24].data, sample.seg_logits.data[:, :16, 8:24])


def test_time_augmentation():
    tta = dict(type='SegTTAModel', data_preprocessor=None)
    views = []
    for scale in (1, 2):
        for flip in (False, True):
            views.append(batch(
                dict(ori_shape=(64, 96), flip=flip, flip_direction='horizontal', img_path='x'),
                height=64 * scale, width=96 * scale, number=1))
    data = dict(inputs=[v['inputs'] for v in views],
                data_samples=[v['data_samples'] for v in views])
    results = []
    for ours in (True, False):
        model = MODELS.build(dict(tta, module=build(ours))).eval()
        with torch.no_grad():
            results.append(model.test_step(copy.deepcopy(data))[0].pred_sem_seg.data)
    assert results[0].shape == results[1].shape
    assert len(results[1].unique()) > 1
    assert (results[0] != results[1]).float().mean() < 1e-3


def test_inference_model_takes_it():
    config = Config(dict(test_pipeline=[
        dict(type='LoadImageFromNDArray'), dict(type='PackSegInputs')]))
    results = []
    for ours in (True, False):
        model = build(ours)
        model.cfg = config
        results.append([inference_model(model, image())])
    assert_same(*results)


def write_to_data(model):
    for parameter in model.parameters():
        parameter.data.copy_(parameter.data * 1.5)


def write_to_statistics(model):
    for buffer in model.buffers():
        buffer.data.mul_(2)


def step_of_fused_optimiser(model):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), 0.1, fused=True).step()


def load(model):
    model.load_state_dict({k: v * 1.5 if v.is_floating_point() else v
                           for k, v in model.state_dict().items()})


@pytest.mark.parametrize(
    'change', [write_to_data, write_to_statistics, step_of_fused_optimiser, load])
def test_prediction_follows_the_weights(change):
    models = [build(ours) for ours in (True, False)]
    before = [predict(model)[0].seg_logits.data for model in models]
    for model in models:
        change(model)
    after, expected = (predict(model)[0].seg_logits.data for model in models)
    assert not torch.allclose(before[1], expected, atol=1e-3)
    assert torch.allclose(after, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_prediction_leaves_the_model_alone():
    model = build()
    before = copy.deepcopy(model.state_dict())
    predict(model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) and value.is_contiguous()
    assert all(p.requires_grad for p in model.parameters())


def test_folded_network_is_the_same_function():
    network = build().backbone
    before = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        x = torch.randn(2, 3, 64, 96)
        folded = fold_batch_norm(network.train())
        assert network.training and not folded.training
        network.eval()
        assert not any(isinstance(m, torch.nn.BatchNorm2d) and n.endswith('.bn')
                       for n, m in folded.named_modules())
        for a, b in zip(folded(x), network(x), strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize('kind', [torch.nn.BatchNorm2d, torch.nn.SyncBatchNorm])
def test_what_has_no_statistics_is_not_folded(kind):
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1), kind(4, track_running_stats=False))
    for each in (network, revert_sync_batchnorm(network)):  # as init_model does on a CPU
        with pytest.raises(ValueError, match='without running statistics cannot be folded'):
            fold_batch_norm(each)
    for other in (torch.nn.InstanceNorm2d(4), torch.nn.GroupNorm(2, 4)):  # have none, need none
        fold_batch_norm(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), other))


def test_unknown_flip():
    with pytest.raises(ValueError, match="flip_direction is 'diagonal'"):
        predict(build(), meta=dict(flip=True, flip_direction='diagonal'))


PREDICTION = [  # every method between the images and the labels, and what it is of
    ('', name) for name in ('predict', 'inference', 'whole_inference', 'encode_decode',
                            'extract_feat', 'postprocess_result')] + [
    ('decode_head', name) for name in ('predict', 'predict_by_feat', 'forward', 'cls_seg',
                                       '_forward_feature', '_transform_inputs')] + [
    ('backbone', 'forward'), ('decode_head.conv_seg', 'forward')]


@pytest.fixture(scope='module')
def expected_prediction():
    return predict(build(False))


@pytest.mark.parametrize('how', ['object', 'subclass'])
@pytest.mark.parametrize('part, name', PREDICTION)
def test_what_is_overridden_is_called(part, name, how, expected_prediction):
    model, calls = build(), []
    owner = model.get_submodule(part)
    original = getattr(type(owner), name)

    def method(self, *args):
        calls.append(name)
        return original(self, *args)

    if how == 'object':
        setattr(owner, name, method.__get__(owner))
    else:
        owner.__class__ = type('Other', (type(owner), ), {name: method})
    assert_same(predict(model), expected_prediction)
    assert calls


@pytest.mark.parametrize('kind, name', [
    (MMSegEncoderDecoder, 'whole_inference'), (MMSegEncoderDecoder, 'encode_decode'),
    (MMSegEncoderDecoder, 'inference'), (BaseSegmentor, 'postprocess_result'),
    (BaseDecodeHead, 'predict'), (BaseDecodeHead, 'predict_by_feat')])
def test_mmsegmentations_own_methods_may_be_rewritten(kind, name, monkeypatch):
    original, calls = getattr(kind, name), []
    monkeypatch.setattr(kind, name, lambda *args: calls.append(name) or original(*args))
    predict(build())
    assert calls


def predict_labels(self, inputs, data_samples):
    """A segmentor's ``predict`` that returns a tensor, like the one that mmdeploy exports."""
    metas = [sample.metainfo for sample in data_samples]
    logits = self.decode_head.predict(self.extract_feat(inputs), metas, self.test_cfg)
    return logits.argmax(1, keepdim=True)


@pytest.mark.parametrize('how', ['rewritten', 'mixin'])
def test_another_predict_behind_ours_is_called(how, monkeypatch):
    """mmdeploy rewrites that of MMSegmentation's class, and knows no other."""
    inputs = batch()['inputs']
    inputs = torch.stack(inputs).float() / 60 - 2
    samples = [SegDataSample(metainfo=dict(img_shape=inputs.shape[2:])) for _ in inputs]
    model, theirs = build(), build(False)
    with torch.no_grad():
        expected = predict_labels(theirs, inputs, samples)
    if how == 'rewritten':
        monkeypatch.setattr(MMSegEncoderDecoder, 'predict', predict_labels)
    else:
        mixin = type('Mixin', (MMSegEncoderDecoder, ), dict(predict=predict_labels))
        model.__class__ = type('Other', (type(model), mixin), {})
    with torch.no_grad():
        found = model(inputs, samples, mode='predict')
    assert found.shape == (2, 1, 64, 96) and len(expected.unique()) > 1
    assert torch.equal(found, expected)


@pytest.mark.parametrize('part', ['backbone', 'backbone.bga', 'decode_head.conv_seg'])
def test_hooks_are_called(part):
    model = build()
    model.get_submodule(part).register_forward_hook(
        lambda module, inputs, output: tuple(0 * x for x in output)
        if isinstance(output, tuple) else 0 * output)
    logits = predict(model)[0].seg_logits.data
    assert logits.std((1, 2)).max() < 1e-6


def test_logits_may_be_changed():
    sample = predict(build(), number=1)[0]
    logits = sample.seg_logits
    assert logits.shape == (64, 96) and logits.low.shape == (4, 8, 12)
    logits.data[0] = 7.0
    assert (sample.seg_logits.data[0] == 7).all() and logits.shape == (64, 96)
    sample = predict(build(), number=1)[0]
    sample.seg_logits.data = torch.zeros(2, 64, 96)
    assert torch.equal(sample.seg_logits.data, torch.zeros(2, 64, 96))
    assert sample.seg_logits.keys() == ['data']
    with pytest.raises(AssertionError, match='not consistent'):
        predict(build(), number=1)[0].seg_logits.data = torch.zeros(2, 8, 12)
    with pytest.raises(AttributeError, match="no attribute 'score'"):
        _ = sample.seg_logits.score


@pytest.mark.parametrize('protocol', [2, pickle.HIGHEST_PROTOCOL])
def test_model_and_predictions_are_pickled(protocol):
    model = build(preprocessor=dict(type='mmseg_bisenetv2.SegDataPreProcessor',
                                    channels_last=True))
    file = io.BytesIO()
    torch.save(model, file, pickle_protocol=protocol)
    file.seek(0)
    again, expected = (predict(each) for each in (torch.load(file, weights_only=False), model))
    assert_same(pickle.loads(pickle.dumps(again, protocol)), expected)


def test_uint8_labels_for_other_heads():
    model = build()
    model.auxiliary_head = MODELS.build(dict(
        type='FCNHead', in_channels=16, channels=4, num_classes=4, in_index=4, norm_cfg=dict(
            type='BN'), loss_decode=dict(type='CrossEntropyLoss')))
    data = model.data_preprocessor(batch(), False)
    for sample in data['data_samples']:
        sample.gt_sem_seg = PixelData(data=torch.zeros(1, 64, 96, dtype=torch.uint8))
    losses = model.train().loss(data['inputs'], data['data_samples'])
    assert all(torch.isfinite(value).all() for value in losses.values())


@pytest.mark.parametrize('head', [
    dict(type='DMHead', filter_sizes=(1, 3), fusion=True),  # These two call Tensor.view.
    dict(type='DMHead', filter_sizes=(2, ), fusion=False), dict(type='PSPHead'),
    dict(type='DepthwiseSeparableFCNHead')], ids=lambda head: head['type'])
def test_other_heads_in_channels_last(head):
    results = []
    for kind, options in (('', {}), ('mmseg_bisenetv2.', dict(channels_last=True))):
        torch.manual_seed(0)
        model = MODELS.build(ConfigDict(
            type=f'{kind}EncoderDecoder',
            data_preprocessor=dict(PREPROCESSOR, type=f'{kind}SegDataPreProcessor',
                                   size=(64, 96), **options),
            backbone=dict(type='mmseg_bisenetv2.BiSeNetV2', norm_cfg=NORM, **WIDTHS),
            decode_head=dict(in_channels=16, channels=16, num_classes=4, in_index=0,
                             dropout_ratio=0, norm_cfg=NORM, align_corners=False, **head),
            train_cfg=dict(), test_cfg=dict(mode='whole'))).double()
        data = batch()
        for sample in data['data_samples']:
            sample.gt_sem_seg = PixelData(data=torch.ones(1, 64, 96, dtype=torch.long))
        data = model.data_preprocessor(data, True)
        loss = model.train()(**data, mode='loss')['decode.loss_ce']
        loss.backward()
        results.append((loss.detach(), model.backbone.bga.conv.conv.weight.grad,
                        predict(model.eval())[0].seg_logits.data))
    for theirs, ours in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-9 * float(theirs.abs().max()))


def test_backbones_that_give_a_single_map():
    """DDRNet and PIDNet do so when they predict, a tuple when they train."""
    config = dict(
        backbone=dict(type='DDRNet', channels=8, ppm_channels=8, norm_cfg=NORM),
        decode_head=dict(type='DDRHead', in_channels=32, channels=8, num_classes=4, norm_cfg=NORM,
                         align_corners=False, loss_decode=[dict(type='CrossEntropyLoss')] * 2),
        data_preprocessor=PREPROCESSOR, train_cfg=dict(), test_cfg=dict(mode='whole'))
    theirs, ours = (MODELS.build(ConfigDict(type=kind, **config)).eval()
                    for kind in ('EncoderDecoder', 'mmseg_bisenetv2.EncoderDecoder'))
    ours.load_state_dict(theirs.state_dict())
    for sample, expected in zip(predict(ours), predict(theirs), strict=True):
        assert torch.equal(sample.seg_logits.data, expected.seg_logits.data)


def test_padding_that_a_head_would_train_on_is_refused():
    with pytest.raises(ValueError, match=r'seg_pad_val=0, and FCNHead ignores 255.*'
                                         r'Expected.*dict\(seg_pad_val=255\)'):
        build(preprocessor=dict(seg_pad_val=0))
    auxiliary = dict(type='FCNHead', in_channels=16, channels=4, num_classes=4, in_index=4,
                     ignore_index=254)
    for heads in (auxiliary, [auxiliary]):
        with pytest.raises(ValueError, match='seg_pad_val=255, and FCNHead ignores 254'):
            build(auxiliary_head=heads)
