"""The decode head by Winograd's minimal filtering against PyTorch's convolution."""
import copy

import numpy as np
import pytest
import torch
from small import NORM, build, image, write

from mmseg_bisenetv2.deploy import Predictor, converters
from mmseg_bisenetv2.deploy.network import FrameNetwork
from mmseg_bisenetv2.deploy.winograd import (
    OpenVINOWinogradHead,
    WinogradHead,
    with_winograd,
)
from mmseg_bisenetv2.models.fcn_head import FCNHead
from mmseg_bisenetv2.models.folding import fold_batch_norm

from mmseg.models.decode_heads import DepthwiseSeparableFCNHead
from mmseg.models.decode_heads import FCNHead as MMSegFCNHead


def compute(network, frames):
    with torch.no_grad():
        return network(torch.from_numpy(frames))


@pytest.fixture(scope='module')
def head():
    return fold_batch_norm(build().decode_head.eval())


@pytest.mark.parametrize('kind', [WinogradHead, OpenVINOWinogradHead])
@pytest.mark.parametrize('shape', [(1, 1), (4, 4), (5, 7), (8, 13), (3, 40)])
def test_equals_the_convolution(head, shape, kind, monkeypatch):
    monkeypatch.setattr(WinogradHead, 'TILES', 5)  # bands of several rows, of one, of a part
    features = torch.randn(2, 16, *shape, dtype=torch.float64)
    head = copy.deepcopy(head).double()
    torch.testing.assert_close(
        with_winograd(head, kind)([features]), head([features]), rtol=1e-12, atol=1e-12)


class Doubling(FCNHead):
    """A head with a way of its own."""

    def cls_seg(self, feat):
        return 2 * super().cls_seg(feat)


@pytest.mark.parametrize('kind, options', [
    (FCNHead, dict(num_convs=2)), (FCNHead, dict(concat_input=True)),
    (FCNHead, dict(kernel_size=1)), (FCNHead, dict(dilation=2)),
    (FCNHead, dict(norm_cfg=dict(type='GN', num_groups=2))), (FCNHead, dict(act_cfg=None)),
    (Doubling, {}), (DepthwiseSeparableFCNHead, {})], ids=str)
def test_other_heads_stay_as_they_are(head, kind, options):
    usual = dict(in_channels=16, channels=16, num_convs=1, in_index=0, concat_input=False,
                 num_classes=4, norm_cfg=NORM)
    other = fold_batch_norm(kind(**dict(usual, **options)).eval())
    assert with_winograd(other) is other
    for other in (head, fold_batch_norm(MMSegFCNHead(**usual).eval())):
        assert isinstance(with_winograd(other), WinogradHead)


@pytest.mark.parametrize('shape, heights', [((36, 8), [12, 12, 12, 12, 8]), ((8, 40), [8, 8])])
def test_bands_fill_the_cache(head, shape, heights, monkeypatch):
    monkeypatch.setattr(WinogradHead, 'TILES', 5)
    seen = []
    band = WinogradHead._band
    monkeypatch.setattr(WinogradHead, '_band', lambda self, x, columns: (
        seen.append(x.shape[1]), band(self, x, columns))[1])
    with_winograd(head)([torch.randn(1, 16, *shape)])
    assert seen == heights


@pytest.mark.parametrize('shape', [(64, 96), pytest.param((33, 47), marks=pytest.mark.slow)])
def test_openvino_uses_it_in_fp32(tmp_path, shape):
    """From a config; what is exported keeps the convolution, which not only CPUs take."""
    fast = Predictor(*write(tmp_path), backend='openvino', precision='fp32', device='cpu')
    plain = FrameNetwork(build())

    def products(model):
        kernels = [tuple(op.get_output_shape(0)) for op in model.get_ops()
                   if op.get_type_name() == 'Constant']
        return kernels.count((16, 16))

    assert products(fast.runtime.model) >= 36
    assert products(converters.openvino_model(plain, fast.metadata)) < 36
    frame = image(*shape)[None]
    logits, expected = fast.runtime(frame), compute(plain, frame)
    assert (logits - expected).norm() < 1e-4 * expected.norm()


def test_torch_uses_it_in_fp32(tmp_path):
    files = write(tmp_path)
    fast, plain = (Predictor(*files, backend='torch', precision=precision, device='cpu')
                   for precision in ('fp32', 'bf16'))
    assert isinstance(fast.runtime.network.decode_head, WinogradHead)
    assert not isinstance(plain.runtime.network.decode_head, WinogradHead)
    frame = image(64, 96)[None]
    expected = compute(FrameNetwork(build()), frame)
    np.testing.assert_allclose(fast.runtime(frame), expected, rtol=0, atol=1e-4)
