"""Backends and precisions on trained weights: those of an untrained network decide by noise."""
import dataclasses
import textwrap

import cv2
import numpy as np
import pytest
from golden import shared

from mmseg_bisenetv2.deploy import Predictor
from mmseg_bisenetv2.deploy.export import MIN_AGREEMENT, export_and_verify
from mmseg_bisenetv2.deploy.metadata import ExportMetadata

from mmseg.apis import inference_model, init_model

BASE = 'configs/bisenetv2_fcn_coincheung_cityscapes.py'


@pytest.fixture(scope='module')
def rugd(request, tmp_path_factory):
    """Config, weights and a picture of RUGD, and its labels; 25 classes, CoinCheung's layout."""
    weights = shared('weights/rugd25/bisenetv2_rugd25.pth')
    picture = cv2.imread(str(shared('weights/rugd25/creek_00156.png')))
    config = tmp_path_factory.mktemp('rugd') / 'rugd.py'
    config.write_text(textwrap.dedent(f'''
        _base_ = {str(request.config.rootpath / BASE)!r}
        model = dict(
            decode_head=dict(num_classes=25),
            auxiliary_head=[dict(h, num_classes=25) for h in _base_.model.auxiliary_head])
        test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
        test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
    '''))
    model = init_model(str(config), str(weights), device='cpu')
    model.keep_logits = True  # MMSegmentation's own way
    return config, weights, picture, inference_model(model, picture).pred_sem_seg.data[0].numpy()


@pytest.mark.parametrize('backend, precision', [
    ('torch', 'fp32'), ('onnxruntime', 'fp32'), ('openvino', 'fp32'),
    ('torch', 'bf16'), ('openvino', 'bf16')])
def test_agreement(rugd, backend, precision):
    config, weights, picture, expected = rugd
    predictor = Predictor(config, weights, backend=backend, precision=precision, device='cpu')
    agreement = 100 * (predictor(picture) == expected).mean()
    assert agreement >= (99.999 if (backend, precision) == ('torch', 'fp32') else
                         MIN_AGREEMENT[precision])
    assert len(np.unique(expected)) > 5


def test_int8(rugd, tmp_path):
    config, weights, picture, _ = rugd
    model = init_model(str(config), str(weights), device='cpu')
    metadata = dataclasses.replace(ExportMetadata.from_model(model, weights), precision='int8')
    mirrored = [picture[:, ::-1].copy(), cv2.resize(picture, None, fx=0.7, fy=0.7)]
    figures = export_and_verify(
        model, metadata, tmp_path / 'int8.xml', [picture], calibration=mirrored)
    assert figures['agreement'] >= MIN_AGREEMENT['int8']
