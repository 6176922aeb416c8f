"""The decode head by Winograd's minimal filtering against PyTorch's convolution."""
import copy

import numpy as np
import pytest
import torch
from small import NORM, build, image, write

from mmseg_bisenetv2.deploy import Predictor, export
from mmseg_bisenetv2.deploy.network import FrameNetwork
from mmseg_bisenetv2.deploy.winograd import OpenVINOWinogradHead, WinogradHead, with_winograd
from mmseg_bisenetv2.models.folding import fold_batch_norm


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


@pytest.mark.parametrize('options', [
    dict(num_convs=2), dict(concat_input=True), dict(kernel_size=1), dict(dilation=2),
    dict(norm_cfg=dict(type='GN', num_groups=2)), dict(act_cfg=None)], ids=str)
def test_other_heads_stay_as_they_are(head, options):
    kind = dict(in_channels=16, channels=16, num_convs=1, in_index=0, concat_input=False,
                num_classes=4, norm_cfg=NORM)
    other = fold_batch_norm(type(head)(**dict(kind, **options)).eval())
    assert with_winograd(other) is other
    assert isinstance(with_winograd(head), WinogradHead)


@pytest.mark.parametrize('shape', [(64, 96), (33, 47)])
def test_openvino_uses_it(tmp_path, shape):
    """From a config; what is exported keeps the convolution, which not only CPUs take."""
    files = write(tmp_path)
    fast = Predictor(*files, backend='openvino', precision='fp32', device='cpu')
    plain = Predictor(*files, backend='onnxruntime', precision='fp32', device='cpu')
    kernels = [tuple(op.get_output_shape(0)) for op in fast.runtime.model.get_ops()
               if op.get_type_name() == 'Constant']
    assert (16, 16, 3, 3) in kernels and kernels.count((16, 16)) >= 36
    frame = image(*shape)
    np.testing.assert_allclose(
        fast.runtime(frame[None]), plain.runtime(frame[None]), rtol=0, atol=1e-4)
    kernels = [tuple(op.get_output_shape(0)) for op in export.openvino_model(
        FrameNetwork(build()), plain.description).get_ops() if op.get_type_name() == 'Constant']
    assert kernels.count((16, 16)) < 36


def test_torch_uses_it_in_fp32(tmp_path):
    files = write(tmp_path)
    fast, plain = (Predictor(*files, backend='torch', precision=precision, device='cpu')
                   for precision in ('fp32', 'bf16'))
    assert isinstance(fast.runtime.network.decode_head, WinogradHead)
    assert not isinstance(plain.runtime.network.decode_head, WinogradHead)
    other = Predictor(*files, backend='onnxruntime', precision='fp32', device='cpu')
    frame = image(64, 96)[None]
    np.testing.assert_allclose(fast.runtime(frame), other.runtime(frame), rtol=0, atol=1e-4)
