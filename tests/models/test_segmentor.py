import copy

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import PixelData
from small import batch, build, image

import mmseg_bisenetv2  # noqa: F401
from mmseg_bisenetv2.models.folding import FoldedCopy, fold_batch_norm

from mmseg.apis import inference_model
from mmseg.registry import MODELS


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


def change_by_optimiser(model):
    torch.optim.SGD(model.parameters(), 0.5).zero_grad()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), 0.1).step()


def change_by_loading(model):
    model.load_state_dict({k: v * 1.5 if v.is_floating_point() else v
                           for k, v in model.state_dict().items()})


def change_by_assignment(model):
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.5


def change_by_exchange(model):  # as MMEngine's EMAHook does, before the validation sets its mode
    for parameter in model.parameters():
        parameter.data.copy_(parameter.data * 1.5)
    model.eval()


def change_by_fused_optimiser(model):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), 0.1, fused=True).step()
    model.eval()


def change_statistics(model):
    model.train()
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 64))
    model.eval()


@pytest.mark.parametrize('change', [
    change_by_optimiser, change_by_fused_optimiser, change_by_loading, change_by_assignment,
    change_by_exchange, change_statistics])
def test_folded_copy_follows_the_weights(change):
    model = build()
    before = predict(model)[0].seg_logits.data
    change(model)
    after = predict(model)[0].seg_logits.data
    with torch.enable_grad():  # no folding
        expected = model.test_step(batch())[0].seg_logits.data
    assert not torch.allclose(before, after, atol=1e-3)
    assert torch.allclose(after, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_folding_leaves_the_model_alone():
    model = build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    names = [name for name, _ in model.named_parameters()]
    predict(model)
    assert [name for name, _ in model.named_parameters()] == names
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) and value.is_contiguous()
    assert all(p.requires_grad for p in model.parameters())
    copied = copy.deepcopy(model)
    assert copied._folded.kept == (None, None)
    assert_same(predict(copied), predict(model))


def test_what_is_not_folded():
    network = build().backbone
    copies = FoldedCopy()
    assert copies.of(network) is network  # gradients are wanted
    with torch.no_grad():
        folded = copies.of(network)
        assert folded is not network and folded is copies.of(network)
        handle = network.bga.register_forward_hook(lambda *_: None)
        assert copies.of(network) is network
        handle.remove()
        network.train()
        assert copies.of(network) is network
        with pytest.raises(ValueError, match=r'Call \.eval\(\) first'):
            fold_batch_norm(network)
    with torch.inference_mode():
        inferred = build()
        assert copies.of(inferred) is inferred
        assert_same(predict(inferred), predict(build(False)))


def test_folded_network_is_the_same_function():
    network = build().backbone
    with torch.no_grad():
        x = torch.randn(2, 3, 64, 96)
        folded = fold_batch_norm(network)
        assert not any(isinstance(m, torch.nn.BatchNorm2d) and n.endswith('.bn')
                       for n, m in folded.named_modules())
        for a, b in zip(folded(x), network(x), strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def test_unknown_flip():
    with pytest.raises(ValueError, match="flip_direction is 'diagonal'"):
        predict(build(), meta=dict(flip=True, flip_direction='diagonal'))


def test_subclass_with_features_of_its_own():
    model = build()

    class Other(type(model)):
        def extract_feat(self, inputs):
            return super().extract_feat(inputs * 0)

    model.__class__ = Other
    assert predict(model)[0].seg_logits.data.std((1, 2)).max() < 1
    assert type(predict(model)[0].seg_logits) is PixelData


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
