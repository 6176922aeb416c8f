"""Mixed precision: on a CPU, and with PyTorch's fused SGD."""
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn

from mmseg_bisenetv2.compat import amp_wrapper_on_cpu
from mmseg_bisenetv2.registry import OPTIM_WRAPPERS


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Gives a fused SGD its momentum, of zeros, before the first step.

    Under a loss scale the first steps are often skipped. PyTorch (2.13) allocates the momentum of
    its fused SGD all the same, without a value, and adds to it from the next step on: the weights
    become NaN. Zeros give the same first step where ``dampening`` is 0, its default.

    Args:
        optimizer: Others than a fused SGD with momentum are left as they are.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        if group['fused'] and group['momentum'] and not group['dampening']:
            for parameter in group['params']:
                state = optimizer.state[parameter]
                if state.get('momentum_buffer') is None:
                    state['momentum_buffer'] = torch.zeros_like(parameter)


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(AmpOptimWrapper):
    """MMEngine's AmpOptimWrapper, which refuses to start without a GPU, for the CPU.

    The loss scale, the skipped steps and what is saved are MMEngine's.

    Args:
        dtype: 'bfloat16', which CPUs with AVX512-BF16 or AMX multiply faster; or 'float16', to try
            an FP16 recipe.
        **kwargs: Those of AmpOptimWrapper: ``loss_scale``, ``optimizer`` and so on.
    """

    def __init__(self, dtype: str | torch.dtype = 'bfloat16', **kwargs: Any) -> None:
        with amp_wrapper_on_cpu():
            super().__init__(dtype=dtype, **kwargs)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Runs the forward pass in ``dtype``; MMEngine's own context takes bfloat16 only."""
        with OptimWrapper.optim_context(self, model), torch.autocast('cpu', self.cast_dtype):
            yield
