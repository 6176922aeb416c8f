"""MMSegmentation's IoUMetric, from one confusion matrix of integers."""
import functools
import inspect
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor

from mmseg_bisenetv2.datasets.checks import ABSENT_IN_MIOU, describe_absent
from mmseg_bisenetv2.registry import METRICS

from mmseg.evaluation import IoUMetric as MMSegIoUMetric


@METRICS.register_module()
class IoUMetric(MMSegIoUMetric):
    """Drop-in for MMSegmentation's IoUMetric: the same scores and table, counted in one pass.

    The pixels of an image are counted on its device, as integers, into one confusion matrix, where
    MMSegmentation makes three histograms of masked copies in float32, which is exact up to 16.7
    million pixels of a class only.

    Args:
        *args: Those of ``mmseg.evaluation.IoUMetric``.
        **kwargs: The same, by name.

    Attributes:
        confusion: Pixels of the last evaluation, true class by predicted class, (C + 1, C + 1)
            int64, the last row and column for what is no class;
            None before it, and in processes other than the first.

    Raises:
        TypeError: If the original would ignore an argument, since it does not know it.
    """

    confusion: np.ndarray | None = None
    _said = ''

    @functools.wraps(MMSegIoUMetric.__init__)  # type: ignore[misc] # For its signature.
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        known = [name for name in inspect.signature(MMSegIoUMetric).parameters if name != 'kwargs']
        if unknown := kwargs.keys() - known:
            raise TypeError(f'IoUMetric has no argument {", ".join(sorted(unknown))}: expected '
                            f'some of {", ".join(known)}')
        super().__init__(*args, **kwargs)

    @property
    def dataset_meta(self) -> Any:
        """What the data set says of itself: its classes, and if it is ours its ``ignore_index``.

        Raises:
            ValueError: When it is set, at the start of a run, and another label is ignored there
                than here. A perfect prediction would not be scored as one.
        """
        return super().dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, meta: Any) -> None:
        ignored = (meta or {}).get('ignore_index', self.ignore_index)
        if ignored != self.ignore_index:
            raise ValueError(
                f'The data set ignores label {ignored}, IoUMetric {self.ignore_index}. Expected '
                f"the same number: dict(type='mmseg_bisenetv2.IoUMetric', ignore_index={ignored})")
        MMSegIoUMetric.dataset_meta.fset(self, meta)

    @staticmethod
    def intersect_and_union(pred_label: Tensor, label: Tensor, num_classes: int,
                            ignore_index: int) -> Tensor:
        """Counts the pixels of one image; :meth:`compute_metrics` adds the counts up.

        Args:
            pred_label: Predicted classes, (H, W).
            label: True classes, (H, W).
            num_classes: C.
            ignore_index: The label of pixels that do not count.

        Returns:
            (C + 1, C + 1) int64, sparse, on the CPU: true class by predicted class. The last row
            and column count what is no class.
        """
        label = label.int()
        true = label.clamp(max=num_classes).masked_fill_(label < 0, num_classes)
        true.masked_fill_(label == ignore_index, num_classes + 1)
        predicted = pred_label.int().clamp(max=num_classes)
        predicted = predicted.masked_fill_(predicted < 0, num_classes)
        pairs = true.mul_(num_classes + 1).add_(predicted)
        counts = torch.bincount(pairs.reshape(-1), minlength=(num_classes + 2) * (num_classes + 1))
        return counts.view(num_classes + 2, num_classes + 1)[:-1].cpu().to_sparse()

    def compute_metrics(self, results: list[Tensor]) -> dict[str, float]:
        """Computes the scores of all images, as MMSegmentation does.

        Args:
            results: A confusion matrix for each image.

        Returns:
            Such as ``{'aAcc': ..., 'mIoU': 74.62, 'mAcc': ...}``, in per cent.
        """
        if self.format_only:
            return super().compute_metrics(results)
        confusion = functools.reduce(torch.add, results).to_dense()
        self.confusion = confusion.numpy()
        found = confusion[:-1].sum(1).nonzero().flatten().tolist()
        absent = describe_absent(self.dataset_meta['classes'], found)
        if absent and self.nan_to_num is None and absent != self._said:
            self._said = absent  # Once, not after every validation of a training.
            print_log(f'{type(self).__name__}: {absent}. {ABSENT_IN_MIOU}', logger='current',
                      level=logging.WARNING)
        return super().compute_metrics([_class_areas(confusion)])


def mean_iou(confusion: Tensor) -> float:
    """Computes the mean intersection over union, in per cent, of the classes that occur.

    Args:
        confusion: As :meth:`IoUMetric.intersect_and_union` counts it, dense.
    """
    correct, union, *_ = _class_areas(confusion)
    return 100 * float((correct / union).nanmean())


def _class_areas(confusion: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the pixels of each class: intersection, union, predicted, true; (C,) float64."""
    correct = confusion.diag()[:-1].double()
    true, predicted = confusion.sum(1)[:-1].double(), confusion.sum(0)[:-1].double()
    return correct, true + predicted - correct, predicted, true


def format_class_table(confusion: np.ndarray, classes: Sequence[str]) -> str:
    """Makes a table in Markdown of the scores of each class, in per cent.

    Args:
        confusion: Pixels, true class by predicted class, (C + 1, C + 1). The last row and column
            count what is no class.
        classes: Their names.

    Returns:
        A line for each class and one for the means, such as IoUMetric's table. "Acc" is the share
        of a class's pixels that are found, "Precision" that of the predicted ones that are right,
        "Pixels" its share of all. A dash stands for what is undefined, since there are no such
        pixels; it does not count in the means.
    """
    correct, union, predicted, true = _class_areas(torch.from_numpy(confusion))
    columns = [100 * values for values in (
        correct / union, correct / true, correct / predicted, true / true.sum())]
    lines = ['| Class | IoU | Acc | Precision | Pixels |', '| --- | --: | --: | --: | --: |']
    for name, *values in zip(classes, *columns, strict=True):
        lines.append(f'| {name} | {" | ".join(map(_format_score, values))} |')
    means = [_format_score(values.nanmean()) for values in columns[:3]]
    return '\n'.join([*lines, f'| **mean** | {" | ".join(means)} | |']) + '\n'


def _format_score(value: Tensor) -> str:
    return '-' if value.isnan() else f'{value:.2f}'
