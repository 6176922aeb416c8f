"""A hook that writes the results of a run, scores and pictures, into its work directory."""
import contextlib
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.dist import is_main_process
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmseg_bisenetv2.metrics import IoUMetric, format_class_table
from mmseg_bisenetv2.registry import HOOKS
from mmseg_bisenetv2.visualization import draw_confusion, draw_curves, draw_sample


@HOOKS.register_module()
class ResultsHook(Hook):
    """Writes scores and pictures into the work directory, and ends a training with a command.

    - After each validation ``training_curve.png``.
    - After each validation whose checkpoint is the best so far, or after each if none is kept as
      the best: ``val_classes.md``, the scores of each class, ``val_confusion.png``, and
      ``val_pictures``, some pictures beside ground truth and prediction.
    - After a test the same three, named ``test_*``.
    - When the training ends, one line in the log with the best checkpoint and the command that
      predicts with it.

    The pictures and predictions are those of the validation itself: nothing is computed again.
    The class scores need :class:`IoUMetric` of this package. The first process alone writes. What
    cannot be written is a warning; the run goes on.

    Args:
        enabled: False writes nothing.
        pictures: How many are drawn, at most, evenly spread over the data.
    """

    priority = 'LOWEST'  # After CheckpointHook, which decides whether a validation is the best.

    def __init__(self, enabled: bool = True, pictures: int = 6) -> None:
        self.enabled = enabled
        self.pictures = pictures
        self.best: str | None = None  # The best checkpoint that is known.
        self.wanted: set[int] = set()  # The places of the pictures in this process's data.
        self.samples: list[tuple[str, np.ndarray, np.ndarray]] = []  # Path, truth, prediction.
        self.example = 'PICTURE'  # The path of a picture that can be predicted.

    def before_train(self, runner: Runner) -> None:
        """Notes the best checkpoint of the training that is resumed."""
        self.best = _find_checkpoint(runner, 'best_ckpt')

    def before_val_epoch(self, runner: Runner) -> None:
        """Chooses the pictures, evenly spread over the data."""
        self._choose(runner, 'val_dataloader')

    def before_test_epoch(self, runner: Runner) -> None:
        """Chooses the pictures, evenly spread over the data."""
        self._choose(runner, 'test_dataloader')

    def _choose(self, runner: Runner, name: str) -> None:
        self.wanted, self.samples = set(), []
        if self._writes():
            with self._errors_as_warnings(runner):
                loader = getattr(runner, name)
                number = min(len(loader) * (loader.batch_size or 1), len(loader.dataset))
                places = np.linspace(0, number - 1, self.pictures).round()
                self.wanted = set(places.astype(int).tolist())

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                       outputs: Sequence | None = None) -> None:
        """Keeps labels and predictions of the pictures that were chosen."""
        self._keep(runner, batch_idx, runner.val_dataloader, outputs or ())

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                        outputs: Sequence | None = None) -> None:
        """Keeps labels and predictions of the pictures that were chosen."""
        self._keep(runner, batch_idx, runner.test_dataloader, outputs or ())

    def _keep(self, runner: Runner, batch_idx: int, loader: DataLoader, outputs: Sequence) -> None:
        for place, sample in enumerate(outputs, batch_idx * (loader.batch_size or 1)):
            if place in self.wanted and 'gt_sem_seg' in sample:
                with self._errors_as_warnings(runner):
                    self.example = sample.img_path
                    self.samples.append((sample.img_path, *(
                        labels.data[0].byte().cpu().numpy()
                        for labels in (sample.gt_sem_seg, sample.pred_sem_seg))))

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Writes the curve, and the rest if the validation was the best."""
        if not self._writes():
            return
        with self._errors_as_warnings(runner):
            self._draw_curve(runner)
        best = _find_checkpoint(runner, 'best_ckpt')
        if best is None or best != self.best:
            self.best = best
            with self._errors_as_warnings(runner):
                self._write(runner, 'val', runner.val_evaluator, runner.val_dataloader.dataset)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Writes class scores, confusion matrix and pictures."""
        if not self._writes():
            return
        with self._errors_as_warnings(runner):
            self._write(runner, 'test', runner.test_evaluator, runner.test_dataloader.dataset)
            written = sorted(Path(runner.work_dir).glob('test_*'))
            if written:
                runner.logger.info('Of this test: ' + ', '.join(map(_shorten, written)))

    def _write(self, runner: Runner, name: str, evaluator: Evaluator, dataset: Any) -> None:
        folder = Path(runner.work_dir)
        classes, palette = (dataset.metainfo[key] for key in ('classes', 'palette'))
        pictures = folder / f'{name}_pictures'
        for earlier in (folder / f'{name}_classes.md', folder / f'{name}_confusion.png',
                        *pictures.glob('[0-9]*_*.png')):
            earlier.unlink(missing_ok=True)  # It would pass for this one's.
        confusions = [metric.confusion for metric in evaluator.metrics
                      if isinstance(metric, IoUMetric) and metric.confusion is not None]
        for confusion in confusions[:1]:
            (folder / f'{name}_classes.md').write_text(format_class_table(confusion, classes))
            draw_confusion(confusion[:-1, :-1], classes, folder / f'{name}_confusion.png')
        digits = len(str(len(self.samples)))
        for number, (path, truth, prediction) in enumerate(self.samples, 1):
            draw_sample(mmcv.imread(path), truth, prediction, classes, palette,
                        pictures / f'{number:0{digits}}_{Path(path).stem}.png')
        self.samples = []

    def after_train(self, runner: Runner) -> None:
        """Writes the last curve, and logs how to predict."""
        if not self._writes():
            return
        with self._errors_as_warnings(runner):
            self._draw_curve(runner)
            config = Path(runner.work_dir) / Path(
                runner.cfg.filename or f'{runner.timestamp}.py').name  # MMEngine's copy.
            best = _find_checkpoint(runner, 'best_ckpt')
            checkpoint = best or _find_checkpoint(runner, 'last_ckpt')
            if checkpoint:
                command = 'python -m mmseg_bisenetv2 predict ' + shlex.join([
                    _shorten(self.example), '--config', _shorten(config), '--checkpoint',
                    _shorten(checkpoint), '--out', 'predictions'])
                runner.logger.info(f'{"Best" if best else "Last"} checkpoint: '
                                   f'{_shorten(checkpoint)}. To predict with it: {command}')

    def _draw_curve(self, runner: Runner) -> None:
        work_dir = Path(runner.work_dir)
        with contextlib.suppress(FileNotFoundError):  # Nothing is logged before a few iterations.
            draw_curves({work_dir.name: work_dir}, work_dir / 'training_curve.png')

    def _writes(self) -> bool:
        return self.enabled and is_main_process()

    @contextlib.contextmanager
    def _errors_as_warnings(self, runner: Runner) -> Iterator[None]:
        """Turns whatever goes wrong into a warning: no run is lost for a picture."""
        try:
            yield
        except Exception as error:
            self.wanted = set()
            runner.logger.warning(f'Not all results were written to {runner.work_dir}: {error!r}')


def _find_checkpoint(runner: Runner, key: str) -> str | None:
    """Returns the checkpoint that the message hub names; of several that are best, the first."""
    found = [name for name in runner.message_hub.runtime_info if name.startswith(key)]
    return runner.message_hub.get_info(found[0]) if found else None


def _shorten(path: str | Path) -> str:
    """Returns a path from the current folder on, if it lies below it."""
    absolute, current = os.path.abspath(path), os.getcwd() + os.sep
    return absolute.removeprefix(current) if '://' not in str(path) else str(path)
