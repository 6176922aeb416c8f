"""MMEngine's bookkeeping of a training, without waiting for the GPU in every iteration."""
import torch
from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.hooks import RuntimeInfoHook as MMEngineRuntimeInfoHook

from mmseg_bisenetv2.registry import HOOKS


@HOOKS.register_module()
class RuntimeInfoHook(MMEngineRuntimeInfoHook):
    """Drop-in for MMEngine's RuntimeInfoHook: what it logs and saves is the same.

    MMEngine's reads every loss and accuracy, eleven numbers here, in every iteration, and each
    time the CPU waits until the GPU has computed it. This one keeps them where they are until the
    logger or a checkpoint wants them; in between, the message hub lags behind.
    """

    def before_train(self, runner):
        """Begins with nothing kept; a run that was broken off may have left some."""
        super().before_train(runner)
        self._kept = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """Keeps ``outputs``, and reads all that are kept if they are wanted now."""
        self._batch_idx = batch_idx
        if outputs is not None:
            self._kept.append({
                key: value.detach() if isinstance(value, torch.Tensor) else value
                for key, value in outputs.items()})
        if self._wanted(runner, batch_idx):
            self._read(runner, batch_idx)

    def before_val(self, runner):
        """Reads all that are kept: a validation may save the best checkpoint."""
        if getattr(self, '_kept', None):
            self._read(runner, self._batch_idx)

    def _wanted(self, runner, batch_idx):
        readers = (hook for hook in runner.hooks if isinstance(hook, (LoggerHook, CheckpointHook)))
        return (self.is_last_train_iter(runner)
                or self.end_of_epoch(runner.train_dataloader, batch_idx)
                or any(self.every_n_train_iters(runner, hook.interval)
                       or self.every_n_inner_iters(batch_idx, hook.interval) for hook in readers))

    def _read(self, runner, batch_idx):
        tensors = [value for outputs in self._kept for value in outputs.values()
                   if isinstance(value, torch.Tensor)]
        if tensors:  # one copy for all; float64 holds every other type exactly
            dtype = torch.float32 if tensors[0].device.type == 'mps' else torch.float64
            numbers = iter(torch.stack([value.to(dtype).reshape(()) for value in tensors]).tolist())
        for outputs in self._kept:
            super().after_train_iter(runner, batch_idx, outputs={
                key: next(numbers) if isinstance(value, torch.Tensor) else value
                for key, value in outputs.items()})
        self._kept = []
