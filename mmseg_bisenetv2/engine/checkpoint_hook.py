"""Saving checkpoints so that a training can always go on, and choosing the one to go on from."""
import contextlib
import inspect
import math
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop, Runner

from mmseg_bisenetv2.atomic_write import flush_to_disk, write_atomically
from mmseg_bisenetv2.compat import resume_and_load_from
from mmseg_bisenetv2.engine.resume import (
    ResumeError,
    all_finite,
    check_resumable,
    find_newest_checkpoint,
    tensors_within,
)
from mmseg_bisenetv2.registry import HOOKS

BACKEND = 'mmseg_bisenetv2.AtomicLocalBackend'
LAST = 'last_checkpoint'


class AtomicLocalBackend(LocalBackend):
    """MMEngine's local files, written whole or not at all; deletions are noted, not done.

    MMEngine's CheckpointHook deletes an outdated checkpoint before it writes the new one.
    """

    def __init__(self) -> None:
        self.outdated: list[str] = []

    def put(self, obj: bytes, filepath: Any) -> None:
        """Writes a file; see :func:`write_atomically`."""
        os.makedirs(os.path.dirname(filepath), exist_ok=True)
        write_atomically(obj, str(filepath))

    def remove(self, filepath: Any) -> None:
        """Notes a file that is to be deleted."""
        self.outdated.append(str(filepath))


def replace_outdated(new: list[str], outdated: list[str]) -> None:
    """Deletes outdated checkpoints once the new ones have reached the disk."""
    for path in new:
        flush_to_disk(path)
        flush_to_disk(os.path.dirname(path))
    for path in outdated:
        if path not in new:
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)


register_backend(BACKEND, AtomicLocalBackend, force=True)


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """Drop-in for MMEngine's CheckpointHook, which keeps the last whole checkpoint.

    - A checkpoint is written beside the old file and renamed. When it and ``last_checkpoint``
      are written, a thread waits until both have reached the disk, while the training goes on;
      only then are outdated ones deleted.
    - A checkpoint with NaN or infinity is not written; the training stops.
    - ``--resume`` takes the newest checkpoint that is whole, whatever ``last_checkpoint`` says,
      and writes its path there. MMEngine writes that file in place after each checkpoint, so that
      a kill may leave it empty.
    - ``--resume`` refuses a checkpoint that does not fit; see :func:`check_resumable`.
    - Only best checkpoints that lie in this run's own folder are ever deleted. MMEngine deletes
      the one that the checkpoint names, which may belong to another run.

    Where ``file_client_args``, ``backend_args`` or an ``out_dir`` on a server are given, saving
    and choosing are left to MMEngine.

    Args:
        *args: Those of MMEngine's hook.
        **kwargs: The same, by name.
    """

    backend_args: dict | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.thread = ThreadPoolExecutor(1)
        self.replacing: Future | None = None
        self.has_saved = False
        self.is_local = (self.file_client_args is None and self.backend_args is None
                         and '://' not in str(self.out_dir))
        if self.is_local:
            self.backend_args = dict(backend=BACKEND)

    def before_run(self, runner: Runner) -> None:
        """Lets ``last_checkpoint`` name the newest whole checkpoint, where MMEngine looks for it.

        Raises:
            ResumeError: If there are checkpoints and none is whole, or if ``last_checkpoint``
                names a file that is gone.
        """
        if not _resumes(runner) or resume_and_load_from(runner)[1] or not self.is_local:
            return
        error: list[str | None] = [None]
        if is_main_process():
            try:
                self._choose_checkpoint(runner)
            except ResumeError as refusal:
                error = [str(refusal)]
        broadcast_object_list(error)  # the other processes wait here until the file is written
        if error[0]:
            raise ResumeError(error[0])

    def _folder(self, runner: Runner) -> str:
        """Where the checkpoints are, by MMEngine's rule for ``out_dir``."""
        if self.out_dir in (None, runner.work_dir):
            return runner.work_dir
        return os.path.join(self.out_dir, os.path.basename(runner.work_dir))

    def _choose_checkpoint(self, runner: Runner) -> None:
        folder = self._folder(runner)
        path, damaged = find_newest_checkpoint(folder, self.filename_tmpl)
        last = os.path.join(runner.work_dir, LAST)
        skipped = '; '.join(f'{name}: {reason}' for name, reason in damaged.items())
        if path:
            runner.logger.info(f'{path} is the newest whole checkpoint'
                               + (f'. Skipped, since damaged: {skipped}' if skipped else ''))
            write_atomically(path.encode(), last)
        elif damaged:
            raise ResumeError(f'no checkpoint in {folder} is whole: {skipped}. To begin anew, '
                              'train without --resume')
        elif os.path.exists(last):
            with open(last, errors='replace') as file:
                named = file.read().strip()
            if '://' not in named and not os.path.isfile(named):
                raise ResumeError(
                    f'{last} names {named!r}, which does not exist, and {folder} holds no '
                    f'{self.filename_tmpl}. To begin anew, train without --resume')

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuses to resume from what does not fit; see :func:`check_resumable`."""
        if not _resumes(runner):
            return
        source = resume_and_load_from(runner)[1]
        if not source:
            with open(os.path.join(runner.work_dir, LAST)) as file:
                source = file.read().strip()
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        by_iter = isinstance(runner.train_loop, IterBasedTrainLoop)
        check_resumable(checkpoint, source, model, runner.optim_wrapper, dict(
            iter=runner.max_iters if by_iter else math.inf, epoch=runner.max_epochs))

    def before_train(self, runner: Runner) -> None:
        """Takes over what a resumed checkpoint says of earlier ones, if it is of this folder.

        Raises:
            ValueError: If the hook was given an argument that it does not know. MMEngine's hook
                hands it to ``save_checkpoint``, where it would end the training at the first
                checkpoint.
        """
        given = inspect.signature(Runner.save_checkpoint).parameters  # by MMEngine's hook itself
        taken = inspect.signature(runner.save_checkpoint).parameters  # a runner may take more
        takes_any = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        if unknown := {name for name in self.args
                       if name in given or not (takes_any or name in taken)}:
            raise ValueError(f'CheckpointHook has no argument {", ".join(sorted(unknown))}. '
                             'Remove it from default_hooks.checkpoint, or correct its name')
        hub = runner.message_hub
        folder = self._folder(runner)
        if 'keep_ckpt_ids' in hub.runtime_info:
            hub.update_info('keep_ckpt_ids', [
                step for step in hub.get_info('keep_ckpt_ids') if type(step) is int])
        for key in [key for key in hub.runtime_info if key.startswith('best_ckpt')]:
            # The folder may have been moved since: a file of this name in it is meant.
            own = os.path.join(folder, os.path.basename(str(hub.get_info(key))))
            if os.path.basename(own).startswith('best_') and os.path.isfile(own):
                hub.update_info(key, own)
            else:
                hub.pop_info(key)
        super().before_train(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuses to save weights or an optimiser state that hold NaN or infinity.

        Raises:
            FloatingPointError: If there are any, with their names.
        """
        self._wait()
        self.has_saved = True
        content = {key: checkpoint.get(key)
                   for key in ('state_dict', 'ema_state_dict', 'optimizer')}
        bad = [name for name, value in tensors_within(content) if not all_finite(value)]
        if bad:
            raise FloatingPointError(
                f'{len(bad)} tensors hold NaN or infinity at iteration {runner.iter + 1}: '
                f'{", ".join(bad[:3])} ... Nothing was saved; the training has diverged, and '
                'earlier checkpoints are whole. Begin from one of them with a lower learning rate '
                '(load_from=FILE without --resume)')

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Saves if it is time, then deletes what is outdated."""
        with self._saving(runner):
            super().after_train_iter(runner, *args, **kwargs)

    def after_train_epoch(self, runner: Runner) -> None:
        """Saves if it is time, then deletes what is outdated."""
        with self._saving(runner):
            super().after_train_epoch(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        """Saves the best checkpoint if this is it, then deletes the one before."""
        with self._saving(runner):
            super().after_val_epoch(runner, metrics)

    @contextlib.contextmanager
    def _saving(self, runner: Runner) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.filename is None and error.errno:  # MMEngine writes last_checkpoint itself
                last = os.path.join(runner.work_dir, LAST)
                with contextlib.suppress(OSError):
                    os.remove(last)  # it is empty or torn, and not needed
                raise OSError(error.errno, error.strerror, last) from error
            raise
        if self.has_saved and isinstance(self.file_backend, AtomicLocalBackend):
            paths = [self.last_ckpt, getattr(self, 'best_ckpt_path', None),
                     *getattr(self, 'best_ckpt_path_dict', {}).values()]
            new = [path for path in [*paths, os.path.join(runner.work_dir, LAST)]
                   if path and os.path.isfile(path)]
            outdated, self.file_backend.outdated = self.file_backend.outdated, []
            self.replacing = self.thread.submit(replace_outdated, new, outdated)
        self.has_saved = False

    def _wait(self) -> None:
        """Waits for the thread, and raises what went wrong there."""
        replacing, self.replacing = self.replacing, None
        if replacing:
            replacing.result()

    def after_train(self, runner: Runner) -> None:
        """Publishes as MMEngine does, and waits until the last checkpoint has reached the disk."""
        super().after_train(runner)
        self._wait()


def _resumes(runner: Runner) -> bool:
    """Whether a training, and not a test, goes on from a checkpoint."""
    return resume_and_load_from(runner)[0] and isinstance(runner.optim_wrapper, OptimWrapper)
