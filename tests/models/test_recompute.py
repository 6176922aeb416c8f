"""What is computed again in backward, against autograd that keeps everything."""
import copy

import pytest
import torch
from mmcv.cnn import ConvModule as MMCVConvModule
from small import build

from mmseg_bisenetv2.models import recompute
from mmseg_bisenetv2.models.fcn_head import FCNHead
from mmseg_bisenetv2.models.recompute import ConvModule, NormReLU

from mmseg.models.decode_heads import FCNHead as MMSegFCNHead

HEAD = dict(in_channels=4, channels=32, num_convs=2, in_index=0, concat_input=False, num_classes=3,
            dropout_ratio=0.5, norm_cfg=dict(type='BN'))


@pytest.fixture(autouse=True)
def every_size(monkeypatch):
    """The tensors of these tests are small."""
    monkeypatch.setattr(recompute, 'LEAST', 0)


def chain(kind, **kwargs):
    torch.manual_seed(0)
    options = dict(dict(norm_cfg=dict(type='BN')), **kwargs)
    return torch.nn.Sequential(
        kind(4, 16, 3, **dict(dict(padding=1), **options)), kind(16, 16, 3, stride=2, **options),
        torch.nn.AvgPool2d(2), kind(16, 8, 1, **options))


def heads(dropout_ratio=0.5):
    """Ours and MMSegmentation's, of the same weights, and features for them."""
    ours, theirs = (kind(**dict(HEAD, dropout_ratio=dropout_ratio)) for kind in (
        FCNHead, MMSegFCNHead))
    theirs.load_state_dict(ours.state_dict())
    return [(head, lambda x, head=head: head([x])) for head in (ours, theirs)]


def chains():
    return [(module, module) for module in (chain(ConvModule), chain(MMCVConvModule))]


def kept_and_gradients(module, call, x, times=1):
    """Bytes that autograd keeps, gradients, and buffers, after one step."""
    tensors = {}
    x = x.clone().requires_grad_()
    parameters = [x, *module.parameters()]
    torch.manual_seed(1)  # of the dropout
    with torch.autograd.graph.saved_tensors_hooks(
            lambda t: tensors.setdefault(t.data_ptr(), t), lambda t: t):
        loss = call(x).square().mean()
    kept = sum(t.nbytes for t in tensors.values())
    tensors.clear()
    for i in range(times):
        gradients = torch.autograd.grad(loss, parameters, retain_graph=i + 1 < times)
    return kept, loss, gradients, dict(module.named_buffers())


@pytest.mark.parametrize('make', [chains, heads, lambda: heads(0), lambda: heads(1.0)])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_same_numbers_and_less_kept(make, layout):
    (ours, call), (theirs, other) = make()
    ours.double(), theirs.double()
    x = torch.randn(3, 4, 16, 24, dtype=torch.float64).contiguous(memory_format=layout)
    for times in (1, 2):  # the second with the running statistics of the first, and backward twice
        kept, loss, gradients, buffers = kept_and_gradients(ours, call, x, times)
        all_kept, expected, expected_gradients, expected_buffers = kept_and_gradients(
            theirs, other, x, times)
        assert kept < 0.75 * all_kept
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        for gradient, reference in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-12)
        for key, value in expected_buffers.items():
            assert torch.equal(buffers[key], value), key


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    (ours, call), (theirs, other) = heads()
    x = torch.randn(3, 4, 16, 24)
    with torch.autocast('cpu', dtype):
        kept, loss, gradients, _ = kept_and_gradients(ours, call, x)
        all_kept, expected, expected_gradients, _ = kept_and_gradients(theirs, other, x)
    assert kept < 0.75 * all_kept and loss.item() == pytest.approx(expected.item(), rel=1e-3)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == reference.dtype
        assert (gradient - reference).norm() <= 0.02 * reference.norm() + 1e-6


@pytest.mark.parametrize('options', [
    dict(norm_cfg=dict(type='GN', num_groups=2)), dict(norm_cfg=None), dict(act_cfg=None),
    dict(act_cfg=dict(type='LeakyReLU')), dict(norm_cfg=dict(type='BN', requires_grad=False)),
    dict(norm_cfg=dict(type='BN', affine=False, requires_grad=False)),
    dict(norm_cfg=dict(type='BN', track_running_stats=False)),
    dict(norm_cfg=dict(type='BN', momentum=None))], ids=str)
def test_other_layers_are_mmcvs(options, monkeypatch):
    module, other = chain(ConvModule, **options), chain(MMCVConvModule, **options)
    other.load_state_dict(module.state_dict())
    monkeypatch.setattr(NormReLU, 'apply', None)
    x = torch.randn(2, 4, 16, 24)
    torch.testing.assert_close(module(x), other(x), rtol=0, atol=0)


def test_synchronised_norm_and_half_weights_are_left_alone():
    x = torch.randn(2, 16, 16, 24)
    assert recompute._applies(chain(ConvModule)[0], x)
    assert not recompute._applies(chain(ConvModule, norm_cfg=dict(type='SyncBN'))[0], x)
    assert not recompute._applies(chain(ConvModule).half()[0], x)


def test_gradient_of_one_layer_before_all():
    """As GradNorm asks for; the dropout must count once."""
    (ours, call), (theirs, other) = heads()
    x = torch.randn(3, 4, 16, 24, dtype=torch.float64)
    results = []
    for head, forward in ((ours.double(), call), (theirs.double(), other)):
        torch.manual_seed(1)
        loss = forward(x).square().mean()
        first = torch.autograd.grad(loss, head.conv_seg.weight, retain_graph=True)
        results.append(first + torch.autograd.grad(loss, list(head.parameters())))
    for gradient, reference in zip(*results, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-12)


def test_dropout_leaves_a_map_that_others_see(monkeypatch):
    backbone = chain(ConvModule)
    options = dict(HEAD, in_channels=8, channels=8)
    shared = FCNHead(**dict(options, num_convs=0))
    watched = FCNHead(**dict(options, num_convs=1))
    seen = []
    watched.convs.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = backbone(torch.randn(2, 4, 16, 24))
    before = x.detach().clone()
    (shared([x]).sum() + watched([x]).sum()).backward()
    assert torch.equal(x, before)
    assert (seen[0] == 0).double().mean() < 0.6  # half by ReLU, half of the rest by dropout


def test_inference_and_frozen_statistics_are_untouched(monkeypatch):
    module = chain(ConvModule)
    x = torch.randn(2, 4, 16, 24)
    monkeypatch.setattr(NormReLU, 'apply', None)
    before = copy.deepcopy(module.eval().state_dict())
    module(x).sum().backward()
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])
    with torch.no_grad():
        module.train()(x)


def test_hooks_are_called_and_a_single_value_is_refused():
    module = chain(ConvModule)
    seen = []
    module[0].norm.register_forward_hook(lambda *args: seen.append('norm'))
    module[1].activate.register_forward_pre_hook(lambda *args: seen.append('activate'))
    module(torch.randn(2, 4, 16, 24))
    assert seen == ['norm', 'activate']
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        module[3](torch.randn(1, 16, 1, 1))


def test_the_network_keeps_little_more_than_half(monkeypatch):
    kept = []
    for least in (0, 10 ** 12):
        monkeypatch.setattr(recompute, 'LEAST', least)
        model = build().train()
        kept.append(kept_and_gradients(
            model.backbone, lambda x, model=model: model.backbone(x)[0],
            torch.randn(2, 3, 64, 96))[0])
    assert kept[0] < 0.7 * kept[1]


@pytest.mark.parametrize('least, applies', [(9856, True), (9857, False)])  # 2 x 16 x 14 x 22
def test_small_tensors_are_kept(monkeypatch, least, applies):
    monkeypatch.setattr(recompute, 'LEAST', least)
    y = chain(ConvModule, padding=0)[0](torch.randn(2, 4, 16, 24))
    assert isinstance(y.grad_fn, NormReLU._backward_cls) == applies
