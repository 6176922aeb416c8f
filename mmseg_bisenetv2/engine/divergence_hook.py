"""Ending a training that has diverged, before it overwrites what was good."""
import math
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmseg_bisenetv2.engine.amp import start_momentum
from mmseg_bisenetv2.engine.runtime_info_hook import is_reading_due
from mmseg_bisenetv2.registry import HOOKS


class DivergenceError(FloatingPointError):
    """The loss of a training is not a finite number."""


@dataclass
class _Step:
    """What is told of an iteration if its loss turns out not to be finite."""

    iteration: int
    loss: Any
    lr: dict[str, list[float]]
    files: list[str]

    def __str__(self) -> str:
        rates = ', '.join(f'{name} {values[0]:.6g}' for name, values in self.lr.items())
        return (f'iteration {self.iteration}: loss {float(self.loss)}, {rates}, images '
                f'{", ".join(self.files) or "unknown"}')


@HOOKS.register_module()
class DivergenceHook(Hook):
    """Stops a training whose loss is NaN or infinite.

    The losses are read where the logger or a checkpoint reads them, so that the CPU need not wait
    for the GPU in every iteration. A checkpoint is saved after that, and therefore never of a
    training that has diverged.

    With a dynamic loss scale (AMP in FP16) a loss that is not finite is no harm: the step is
    skipped and the scale halved. Skipped steps are counted and logged. The training is stopped
    when ``max_skipped`` losses in succession are not finite, or when the scale falls below
    ``min_loss_scale``: that takes about 30 steps in succession that are skipped, from the first
    scale of 65536, while a healthy training skips one in 2000.

    Args:
        max_skipped: Losses in succession that are not finite, under a dynamic loss scale.
        min_loss_scale: 1e-4 is fairseq's limit, too.
    """

    priority = 'LOW'  # after the logger, before a checkpoint is saved

    def __init__(self, max_skipped: int = 30, min_loss_scale: float = 1e-4) -> None:
        self.max_skipped = max_skipped
        self.min_loss_scale = min_loss_scale
        self.skipped = 0  # steps of this run, at least: a scale that grew hides some
        self.in_succession = 0
        self.scale = 0.0
        self.lr: dict[str, list[float]] = {}
        self.unread: list[_Step] = []

    def before_train(self, runner: Runner) -> None:
        """Keeps a fused SGD under a loss scale from diverging; see :func:`start_momentum`."""
        if hasattr(runner.optim_wrapper, 'loss_scaler'):
            start_momentum(runner.optim_wrapper.optimizer)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Notes the learning rate of the iteration."""
        self.lr = runner.optim_wrapper.get_lr()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: dict[str, Any] | None = None) -> None:
        """Keeps the loss, and looks at all that are kept if they are read now.

        Raises:
            DivergenceError: See above; with the iteration, loss, learning rate and images.
        """
        if outputs and 'loss' in outputs:
            loss = outputs['loss']
            samples = data_batch.get('data_samples', ()) if isinstance(data_batch, dict) else ()
            files = [str(sample.img_path) for sample in samples if hasattr(sample, 'img_path')]
            self.unread.append(_Step(
                runner.iter + 1, loss.detach() if isinstance(loss, torch.Tensor) else loss,
                self.lr, files))
        if is_reading_due(self, runner, batch_idx):
            self._check(runner)

    def before_val(self, runner: Runner) -> None:
        """Looks at the losses that are kept: a validation may save the best checkpoint."""
        self._check(runner)

    def _check(self, runner: Runner) -> None:
        steps, self.unread = self.unread, []
        if not steps:
            return
        # all at once: each copy from a GPU waits for it
        finite = torch.stack([torch.as_tensor(step.loss).reshape(()) for step in steps]).isfinite()
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        setting = runner.cfg.get('optim_wrapper', {}).get('loss_scale', 'dynamic')
        is_dynamic = scaler is not None and not isinstance(setting, (int, float))
        limit = self.max_skipped if is_dynamic else 1
        for step, is_finite in zip(steps, finite.tolist(), strict=True):
            self.in_succession = 0 if is_finite else self.in_succession + 1
            if self.in_succession >= limit:
                raise DivergenceError(self._explain(runner, str(step)))
        if is_dynamic:
            self._check_scale(runner, scaler, steps)

    def _check_scale(self, runner: Runner, scaler: Any, steps: list[_Step]) -> None:
        scale = scaler.get_scale()
        if 0 < scale < self.scale:
            skipped = round(math.log(scale / self.scale, scaler.get_backoff_factor()))
            self.skipped += skipped
            runner.logger.info(
                f'AMP skipped {skipped} steps of iterations {steps[0].iteration} to '
                f'{steps[-1].iteration}, {self.skipped} since this run began: the loss scale is '
                f'now {scale:g}')
        self.scale = scale
        if scale < self.min_loss_scale:
            raise DivergenceError(self._explain(
                runner, f'{steps[-1]}; the gradients are not finite even at a loss scale of '
                        f'{scale:g}'))

    def _explain(self, runner: Runner, what: str) -> str:
        return (f'The training has diverged at {what}. Checkpoints in {runner.work_dir} are from '
                'before. Look at these images and their labels; or begin from one of the '
                'checkpoints with a lower learning rate (load_from=FILE without --resume)')
