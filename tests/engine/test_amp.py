"""AMP as the FP16 recipe uses it, for real on a CPU: loss scale, skipped steps, saved state."""
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from small import batch, build

from mmseg_bisenetv2.engine import DivergenceHook
from mmseg_bisenetv2.engine.amp import start_momentum


def training(clip_grad: dict | None = None, **options: Any) -> tuple[Any, Any, dict]:
    model = build().train()
    data = batch()
    for sample in data['data_samples']:
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 4, (1, 64, 96)))
    wrapper = build_optim_wrapper(model, ConfigDict(
        type='mmseg_bisenetv2.CPUAmpOptimWrapper', clip_grad=clip_grad,
        optimizer=dict(type='SGD', lr=0.01, momentum=0.9, fused=True), **options))
    DivergenceHook().before_train(SimpleNamespace(optim_wrapper=wrapper))
    return model, wrapper, data


def test_dynamic_scale_skips_steps_until_the_gradients_are_finite() -> None:
    model, wrapper, data = training(dtype='float16', loss_scale=dict(init_scale=2.0**40))
    weight = model.decode_head.conv_seg.weight
    scales, moved = [wrapper.loss_scaler.get_scale()], []
    for _ in range(40):
        before = weight.detach().clone()
        loss = model.train_step(data, wrapper)['loss']
        assert torch.isfinite(loss)
        scales.append(wrapper.loss_scaler.get_scale())
        moved.append(not torch.equal(weight, before))
    halved = [new == old / 2 for old, new in itertools.pairwise(scales)]
    assert [not step for step in halved] == moved  # halved where, and only where, it was skipped
    assert halved[0] and moved[-1] and sum(halved) > 10
    # without before_train the momentum begins with whatever the memory held
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    state = wrapper.state_dict()
    assert state['loss_scaler']['scale'] == scales[-1]
    other = training(dtype='float16', loss_scale='dynamic')[1]
    assert other.loss_scaler.get_scale() == 65536
    other.load_state_dict(state)
    assert other.loss_scaler.get_scale() == scales[-1]


def test_the_steps_are_those_of_full_precision() -> None:
    losses = {}
    for dtype in ('float32', 'bfloat16', 'float16'):
        model, wrapper, data = training(
            dtype=dtype, loss_scale=128.0, clip_grad=dict(max_norm=1.0))
        losses[dtype] = [float(model.train_step(data, wrapper)['loss']) for _ in range(8)]
        assert wrapper.loss_scaler.get_scale() == 128  # a fixed scale stays
    assert losses['float32'][-1] < losses['float32'][0]
    assert losses['float16'] == pytest.approx(losses['float32'], rel=0.02)
    assert losses['bfloat16'] == pytest.approx(losses['float32'], rel=0.05)
    assert losses['bfloat16'] != losses['float32']


@pytest.mark.parametrize('fused', [False, True])
def test_momentum_of_zeros_is_the_first_step_that_pytorch_makes(fused: bool) -> None:
    weights = []
    for prepare in (lambda optimizer: None, start_momentum):
        weight = torch.nn.Parameter(torch.ones(5))
        optimizer = torch.optim.SGD(
            [weight], lr=0.1, momentum=0.9, weight_decay=0.1, fused=fused)
        prepare(optimizer)
        for i in range(3):
            weight.grad = torch.arange(5.0) * (i + 1)
            optimizer.step()
        weights.append(weight.detach())
    assert torch.equal(*weights)
