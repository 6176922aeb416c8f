"""Against numbers computed with the SSSegmentation implementation (see tests/data/README.md)."""
from pathlib import Path

import pytest
import torch
from golden import golden_arrays, golden_batch, golden_input, golden_state_dict
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import PixelData

import mmseg_bisenetv2  # noqa: F401
from mmseg_bisenetv2.checkpoints import convert_state_dict

from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

CONFIG = Path(__file__).parents[2] / 'configs/bisenetv2_fcn_cityscapes.py'
LOSSES = dict(
    loss_cls='decode', loss_aux1='aux_0', loss_aux2='aux_1', loss_aux3='aux_2', loss_aux4='aux_3')


@pytest.fixture(scope='module')
def config():
    return Config.fromfile(CONFIG)


def build(config, **head):
    model = MODELS.build(config.model)
    model.load_state_dict(convert_state_dict(golden_state_dict('ssseg')), strict=True)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0
    return revert_sync_batchnorm(model)


@pytest.fixture(scope='module')
def model(config):
    return build(config).eval()


@pytest.mark.parametrize('size', [(64, 128), (97, 161)])
def test_forward(model, size):
    arrays = golden_arrays('ssseg')
    with torch.no_grad():
        features = model.backbone(golden_input(*size))
        results = dict(zip(('head', 'stage1', 'stage2', 'stage3', 'stage4'), features, strict=True))
        results['logits'] = model.decode_head(features)
        for i, head in enumerate(model.auxiliary_head):
            results[f'aux{i}_logits'] = head(features)
    for name, value in results.items():
        expected = torch.from_numpy(arrays[f'{size[0]}x{size[1]}/{name}'])
        assert (value - expected).abs().max() <= 2e-5, name
    labels = model.predict(golden_input(*size))[0].pred_sem_seg.data.numpy()
    expected = arrays[f'{size[0]}x{size[1]}/labels']
    assert (labels == expected).mean() >= 0.999


def step(model, dtype):
    """One training step's losses on the golden batch, and what its forward and backward left."""
    images, labels = golden_batch()
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]
    model = model.to(dtype).train()
    losses = model.loss(images.to(dtype), samples)
    total = sum(value for name, value in losses.items() if 'loss' in name)
    total.backward()
    return losses, total


def test_training_step_in_float64(config):
    arrays = golden_arrays('ssseg')
    model = build(config)
    losses, total = step(model, torch.float64)
    for theirs, ours in LOSSES.items():
        expected = float(arrays[f'train/{theirs}'])
        assert losses[f'{ours}.loss_ce'].item() == pytest.approx(expected, rel=1e-9)
    assert total.item() == pytest.approx(float(arrays['train/loss_total']), rel=1e-9)

    # our name of each of theirs, by way of tensors that carry a number
    keys = list(golden_state_dict('ssseg'))
    numbered = convert_state_dict({key: torch.tensor(i) for i, key in enumerate(keys)})
    ours = {keys[int(value)]: name for name, value in numbered.items()
            if not name.endswith('pointwise_conv.conv.bias')}
    parameters = dict(model.named_parameters())
    compared = 0
    for name, value in arrays.items():
        if name.startswith('grad_norm/') and value > 1e-12:
            gradient = parameters[ours[name.removeprefix('grad_norm/')]].grad
            assert gradient.norm().item() == pytest.approx(float(value), rel=1e-8), name
            compared += 1
    assert compared > 150
    buffers = dict(model.named_buffers())
    updated = [name for name in arrays if name.startswith('updated/')]
    assert len(updated) == 3
    for name in updated:
        buffer = buffers[ours[name.removeprefix('updated/')]]
        torch.testing.assert_close(
            buffer, torch.from_numpy(arrays[name]), rtol=1e-9, atol=1e-9)


def test_training_step_in_float32(config):
    arrays = golden_arrays('ssseg')
    losses, total = step(build(config), torch.float32)
    for theirs, ours in LOSSES.items():
        assert losses[f'{ours}.loss_ce'].item() == pytest.approx(
            float(arrays[f'train/{theirs}']), rel=1e-6)
    assert total.item() == pytest.approx(float(arrays['train/loss_total']), rel=1e-6)
