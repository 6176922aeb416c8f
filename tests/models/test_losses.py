"""The fused loss against F.interpolate + F.cross_entropy and MMSegmentation's head."""
import importlib.util
import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.structures import PixelData

import mmseg_bisenetv2  # noqa: F401
from mmseg_bisenetv2.models import losses as module
from mmseg_bisenetv2.models.losses import UpsampleCrossEntropy, upsample_cross_entropy

from mmseg.models.losses import CrossEntropyLoss
from mmseg.models.losses import accuracy as mmseg_accuracy
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

CLASSES = 5
SIZES = [  # of the logits, of the labels
    ((4, 6), (32, 48)), ((5, 7), (20, 28)), ((3, 2), (96, 64)), ((7, 3), (50, 51)),
    ((9, 8), (9, 8)), ((20, 30), (11, 7)), ((1, 1), (6, 5)), ((4, 3), (1, 1))]


@pytest.fixture(params=[600_000, 3_000], ids=['one tile', 'many tiles'])
def tile_bytes(request, monkeypatch):
    monkeypatch.setitem(module.TILE_BYTES, 'cpu', request.param)


def data(small, large, dtype=torch.float64, classes=CLASSES, batch=2, ignored=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes, *small, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, classes, (batch, *large), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return logits.to(dtype).requires_grad_(), labels


def plain(logits, labels, align_corners=False, **kwargs):
    full = F.interpolate(logits, labels.shape[1:], mode='bilinear', align_corners=align_corners)
    return F.cross_entropy(full, labels, ignore_index=255, **kwargs), full


@pytest.mark.usefixtures('tile_bytes')
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('small, large', SIZES)
def test_equals_interpolate_and_cross_entropy(small, large, align_corners, weighted, reduction):
    logits, labels = data(small, large)
    labels[0, 0, 0] = 1  # at least one is valid
    before = labels.clone()
    class_weight = torch.tensor([0.5, 2, 1, 0, 3], dtype=torch.float64) if weighted else None
    expected, full = plain(
        logits, labels, align_corners, weight=class_weight, reduction=reduction)
    for given_labels in (labels, labels.to(torch.uint8)):
        loss, accuracy = upsample_cross_entropy(
            logits, given_labels, class_weight=class_weight, align_corners=align_corners,
            reduction=reduction)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        slope = torch.randn_like(expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(value, logits, slope, retain_graph=True)[0]
              for value in (loss, expected)), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(accuracy, mmseg_accuracy(full, labels, ignore_index=255))
    assert torch.equal(labels, before)


@pytest.mark.usefixtures('tile_bytes')
@settings(max_examples=40, deadline=None)
@given(small=st.tuples(st.integers(1, 20), st.integers(1, 20)),
       large=st.tuples(st.integers(1, 40), st.integers(1, 40)),
       classes=st.integers(1, 30), align_corners=st.booleans(), seed=st.integers(0, 9))
def test_any_size(small, large, classes, align_corners, seed):
    logits, labels = data(small, large, classes=classes, batch=1, ignored=0.5, seed=seed)
    expected, _ = plain(logits, labels, align_corners, reduction='sum')
    loss, _ = upsample_cross_entropy(
        logits, labels, align_corners=align_corners, reduction='sum')
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, logits)[0],
        rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('autocast', [False, True])
def test_computes_in_float32(dtype, autocast):
    logits, labels = data((8, 8), (64, 64), dtype)
    exact = logits.detach().double().requires_grad_()
    expected, _ = plain(exact, labels)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        loss, _ = upsample_cross_entropy(logits, labels)
    scale = 65536.0 if dtype == torch.float16 else 1.0
    (scale * loss).backward()
    (scale * expected).backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(
        logits.grad.double(), exact.grad, atol=0.0,
        rtol={torch.float32: 1e-4, torch.bfloat16: 5e-3, torch.float16: 1e-3}[dtype])


def test_large_and_channels_last_logits():
    logits, labels = data((4, 6), (32, 48), torch.float32)
    logits = (1e4 * logits.detach()).contiguous(memory_format=torch.channels_last)
    logits.requires_grad_()
    loss, _ = upsample_cross_entropy(logits, labels)
    loss.backward()
    expected, _ = plain(logits, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert logits.grad.isfinite().all()


@pytest.mark.usefixtures('tile_bytes')
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
def test_gradcheck(reduction):
    logits, labels = data((3, 4), (7, 9), classes=3)
    weight = torch.rand(labels.shape, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: upsample_cross_entropy(x, labels, weight, reduction=reduction)[0], logits)


@pytest.mark.parametrize('class_weight', [None, [1.0] * CLASSES])
def test_all_ignored(class_weight):
    logits, labels = data((4, 6), (32, 48), torch.float32, ignored=2)
    loss, accuracy = upsample_cross_entropy(logits, labels, class_weight=class_weight)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()
    assert accuracy.isfinite()


def test_keeps_only_the_small_gradient():
    logits, labels = data((16, 16), (128, 128), torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
            lambda x: saved.append(x.numel() * x.element_size()) or x, lambda x: x):
        loss, _ = upsample_cross_entropy(logits, labels)
    assert 0 < sum(saved) <= 4 * logits.numel() + 64
    loss.backward()
    with torch.no_grad():
        assert not upsample_cross_entropy(logits, labels)[0].requires_grad


def test_second_derivatives_are_refused():
    logits, labels = data((4, 6), (32, 48))
    with pytest.raises(RuntimeError, match='cannot be differentiated twice'):  # gradient penalty
        torch.autograd.grad(upsample_cross_entropy(logits, labels)[0], logits, create_graph=True)
    slope = torch.ones((), dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match='cannot be differentiated twice'):
        torch.autograd.grad(upsample_cross_entropy(logits, labels, reduction='none')[0].sum(),
                            logits, slope, create_graph=True)
    for transform in (torch.func.grad, torch.func.hessian):
        with pytest.raises(RuntimeError, match=r"nor by torch\.func.*avg_non_ignore=True"):
            transform(lambda x: upsample_cross_entropy(x, labels)[0])(logits.detach())


def test_twice_in_one_graph():
    logits, labels = data((4, 6), (32, 48))
    features = 2 * logits
    ours = (upsample_cross_entropy(features, labels)[0]
            + 3 * upsample_cross_entropy(features, labels, reduction='sum')[0])
    theirs = plain(features, labels)[0] + 3 * plain(features, labels, reduction='sum')[0]
    for _ in range(2):  # the second adds to the first
        expected, = torch.autograd.grad(theirs, logits, retain_graph=True)
        ours.backward(retain_graph=True)
    torch.testing.assert_close(logits.grad, 2 * expected)


def test_under_compile():
    logits, labels = data((4, 6), (32, 48), torch.float32)
    head = torch.nn.Conv2d(CLASSES, CLASSES, 1)
    criterion = UpsampleCrossEntropy()

    def step(x):
        return 2 * criterion(head(x), labels)

    expected = step(logits)
    grad, = torch.autograd.grad(expected, logits)
    loss = torch.compile(step, backend='aot_eager')(logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], grad)


def test_says_what_is_wrong():
    logits, labels = data((4, 6), (32, 48))
    with pytest.raises(ValueError, match=r'expected \(N, C, h, w\) and \(N, H, W\)'):
        upsample_cross_entropy(logits, labels[:, None])
    with pytest.raises(ValueError, match="'median'"):
        upsample_cross_entropy(logits, labels, reduction='median')
    for weights in ([1] * (CLASSES - 1), [1] * (CLASSES + 1)):
        with pytest.raises(ValueError, match=f'{len(weights)} numbers, expected one for each of'):
            upsample_cross_entropy(logits, labels, class_weight=weights)
    labels[0, :2, 0] = torch.tensor([77, -3])
    for class_weight in (None, [1] * CLASSES):
        with pytest.raises(ValueError, match=r'labels \[-3, 77\] are neither among the 5 classes'):
            upsample_cross_entropy(logits, labels, class_weight=class_weight)


def head(kind, loss, **kwargs):
    torch.manual_seed(0)
    return MODELS.build(dict(
        type=kind, in_channels=8, channels=8, num_convs=1, num_classes=CLASSES, in_index=0,
        concat_input=False, dropout_ratio=0, loss_decode=loss, **kwargs)).double()


def head_loss(head, features, labels):
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]
    result = head.loss((features,), samples, None)
    gradient, = torch.autograd.grad(result['loss_ce'], features)
    return result['loss_ce'], gradient, result['acc_seg']


@pytest.mark.usefixtures('tile_bytes')
@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('class_weight, ignored', [
    (None, 0.2), (None, 0.9), (None, 2), ([0.5, 2.0, 1.0, 0.1, 3.0], 0.2)])
@pytest.mark.parametrize('sampler', [
    None, dict(thresh=0.7, min_kept=50), dict(thresh=1e-9, min_kept=300),
    dict(thresh=0.1, min_kept=10**6), dict(thresh=None, min_kept=300)], ids=str)
def test_head_equals_mmseg(align_corners, class_weight, sampler, ignored):
    options = dict(align_corners=align_corners)
    if sampler:
        options['sampler'] = dict(type='OHEMPixelSampler', **sampler)
    loss = dict(class_weight=class_weight, loss_weight=0.4)
    ours = head('mmseg_bisenetv2.FCNHead', dict(
        loss, type='mmseg_bisenetv2.UpsampleCrossEntropy'), **options)
    theirs = head('FCNHead', dict(
        loss, type='CrossEntropyLoss', avg_non_ignore=True), **options)
    theirs.load_state_dict(ours.state_dict())
    labels = data((1, 1), (32, 40), ignored=ignored)[1]
    if class_weight:  # MMSegmentation looks up the ignored label's weight too
        labels[labels == 255] = 4
        for each in (ours, theirs):
            each.ignore_index = 4
    features = torch.randn(2, 8, 4, 5, dtype=torch.float64, requires_grad=True)
    for mine, other in zip(head_loss(ours, features, labels), head_loss(theirs, features, labels),
                           strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-12, check_dtype=False)


@pytest.mark.parametrize('sampler', [None, dict(type='OHEMPixelSampler', min_kept=300)])
def test_other_losses_go_the_old_way(sampler):
    labels = data((1, 1), (32, 40))[1]
    features = torch.randn(2, 8, 4, 5, dtype=torch.float64, requires_grad=True)
    cross_entropy = dict(type='CrossEntropyLoss', avg_non_ignore=True)
    fused = dict(type='mmseg_bisenetv2.UpsampleCrossEntropy')
    reference = head('FCNHead', cross_entropy, sampler=sampler)
    expected = head_loss(reference, features, labels)
    for kind, loss in (('mmseg_bisenetv2.FCNHead', cross_entropy), ('FCNHead', fused),
                       ('mmseg_bisenetv2.FCNHead', [fused])):
        other = head(kind, loss, sampler=sampler)
        other.load_state_dict(reference.state_dict())
        for mine, theirs in zip(head_loss(other, features, labels), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-12, check_dtype=False)


def test_mean_is_over_valid_pixels():
    logits, labels = data((4, 6), (32, 48), torch.float32)
    every = CrossEntropyLoss()(plain(logits, labels)[1], labels, ignore_index=255)
    share = (labels != 255).double().mean()
    assert UpsampleCrossEntropy()(logits, labels).item() == pytest.approx(
        every.item() / share.item(), rel=1e-5)
    assert UpsampleCrossEntropy(loss_weight=0.5, reduction='sum')(
        logits, labels).item() == pytest.approx(0.5 * every.item() * labels.numel(), rel=1e-5)


INTERPRET = '''
import torch
import mmseg_bisenetv2
from mmseg_bisenetv2.models.losses import score_tiles
from mmseg_bisenetv2.models.losses_triton import score_cells

torch.manual_seed(0)
for small, large in (((2, 3), (16, 24)), ((3, 2), (7, 5)), ((4, 5), (3, 2))):
    for align_corners in (False, True):
        for dtype in (torch.float32, torch.float64):
            logits = 3 * torch.randn(2, 5, *small, dtype=dtype)
            labels = torch.randint(0, 5, (2, *large), dtype=torch.uint8)
            labels[torch.rand(labels.shape) < 0.2] = 255
            factor = (labels != 255) * torch.rand(labels.shape, dtype=dtype)
            arguments = logits, labels, factor, 255, align_corners, True, True
            for ours, expected in zip(score_cells(*arguments), score_tiles(*arguments)):
                torch.testing.assert_close(
                    ours, expected, rtol=1e-5, atol=1e-6, check_dtype=False)
            for wrong in (5, 254):  # neither a class nor ignored
                labels[0, 0, 0] = wrong
                loss, _, gradient, pixels = score_cells(*arguments)
                assert loss.isnan() and gradient[0].isnan().any()
                assert pixels.isnan().nonzero().tolist() == [[0, 0, 0]]
'''
COMPILE = '''
import mmseg_bisenetv2
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mmseg_bisenetv2.models.losses_triton import _score_cell

kinds = dict(labels='*u8', first_y='*i32', first_x='*i32', correct='*i32')
kinds |= {name: '*fp32' for name in (
    'logits', 'factor', 'share_y', 'share_x', 'losses', 'shares', 'pixels')}
for capability in (80, 90):  # A100, H100; integers that equal 1 become constants
    for constants in ({}, dict(small_height=1, small_width=1)):
        constants |= dict(WITH_GRADIENT=True, WITH_PIXELS=True, CLASSES=32, BLOCK=32)
        names = _score_cell.arg_names
        source = ASTSource(
            _score_cell,
            {n: 'constexpr' if n in constants else kinds.get(n, 'i32') for n in names},
            {(names.index(name),): value for name, value in constants.items()})
        kernel = triton.compile(source, target=GPUTarget('cuda', capability, 32))
        assert kernel.asm['cubin']
'''


@pytest.mark.skipif(importlib.util.find_spec('triton') is None, reason='needs Triton')
@pytest.mark.parametrize('script, interpret', [(INTERPRET, '1'), (COMPILE, '0')],
                         ids=['interpreted', 'compiled'])
def test_triton_kernel_without_a_gpu(script, interpret):
    subprocess.run([sys.executable, '-W', 'ignore', '-c', script], check=True,
                   env=dict(os.environ, TRITON_INTERPRET=interpret))


@pytest.mark.skipif(importlib.util.find_spec('triton') is None, reason='needs Triton')
def test_loss_without_a_compiler_for_its_kernel(monkeypatch):
    from mmseg_bisenetv2.models import losses_triton
    said, device = [], torch.device('cpu')

    def fail(*_):
        raise RuntimeError('Failed to find C compiler.\nand more')

    monkeypatch.setattr(module, 'print_log', lambda text, **_: said.append(text))
    for kernel, expected in ((fail, None), (module.score_tiles, module.score_tiles)):
        module._triton.cache_clear()
        monkeypatch.setattr(losses_triton, 'score_cells', kernel)
        for _ in range(2):
            assert module._triton(device) is expected
    module._triton.cache_clear()
    assert len(said) == 1 and said[0].endswith('slower: Failed to find C compiler.')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('kernel', [True, False], ids=['Triton', 'plain'])
@pytest.mark.parametrize('reduction', ['mean', 'none'])
@pytest.mark.parametrize('size', [(16, 32), (64, 128), (17, 31)])
def test_gpu_equals_cpu(monkeypatch, size, reduction, kernel):
    if kernel:
        assert module._triton(torch.device('cuda', torch.cuda.current_device())), 'see its warning'
    else:
        monkeypatch.setattr(module, '_triton', lambda device: None)
    logits, labels = data(size, (128, 256), torch.float32, classes=19)
    results = []
    for device, dtype in (('cpu', torch.float64), ('cuda', torch.float32)):
        x = logits.detach().to(device, dtype).requires_grad_()
        loss, accuracy = upsample_cross_entropy(x, labels.to(device), reduction=reduction)
        loss.mean().backward()
        results.append((loss.double().cpu(), accuracy.double().cpu(),
                        labels.numel() * x.grad.double().cpu()))  # of a pixel's loss
    (loss, accuracy, gradient), found = results
    # A GPU's exponential and logarithm err by a few units in the last place of logits up to 16.
    torch.testing.assert_close(found[0], loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[2], gradient, rtol=1e-4, atol=1e-4)
    # A pixel or two may have two highest logits that agree to the last bits.
    torch.testing.assert_close(found[1], accuracy, rtol=0, atol=100 * 2 / labels.numel())


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_gpu_loss_under_autocast(dtype):
    logits, labels = data((16, 32), (128, 256), torch.float32, classes=19)
    half = logits.detach().to('cuda', dtype).requires_grad_()
    full = half.detach().float().requires_grad_()
    with torch.autocast('cuda', dtype):
        loss, _ = upsample_cross_entropy(half, labels.to('cuda', torch.uint8))
    loss.backward()
    expected, _ = upsample_cross_entropy(full, labels.cuda())
    expected.backward()
    assert loss.dtype == torch.float32 and half.grad.dtype == dtype
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(half.grad, full.grad.to(dtype))
    assert math.isfinite(loss.item())


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_gpu_shows_a_label_that_is_no_class():
    assert module._triton(torch.device('cuda', torch.cuda.current_device())), 'see its warning'
    logits, labels = data((4, 6), (32, 48), torch.float32)
    labels[0, 3, 4] = CLASSES
    assert upsample_cross_entropy(logits.detach().cuda(), labels.cuda())[0].isnan()
