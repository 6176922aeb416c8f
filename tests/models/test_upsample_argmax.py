import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmseg_bisenetv2.models import upsample_argmax as module
from mmseg_bisenetv2.models.upsample_argmax import (
    AxisTransform,
    argmax_of_row_blocks,
    axis_weights,
    upsample_argmax,
)


def reference(logits, rows, columns, align_corners=False):
    """What MMSegmentation does with one image's logits: resize, crop, flip, resize, argmax."""
    def resize(x, size):
        return F.interpolate(x[None], size, mode='bilinear', align_corners=align_corners)[0]
    full = resize(logits.float(), (rows.size, columns.size))
    full = full[:, rows.start:rows.stop, columns.start:columns.stop]
    full = full.flip([1] * rows.flip + [2] * columns.flip)
    return resize(full, (rows.out, columns.out))


def assert_same(labels, full):
    expected = full.argmax(0)
    assert labels.shape == expected.shape
    different = labels.long() != expected
    if different.any():  # only where the two logits agree to rounding
        highest, ours = full.amax(0), full.gather(0, labels.long()[None])[0]
        assert (highest - ours)[different].max() < 1e-5 * full.abs().max()
        assert different.float().mean() < 1e-4


def blobs(classes, height, width, seed=0):
    """Logits with large areas of one class, as trained networks give them."""
    torch.manual_seed(seed)
    coarse = torch.randn(1, classes, height // 6 + 2, width // 6 + 2)
    smooth = F.interpolate(coarse, (height, width), mode='bicubic')[0]
    return smooth + 0.02 * torch.randn(classes, height, width)


sides = st.builds(
    lambda size, start, stop, flip, out: AxisTransform(size, start, size - stop, flip, out),
    st.integers(8, 90), st.integers(0, 3), st.integers(0, 3), st.booleans(), st.integers(1, 120))


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 12), st.integers(1, 12), sides, sides, st.booleans(), st.booleans())
def test_labels_are_those_of_mmsegmentation(h, w, rows, columns, align_corners, unchanged):
    if unchanged:  # the usual case, a multiple of the logits' size
        rows, columns = AxisTransform.identity(8 * h), AxisTransform.identity(8 * w)
    logits = blobs(5, h, w)
    full = reference(logits, rows, columns, align_corners)
    assert_same(upsample_argmax(logits, rows, columns, align_corners), full)
    y, x = (axis_weights(size, transform, align_corners, logits.device)
            for size, transform in ((h, rows), (w, columns)))
    assert_same(argmax_of_row_blocks(logits, y, x), full)  # a GPU's way


@pytest.mark.parametrize('make', [blobs, lambda *shape: torch.randn(shape)])
def test_full_size(make):
    logits = make(19, 64, 128)
    full = F.interpolate(logits[None], (512, 1024), mode='bilinear')[0]
    labels = upsample_argmax(logits, 512, 1024)
    assert labels.dtype == torch.uint8
    assert_same(labels, full)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('height, width', [(512, 1024), (333, 777)])
def test_gpu_gives_the_labels_of_the_cpu(height, width):
    logits = blobs(19, 64, 128)
    full = F.interpolate(logits[None], (height, width), mode='bilinear')[0]
    assert_same(upsample_argmax(logits.cuda(), height, width).cpu(), full)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_computed_in_float32(dtype):
    logits = blobs(6, 9, 11).to(dtype)
    assert_same(upsample_argmax(logits, 70, 90),
                F.interpolate(logits[None].float(), (70, 90), mode='bilinear')[0])


def test_many_classes_and_ties():
    logits = torch.zeros(300, 3, 3)
    logits[299] = 1
    labels = upsample_argmax(logits, 10, 10)
    assert labels.dtype == torch.int64 and (labels == 299).all()
    assert (upsample_argmax(torch.zeros(4, 3, 3), 10, 10) == 0).all()  # the first of equals


def test_most_of_a_scene_is_not_interpolated(monkeypatch):
    interpolated = []
    real = module._weighted_sum

    def count(weight, values, dim):
        if dim == 1:
            interpolated.append(len(weight))
        return real(weight, values, dim)

    monkeypatch.setattr(module, '_weighted_sum', count)
    logits = torch.zeros(3, 32, 64)
    logits[0, :, :32] = logits[1, :, 32:] = 1
    labels = upsample_argmax(logits, 256, 512)
    assert sum(interpolated) == 33  # one column of 33 x 65 cells
    assert_same(labels, F.interpolate(logits[None], (256, 512), mode='bilinear')[0])
