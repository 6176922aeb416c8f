"""The head: drop-in for MMSegmentation's, but for the initialisation and the mean of the loss."""
import pytest
import torch
from golden import golden_batch
from mmengine.structures import PixelData

import mmseg_bisenetv2  # noqa: F401

from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

HEAD = dict(in_channels=16, channels=32, num_convs=2, concat_input=False, num_classes=19,
            in_index=0, norm_cfg=dict(type='BN'))


def build(scope='mmseg_bisenetv2.', **kwargs):
    return MODELS.build({**HEAD, 'type': f'{scope}FCNHead', **kwargs})


def test_same_parameters_and_outputs():
    theirs, ours = build(scope='').eval(), build().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = [torch.randn(2, 16, 9, 7)]
    assert torch.equal(ours(x), theirs(x))


def test_arguments_by_position():
    head = MODELS.get('mmseg_bisenetv2.FCNHead')(1, 1, False, in_channels=4, channels=8,
                                                 num_classes=2)
    assert len(head.convs) == 1 and head.convs[0].kernel_size == (1, 1)


@pytest.mark.parametrize('concat_input', [False, True])
def test_without_init_cfg_pytorchs_default_is_kept(concat_input):
    head = build(init_cfg=None, concat_input=concat_input)
    head.init_weights()
    for conv in (m for m in head.modules() if isinstance(m, torch.nn.Conv2d)):
        largest = conv.weight.abs().max() * conv.weight[0].numel()**0.5
        assert 0.5 < largest < 1.00001  # U(-1/sqrt(fan_in), 1/sqrt(fan_in))


def test_with_init_cfg_it_is_mmsegmentations():
    head = build()
    head.init_weights()
    assert head.conv_seg.weight.std().item() == pytest.approx(0.01, rel=0.2)


def test_loss_is_the_mean_over_valid_pixels_only():
    _, labels = golden_batch()
    share = (labels != 255).float().mean().item()
    assert 0.7 < share < 0.9
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]
    x = [torch.randn(2, 16, 16, 32)]
    ours = build(dropout_ratio=0, loss_decode=dict(type='mmseg_bisenetv2.UpsampleCrossEntropy'))
    theirs = build('', dropout_ratio=0)  # divides by all pixels
    theirs.load_state_dict(ours.state_dict())
    ratio = theirs.loss(x, samples, None)['loss_ce'] / ours.loss(x, samples, None)['loss_ce']
    assert ratio.item() == pytest.approx(share, rel=1e-5)


def test_labels_that_a_subclass_stacks_in_its_own_way():
    class AllOfClassZero(MODELS.get('mmseg_bisenetv2.FCNHead')):
        def _stack_batch_gt(self, batch_data_samples):
            return torch.zeros_like(super()._stack_batch_gt(batch_data_samples))

    head = build(loss_decode=dict(type='mmseg_bisenetv2.UpsampleCrossEntropy')).eval()
    head.__class__ = AllOfClassZero
    x = [torch.randn(2, 16, 16, 32)]
    losses = [head.loss(x, [SegDataSample(gt_sem_seg=PixelData(data=torch.full(
        (1, 16, 32), label, dtype=torch.uint8))) for _ in range(2)], None)['loss_ce']
        for label in (0, 7)]
    assert losses[0] == losses[1]


def test_uint8_labels_with_mmsegmentations_loss():
    labels = golden_batch()[1].to(torch.uint8)
    x = [torch.randn(2, 16, 16, 32)]
    losses = []
    for dtype in (torch.uint8, torch.int64):
        samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None].to(dtype)))
                   for label in labels]
        torch.manual_seed(0)
        losses.append(build().loss(x, samples, None)['loss_ce'])
    assert losses[0] == losses[1]


LOSSES = [dict(type='CrossEntropyLoss'), dict(type='mmseg_bisenetv2.UpsampleCrossEntropy'),
          [dict(type='DiceLoss'), dict(type='CrossEntropyLoss', avg_non_ignore=True)]]


def with_weights(loss, weights):
    return [*loss[:-1], dict(loss[-1], class_weight=weights)] if isinstance(loss, list) else dict(
        loss, class_weight=weights)


@pytest.mark.parametrize('loss', LOSSES)
def test_softmax_over_one_channel_is_refused(loss):
    for classes in (dict(num_classes=1), dict(num_classes=2, out_channels=1)):
        with pytest.raises(ValueError, match=r"one output channel.*use_sigmoid=True\)"):
            build(loss_decode=loss, **classes)
    sigmoid = build(num_classes=2, out_channels=1, threshold=0.5,
                    loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True))
    samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.ones(1, 16, 32, dtype=torch.uint8)))]
    assert sigmoid.loss([torch.randn(1, 16, 16, 32)], samples, None)['loss_ce'] > 0


@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('count', [18, 20])
def test_other_number_of_class_weights_is_refused(loss, count):
    build(loss_decode=with_weights(loss, [1.0] * 19))
    with pytest.raises(ValueError, match=f'has {count} numbers for 19 output channels'):
        build(loss_decode=with_weights(loss, [1.0] * count))
