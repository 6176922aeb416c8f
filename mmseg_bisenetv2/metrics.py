"""MMSegmentation's IoUMetric, from one confusion matrix of integers."""
import functools

import torch
from mmengine.logging import print_log

from mmseg_bisenetv2.registry import METRICS
from mmseg_bisenetv2.visualization import draw_confusion

from mmseg.evaluation import IoUMetric as MMSegIoUMetric


@METRICS.register_module()
class IoUMetric(MMSegIoUMetric):
    """Drop-in for MMSegmentation's IoUMetric: the same scores and table, counted in one pass.

    The pixels of an image are counted on its device, as integers, into one confusion matrix, where
    MMSegmentation makes three histograms of masked copies in float32, which is exact up to 16.7
    million pixels of a class only.

    Args:
        confusion_picture (str, optional): A PNG to draw the confusion matrix into.
        **kwargs: Those of ``mmseg.evaluation.IoUMetric``.
    """

    def __init__(self, confusion_picture=None, **kwargs):
        super().__init__(**kwargs)
        self.confusion_picture = confusion_picture

    @staticmethod
    def intersect_and_union(pred_label, label, num_classes, ignore_index):
        """Counts of one image, which :meth:`compute_metrics` adds up.

        Args:
            pred_label (Tensor): Predicted classes, (H, W).
            label (Tensor): True classes, (H, W).
            num_classes (int): C.
            ignore_index (int): The label of pixels that do not count.

        Returns:
            Tensor: (C + 1, C + 1) int64, sparse, on the CPU: true class by predicted class. The
            last row and column count what is no class.
        """
        label = label.int()
        true = label.clamp(max=num_classes).masked_fill_(label < 0, num_classes)
        true.masked_fill_(label == ignore_index, num_classes + 1)
        predicted = pred_label.int().clamp(max=num_classes)
        predicted = predicted.masked_fill_(predicted < 0, num_classes)
        pairs = true.mul_(num_classes + 1).add_(predicted)
        counts = torch.bincount(pairs.reshape(-1), minlength=(num_classes + 2) * (num_classes + 1))
        return counts.view(num_classes + 2, num_classes + 1)[:-1].cpu().to_sparse()

    def compute_metrics(self, results):
        """The scores of all images, as MMSegmentation computes them.

        Args:
            results (list[Tensor]): A confusion matrix for each image.

        Returns:
            dict[str, float]: Such as ``{'aAcc': ..., 'mIoU': 74.62, 'mAcc': ...}``, in per cent.
        """
        if self.format_only:
            return super().compute_metrics(results)
        confusion = functools.reduce(torch.add, results).to_dense()
        correct = confusion.diag()[:-1].double()
        true, predicted = confusion.sum(1)[:-1].double(), confusion.sum(0)[:-1].double()
        if self.confusion_picture:
            draw_confusion(confusion[:-1, :-1].numpy(), self.dataset_meta['classes'],
                           self.confusion_picture)
            print_log(f'confusion matrix: {self.confusion_picture}', logger='current')
        return super().compute_metrics([(correct, true + predicted - correct, predicted, true)])


def mean_iou(confusion):
    """Mean intersection over union, in per cent, of the classes that occur.

    Args:
        confusion (Tensor): As :meth:`IoUMetric.intersect_and_union` counts it.
    """
    correct = confusion.diag()[:-1].double()
    union = (confusion.sum(0) + confusion.sum(1))[:-1] - correct
    return 100 * float((correct / union)[union > 0].mean())
