"""The backbone: against MMSegmentation's, and each of its options."""
import pytest
import torch
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
from small import WIDTHS as NARROW
from torch import nn

import mmseg_bisenetv2  # noqa: F401

from mmseg.registry import MODELS

WIDTHS = (128, 16, 32, 64, 128)
STRIDES = (8, 4, 8, 16, 32)


def build(**kwargs):
    return MODELS.build(dict(type='mmseg_bisenetv2.BiSeNetV2', **kwargs))


def randomise(net):
    """Gives every parameter and statistic a value of its own, biases included."""
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            nn.init.uniform_(value, 0.5, 1.5) if 'bn' in name or 'gap' in name else \
                nn.init.normal_(value, std=0.05)
    return net


@pytest.mark.parametrize('size', [(64, 128), (97, 161), (33, 47), (1, 1)])
@pytest.mark.parametrize('training', [False, True])
def test_equals_mmsegmentation(size, training):
    compare(size, training)


@pytest.mark.parametrize('options', [
    dict(align_corners=True),
    dict(detail_channels=(32, 32, 64), semantic_channels=(8, 16, 32, 64), bga_channels=64),
    dict(semantic_expansion_ratio=3),
    dict(out_indices=(0, 3)),
])
def test_equals_mmsegmentation_under_its_options(options):
    compare((64, 96), training=True, **options)


def compare(size, training, **options):
    theirs = randomise(MODELS.build(dict(type='BiSeNetV2', **options))).train(training)
    ours = build(**options).train(training)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, *size)
    for a, b in zip(ours(x), theirs(x), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert torch.equal(a, b)  # running statistics moved alike


def test_mmsegmentations_own_is_untouched():
    assert type(MODELS.build(dict(type='BiSeNetV2'))).__module__.startswith('mmseg.')
    assert type(build()).__module__ == 'mmseg_bisenetv2.models.bisenetv2'


@pytest.mark.parametrize('height, width', [(1, 1), (7, 4096 // 16), (32, 64), (65, 31), (100, 75)])
def test_any_size(height, width):
    outs = build().eval()(torch.randn(1, 3, height, width))
    for out, channels, stride in zip(outs, WIDTHS, STRIDES, strict=True):
        assert out.shape == (1, channels, -(-height // stride), -(-width // stride))


def test_norm_and_activation_reach_every_layer():
    net = build(norm_cfg=dict(type='GN', num_groups=4), act_cfg=dict(type='LeakyReLU'))
    kinds = {type(m) for m in net.modules()}
    assert nn.GroupNorm in kinds and nn.LeakyReLU in kinds
    assert not kinds & {nn.BatchNorm2d, nn.ReLU}
    stock = MODELS.build(dict(
        type='BiSeNetV2', norm_cfg=dict(type='GN', num_groups=4), act_cfg=dict(type='LeakyReLU')))
    assert nn.BatchNorm2d in {type(m) for m in stock.modules()}  # why this package exists


def test_norm_options_reach_every_layer():
    net = build(norm_cfg=dict(type='BN', eps=1e-3, momentum=0.01, requires_grad=False))
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 53
    assert all(m.eps == 1e-3 and m.momentum == 0.01 for m in norms)
    assert not any(p.requires_grad for m in norms for p in m.parameters())


def test_bga_bias():
    names = {name for name, _ in build().named_parameters()}
    without = {name for name, _ in build(bga_bias=False).named_parameters()}
    assert names - without == {
        'bga.detail_dwconv.0.pointwise_conv.conv.bias',
        'bga.semantic_dwconv.0.pointwise_conv.conv.bias'}
    assert not without - names


def test_bga_upsample_changes_the_aggregation_only():
    bilinear, nearest = build().eval(), build(bga_upsample='nearest').eval()
    nearest.load_state_dict(bilinear.state_dict())
    x = torch.randn(1, 3, 64, 96)
    head, *stages = bilinear(x)
    other_head, *other_stages = nearest(x)
    assert all(map(torch.equal, stages, other_stages))
    assert not torch.allclose(head, other_head)


def test_initialisation():
    def largest(net):
        """The largest weight of each convolution, in units of PyTorch's default bound."""
        return [float(m.weight.abs().max()) * m.weight[0].numel()**0.5
                for m in net.modules() if isinstance(m, nn.Conv2d)]

    default = build()
    default.init_weights()
    assert max(largest(default)) < 1.00001  # U(-1/sqrt(fan_in), 1/sqrt(fan_in))
    assert min(largest(default)) > 0.5
    kaiming = build(init_cfg=dict(type='Kaiming', layer='Conv2d'))
    kaiming.init_weights()
    assert max(largest(kaiming)) > 2.0


def test_large():
    net = build(width_factor=2, depth_factor=3).eval()
    assert [out.shape[1] for out in net(torch.randn(1, 3, 64, 64))] == [2 * w for w in WIDTHS]
    semantic = net.semantic
    assert [len(s) for s in (semantic.stage2, semantic.stage3, semantic.stage4)] == [6, 6, 12]


def test_out_indices():
    net, x = build().eval(), torch.randn(1, 3, 64, 64)
    some = build(out_indices=(0, 4)).eval()
    some.load_state_dict(net.state_dict())
    head, *stages = net(x)
    assert all(map(torch.equal, some(x), (head, stages[-1])))


def test_in_channels():
    assert build(in_channels=4).eval()(torch.randn(1, 4, 32, 32))[0].shape == (1, 128, 4, 4)


@pytest.mark.parametrize('option, value', [
    ('bga_upsample', 'bicubic'), ('out_indices', (0, 5)), ('out_indices', (-1, )),
    ('bga_channels', 64), ('out_indices', 0), ('depth_factor', 1.5), ('depth_factor', 0),
    ('semantic_channels', (32, 64, 128)),
])
def test_unknown_value_is_named(option, value):
    with pytest.raises(ValueError, match=option):
        build(**{option: value})


def test_gradient_reaches_every_parameter():
    net = build()
    sum(out.square().mean() for out in net(torch.randn(2, 3, 64, 64))).backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None]


@pytest.mark.parametrize('with_cp', [None, 'activations', 'stages'])
@pytest.mark.parametrize('training', [True, False])
def test_efficient_conv_bn_eval(with_cp, training):
    """MMEngine's, which rewrites the graph that torch.fx makes of a module."""
    def network():
        torch.manual_seed(0)
        return build(with_cp=with_cp, **NARROW).train(training)

    rewritten, expected = network(), network()
    turn_on_efficient_conv_bn_eval(torch.nn.ModuleDict(dict(backbone=rewritten)), 'backbone')
    assert 'efficient_conv_bn_eval' in rewritten.forward.__self__.code
    for model in (rewritten, expected):  # As for fine-tuning, where it takes effect.
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
    x = torch.randn(1, 3, 72, 104)
    results = []
    for model in (rewritten, expected):
        outputs = model(x)
        sum(output.square().mean() for output in outputs).backward()
        results.append([*outputs, *(p.grad for p in model.parameters())])
    for found, wanted in zip(*results, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_training_batch_of_one_picture():
    network = build(**NARROW).train()
    with pytest.raises(ValueError, match=r'batch of one picture.*batch_size=2.*drop_last=True'):
        network(torch.randn(1, 3, 64, 96))
    for norm in (dict(type='BN'), dict(type='GN', num_groups=2)):
        network = build(norm_cfg=norm, **NARROW).train()
        if norm['type'] == 'BN':
            network.semantic.stage4_CEBlock.eval()
        assert len(network(torch.randn(1, 3, 64, 96))) == 5
    whole = torch.compile(build(**NARROW).train(), backend='eager', fullgraph=True)
    assert len(whole(torch.randn(2, 3, 64, 96))) == 5
