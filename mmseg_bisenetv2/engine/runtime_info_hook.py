"""MMEngine's bookkeeping of a training, without waiting for the GPU in every iteration."""
from typing import Any

import torch
from mmengine.hooks import CheckpointHook, Hook, LoggerHook
from mmengine.hooks import RuntimeInfoHook as MMEngineRuntimeInfoHook
from mmengine.runner import Runner

from mmseg_bisenetv2.registry import HOOKS


def is_reading_due(hook: Hook, runner: Runner, batch_idx: int) -> bool:
    """Whether the logger or a checkpoint wants the losses after this iteration.

    Args:
        hook: Any hook; they all can count iterations.
        runner: Of the training.
        batch_idx: Of the iteration, within its epoch.
    """
    # a checkpoint by epochs is saved at an epoch's end only
    readers = (each for each in runner.hooks if isinstance(each, LoggerHook)
               or (isinstance(each, CheckpointHook) and not each.by_epoch))
    return (hook.is_last_train_iter(runner)
            or hook.end_of_epoch(runner.train_dataloader, batch_idx)
            or any(hook.every_n_train_iters(runner, reader.interval)
                   or hook.every_n_inner_iters(batch_idx, reader.interval) for reader in readers))


@HOOKS.register_module()
class RuntimeInfoHook(MMEngineRuntimeInfoHook):
    """Drop-in for MMEngine's RuntimeInfoHook: what it logs and saves is the same.

    MMEngine's reads every loss and accuracy, eleven numbers here, in every iteration, and each
    time the CPU waits until the GPU has computed it. This one keeps the tensors until the logger
    or a checkpoint wants their values; in between, the message hub lags behind.
    """

    def __init__(self) -> None:
        self._kept: list[dict[str, Any]] = []
        self._batch_idx = 0  # of the last of them

    def before_train(self, runner: Runner) -> None:
        """Begins with nothing kept, even if an earlier run was broken off and left some."""
        super().before_train(runner)
        self._kept = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: dict[str, Any] | None = None) -> None:
        """Keeps ``outputs``, and reads all that are kept if they are wanted now."""
        self._batch_idx = batch_idx
        if outputs is not None:
            self._kept.append({
                key: value.detach() if isinstance(value, torch.Tensor) else value
                for key, value in outputs.items()})
        if is_reading_due(self, runner, batch_idx):
            self._read(runner)

    def before_val(self, runner: Runner) -> None:
        """Reads all that are kept: a validation may save the best checkpoint."""
        self._read(runner)

    def _read(self, runner: Runner) -> None:
        tensors = [value for outputs in self._kept for value in outputs.values()
                   if isinstance(value, torch.Tensor)]
        if tensors:  # one copy for all; float64 holds every other type exactly
            dtype = torch.float32 if tensors[0].device.type == 'mps' else torch.float64
            numbers = iter(torch.stack([value.to(dtype).reshape(()) for value in tensors]).tolist())
        for outputs in self._kept:
            super().after_train_iter(runner, self._batch_idx, outputs={
                key: next(numbers) if isinstance(value, torch.Tensor) else value
                for key, value in outputs.items()})
        self._kept = []
