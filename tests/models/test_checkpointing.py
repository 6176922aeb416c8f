"""Activation checkpointing, against the same network and head without it."""
import copy

import pytest
import torch
from small import NORM, WIDTHS

from mmseg_bisenetv2.models import FCNHead

from mmseg.registry import MODELS

CHOICES = ('activations', 'stages')
SIZE = (64, 96)


class Plain(torch.nn.Module):
    """A network that gives a scalar, and its input."""

    def __init__(self, with_cp, norm_cfg=NORM, act_cfg=dict(type='ReLU'), head=()):  # noqa: B006
        super().__init__()
        torch.manual_seed(0)
        self.x = torch.randn(3, 3, *SIZE)
        cfg = dict(norm_cfg=norm_cfg, act_cfg=act_cfg, with_cp=with_cp)
        self.backbone = MODELS.build(dict(type='mmseg_bisenetv2.BiSeNetV2', **WIDTHS, **cfg))
        options = dict(cfg, channels=128, num_convs=2, concat_input=False, dropout_ratio=0.5)
        self.head = MODELS.build(dict(
            type='mmseg_bisenetv2.FCNHead', in_channels=16, in_index=0, num_classes=3,
            init_cfg=None, **{**options, **dict(head)}))

    def forward(self, x):
        torch.manual_seed(1)  # of the dropout
        features = self.backbone(x)
        return self.head(features).square().mean() + features[4].square().mean()


def step(model, times=1):
    """Bytes that autograd keeps, the loss, the gradients and the buffers after one step."""
    x = model.x.clone().requires_grad_()
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        loss = model(x)
    size = sum(t.nbytes for t in kept.values())
    kept.clear()
    for i in range(times):
        gradients = torch.autograd.grad(
            loss, [x, *model.parameters()], retain_graph=i + 1 < times)
    return size, loss, gradients, dict(model.named_buffers())


def assert_equal(ours, expected):
    _, loss, gradients, buffers = ours
    _, expected_loss, expected_gradients, expected_buffers = expected
    assert torch.equal(loss, expected_loss)
    assert len(gradients) == len(expected_gradients)
    assert all(map(torch.equal, gradients, expected_gradients))
    assert buffers.keys() == expected_buffers.keys()
    for name, value in expected_buffers.items():
        assert torch.equal(buffers[name], value), name


def test_equal_to_the_last_bit_with_fewer_bytes_kept():
    plain = Plain(None)
    models = {choice: Plain(choice) for choice in CHOICES}
    for _ in range(2):  # the second step has the running statistics of the first
        expected = step(plain)
        results = {choice: step(model) for choice, model in models.items()}
        for result in results.values():
            assert_equal(result, expected)
        assert results['activations'][0] < 0.7 * expected[0]
        assert results['stages'][0] < 0.4 * expected[0]
    assert all(value == 2 for name, value in expected[3].items()
               if name.endswith('num_batches_tracked'))


@pytest.mark.parametrize('with_cp', CHOICES)
def test_autocast(with_cp):
    with torch.autocast('cpu', torch.bfloat16):
        ours, expected = step(Plain(with_cp)), step(Plain(None))
    assert_equal(ours, expected)
    assert ours[0] < 0.75 * expected[0]


@pytest.mark.parametrize('with_cp', CHOICES)
@pytest.mark.parametrize('options', [
    dict(norm_cfg=dict(type='GN', num_groups=2)), dict(act_cfg=dict(type='LeakyReLU')),
    dict(norm_cfg=dict(type='BN', momentum=None)),
    dict(norm_cfg=dict(type='BN', track_running_stats=False)), dict(head=dict(num_convs=1)),
    dict(head=dict(concat_input=True)), dict(head=dict(num_convs=0, channels=16)),
    dict(head=dict(act_cfg=None))], ids=str)
def test_other_layers(with_cp, options):
    assert_equal(step(Plain(with_cp, **options)), step(Plain(None, **options)))


@pytest.mark.parametrize('with_cp', CHOICES)
def test_several_backwards(with_cp):
    ours, plain = Plain(with_cp), Plain(None)
    assert_equal(step(ours, times=3), step(plain, times=3))
    results = []
    for model in (ours, plain):  # one layer's gradient first, as GradNorm asks for
        loss = model(model.x)
        first = torch.autograd.grad(loss, model.head.conv_seg.weight, retain_graph=True)
        results.append(first + torch.autograd.grad(loss, list(model.parameters())))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize('with_cp', CHOICES)
def test_second_derivatives(with_cp):
    results = []
    x = torch.randn(2, 16, 4, 6)
    for model in (Plain(with_cp), Plain(None)):
        torch.manual_seed(1)  # of the dropout
        parameters = list(model.head.parameters())
        gradients = torch.autograd.grad(
            model.head([x]).square().mean(), parameters, create_graph=True)
        penalty = sum(gradient.square().sum() for gradient in gradients)
        results.append(torch.autograd.grad(penalty, parameters, allow_unused=True))
    for ours, expected in zip(*results, strict=True):
        assert (ours is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('with_cp', CHOICES)
def test_hooks_are_called_once(with_cp):
    def watched(model):
        seen = []
        layer = model.backbone.detail.detail_branch[1][0]
        for module in (layer, model.backbone.detail.detail_branch[0], model.head.convs):
            module.register_forward_hook(lambda module, inputs, output: seen.append(output))
        model.head.convs[0].bn.register_forward_pre_hook(lambda *_: seen.append(None))
        model.backbone.bga.register_full_backward_hook(lambda *_: seen.append(None))
        layer.conv.weight.register_hook(lambda gradient: seen.append(None) or 2 * gradient)
        layer.bn.weight.register_post_accumulate_grad_hook(lambda _: seen.append(None))
        return seen

    models = Plain(with_cp), Plain(None)
    seen = [watched(model) for model in models]
    assert_equal(*map(step, models))
    for model in models:
        model(model.x).backward()
    assert len(seen[0]) == len(seen[1]) == 13


def test_head_whose_layers_are_run_in_another_way():
    class Doubling(FCNHead):
        def _forward_feature(self, inputs):
            return 2 * super()._forward_feature(inputs)

    ours, plain = Plain('activations'), Plain(None)
    ours.head.__class__ = plain.head.__class__ = Doubling
    assert_equal(step(ours), step(plain))
    replaced, plain = Plain('activations'), Plain(None)
    for head in (replaced.head, plain.head):
        head._forward_feature = lambda inputs, given=head._forward_feature: 2 * given(inputs)
    assert_equal(step(replaced), step(plain))


@pytest.mark.parametrize('with_cp', CHOICES)
def test_evaluation(with_cp):
    ours, plain = Plain(with_cp).eval(), Plain(None).eval()
    before = copy.deepcopy(ours.state_dict())
    assert_equal(step(ours), step(plain))  # with gradients: recomputed with the statistics as given
    with torch.no_grad():
        assert torch.equal(ours(ours.x), plain(plain.x))
    for name, value in ours.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize('with_cp', CHOICES)
@pytest.mark.filterwarnings('ignore')
def test_under_compile(with_cp):
    heads = Plain(with_cp).head, Plain(None).head
    x = torch.randn(2, 16, 8, 12)
    for head, run in zip(heads, (torch.compile(heads[0], backend='eager'), heads[1]), strict=True):
        head.dropout = None
        run([x]).square().mean().backward()
    for ours, expected in zip(*(head.parameters() for head in heads), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-4, atol=1e-6)
    torch.compiler.reset()


def test_no_convolution_is_computed_twice_for_activations():
    def convolutions(with_cp):
        model = Plain(with_cp)
        with torch.profiler.profile() as profile:
            model(model.x).backward()
        # What "aten::convolution" calls once autograd has what it keeps.
        return sum(event.name == 'aten::_convolution' for event in profile.events())

    once = convolutions(None)
    assert convolutions('activations') == once > 40
    assert convolutions('stages') > 1.5 * once


def test_layers_that_synchronise_are_not_computed_again():
    norm_cfg = dict(type='SyncBN')
    ours, expected = step(Plain('activations', norm_cfg)), step(Plain(None, norm_cfg))
    assert_equal(ours, expected)
    assert ours[0] == expected[0]


@pytest.mark.parametrize('given, meant', [
    (None, None), (False, None), (True, 'stages'), ('activations', 'activations'),
    ('stages', 'stages')])
def test_choices(given, meant):
    model = Plain(given)
    assert model.backbone.with_cp == model.head.with_cp == meant


@pytest.mark.parametrize('given', ['stage', 'none', 1, 'True'])
@pytest.mark.parametrize('part', [
    dict(type='mmseg_bisenetv2.BiSeNetV2'),
    dict(type='mmseg_bisenetv2.FCNHead', in_channels=4, channels=4, num_classes=2, norm_cfg=NORM)])
def test_anything_else_is_refused(part, given):
    with pytest.raises(ValueError, match=rf"with_cp={given!r}: expected None, 'activations'"):
        MODELS.build(dict(part, with_cp=given))


def test_activations_need_a_normalisation():
    with pytest.raises(ValueError, match="'activations' without norm_cfg"):
        MODELS.build(dict(type='mmseg_bisenetv2.FCNHead', in_channels=4, channels=4, num_classes=2,
                          with_cp='activations'))
