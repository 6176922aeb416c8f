import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import RepeatDataset
from mmengine.evaluator import Evaluator

import mmseg_bisenetv2  # noqa: F401
from mmseg_bisenetv2 import metrics
from mmseg_bisenetv2.datasets import BaseSegDataset
from mmseg_bisenetv2.metrics import IoUMetric, format_class_table, mean_iou
from mmseg_bisenetv2.visualization import draw_confusion

from mmseg.evaluation import IoUMetric as MMSegIoUMetric
from mmseg.registry import METRICS

CLASSES = ('road', 'sky', 'car', 'bicycle', 'never seen')


def samples(number=4, dtype=torch.int64):
    torch.manual_seed(0)
    for i in range(number):
        label = torch.randint(0, 4, (1, 40, 60), dtype=torch.uint8)
        wrong = torch.rand(label.shape) < 0.3
        pred = torch.where(wrong, torch.randint(0, 4, label.shape), label.long())
        label[torch.rand(label.shape) < 0.2] = 255
        if i == 2:
            label.fill_(255)
        yield dict(pred_sem_seg=dict(data=pred.to(dtype)), gt_sem_seg=dict(data=label),
                   img_path=f'folder/{i}.png')


def evaluate(kind, data, **kwargs):
    tables = []
    metric = kind(**kwargs)
    metric.dataset_meta = dict(classes=CLASSES)
    for sample in data:
        metric.process({}, [sample])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmseg.evaluation.metrics.iou_metric.print_log',
                      lambda text, *args, **kwargs: tables.append(text))
        return metric.evaluate(len(metric.results) or 1), tables


def text(results):
    return {key: f'{value:.2f}' for key, value in results.items()}


@pytest.mark.parametrize('dtype', [torch.int64, torch.uint8, torch.float32])
@pytest.mark.parametrize('options', [
    {}, dict(iou_metrics=['mIoU', 'mDice', 'mFscore'], beta=2), dict(nan_to_num=-1),
    dict(ignore_index=3)])
def test_scores_and_table_are_those_of_mmsegmentation(options, dtype):
    ours, our_table = evaluate(IoUMetric, samples(dtype=dtype), **options)
    theirs, their_table = evaluate(MMSegIoUMetric, samples(dtype=dtype), **options)
    assert text(ours) == text(theirs)
    assert our_table == their_table and 'bicycle' in our_table[1]


@pytest.mark.parametrize('options, said', [({}, True), (dict(nan_to_num=-1), False)])
def test_classes_that_never_occur_are_said(options, said, monkeypatch):
    lines = []
    monkeypatch.setattr(metrics, 'print_log', lambda line, **_: lines.append(line))
    evaluate(IoUMetric, samples(), **options)
    assert lines == ['IoUMetric: no pixel of 1 of 5 classes: never seen. mIoU leaves them out, or '
                     'counts 0 as soon as they are predicted'] * said
    data = list(samples())
    data[0]['gt_sem_seg']['data'][0, 0] = 4
    evaluate(IoUMetric, data, **options)
    assert len(lines) == said


def test_classes_that_never_occur_are_said_once_in_a_training(monkeypatch):
    lines = []
    monkeypatch.setattr(metrics, 'print_log', lambda line, **_: lines.append(line))
    metric = IoUMetric()
    metric.dataset_meta = dict(classes=CLASSES)
    for _ in range(2):
        for sample in samples():
            metric.process({}, [sample])
        metric.evaluate(4)
    assert len(lines) == 1


def test_labels_that_are_no_class():
    data = list(samples())
    data[0]['gt_sem_seg']['data'][0, :5] = 77
    ours, theirs = (evaluate(kind, data)[0] for kind in (IoUMetric, MMSegIoUMetric))
    assert text(ours) == text(theirs)


def test_counts_stay_exact_where_float32_does_not():
    metric = IoUMetric()
    metric.dataset_meta = dict(classes=('a', 'b'))
    counts = torch.tensor([[2**25 + 1, 2**24 + 1, 0], [1, 2**25 + 3, 0], [0, 0, 0]])
    given = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MMSegIoUMetric, 'compute_metrics', lambda self, areas: given.extend(areas[0]))
        metric.compute_metrics([counts.to_sparse()] * 100)
    correct, union, predicted, true = (area.tolist() for area in given)
    assert correct == [100 * (2**25 + 1), 100 * (2**25 + 3)]
    assert true == [100 * (2**25 + 2**24 + 2), 100 * (2**25 + 4)]
    assert predicted == [100 * (2**25 + 2), 100 * (2**25 + 2**24 + 4)]
    assert union == [t + p - c for t, p, c in zip(true, predicted, correct, strict=True)]


def test_predictions_that_are_no_class_and_strided_maps():
    label = torch.zeros(4, 6, dtype=torch.uint8)
    predicted = torch.tensor([[-1, 0, 1, 7, 0, 0]] * 4)
    counts = IoUMetric.intersect_and_union(predicted, label, 2, 255).to_dense()
    assert counts.tolist() == [[12, 4, 8], [0, 0, 0], [0, 0, 0]]
    transposed = IoUMetric.intersect_and_union(predicted.t(), label.t(), 2, 255).to_dense()
    assert torch.equal(counts, transposed)


def test_formatted_results(tmp_path):
    for name, kind in (('ours', IoUMetric), ('theirs', MMSegIoUMetric)):
        results, _ = evaluate(
            kind, samples(2), output_dir=str(tmp_path / name), format_only=True)
        assert results == {}
    for i in range(2):
        ours, theirs = (cv2.imread(str(tmp_path / name / f'{i}.png'), cv2.IMREAD_UNCHANGED)
                        for name in ('ours', 'theirs'))
        assert np.array_equal(ours, theirs)


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match='no argument confusion_picture: expected some of ignore'):
        METRICS.build(dict(type='mmseg_bisenetv2.IoUMetric', confusion_picture='confusion.png'))


def test_picture(tmp_path):
    path, confusion = tmp_path / 'new' / 'confusion.png', np.array([[3, 1], [0, 0]])
    draw_confusion(confusion, ('a', 'b'), path)
    first = cv2.imread(str(path))
    assert first.shape[0] > 100
    draw_confusion(confusion * 7, ('a', 'b'), path)
    assert np.array_equal(first, cv2.imread(str(path)))  # rows are in per cent
    draw_confusion(confusion.T, ('a', 'b'), path)
    assert not np.array_equal(first, cv2.imread(str(path)))


def test_picture_of_many_classes_stays_small(tmp_path):
    draw_confusion(np.eye(171), [f'class {i}' for i in range(171)], tmp_path / 'confusion.png')
    height, width, _ = cv2.imread(str(tmp_path / 'confusion.png')).shape
    assert 171 * 6 < height < 3000 and width < 3000


def test_class_table_has_the_scores_of_mmsegmentation():
    def fraction(numerator, denominator):
        return f'{100 * numerator / denominator:.2f}'

    metric = IoUMetric()
    metric.dataset_meta = dict(classes=CLASSES)
    for sample in samples():
        metric.process({}, [sample])
    assert metric.confusion is None
    scores = metric.evaluate(4)
    counts = metric.confusion
    lines = format_class_table(counts, CLASSES).splitlines()
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[2:]]
    assert rows[1] == [
        'sky', fraction(counts[1, 1], counts[1].sum() + counts[:, 1].sum() - counts[1, 1]),
        fraction(counts[1, 1], counts[1].sum()), fraction(counts[1, 1], counts[:, 1].sum()),
        fraction(counts[1].sum(), counts.sum())]
    assert rows[4] == ['never seen', '-', '-', '-', '0.00']
    assert rows[5][:3] == ['**mean**', f'{scores["mIoU"]:.2f}', f'{scores["mAcc"]:.2f}']
    assert rows[5][4] == ''


def test_mean_iou_is_that_of_the_metric():
    expected = evaluate(IoUMetric, samples())[0]['mIoU']
    confusion = sum(IoUMetric.intersect_and_union(
        s['pred_sem_seg']['data'], s['gt_sem_seg']['data'], len(CLASSES), 255).to_dense()
        for s in samples())
    assert confusion.diag()[-2] == 0 and f'{mean_iou(confusion):.2f}' == f'{expected:.2f}'


@pytest.mark.parametrize('wrapped', [False, True])
def test_labels_that_only_the_data_set_ignores_are_refused(tmp_path, wrapped):
    for folder in ('images', 'maps'):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / 'a.png'), np.full((4, 4), 254, np.uint8))
    dataset = BaseSegDataset(
        data_prefix=dict(img_path=str(tmp_path / 'images'), seg_map_path=str(tmp_path / 'maps')),
        img_suffix='.png', metainfo=dict(classes=CLASSES), ignore_index=254)
    meta = (RepeatDataset(dataset, 2) if wrapped else dataset).metainfo
    evaluator = Evaluator(IoUMetric())
    with pytest.raises(ValueError, match=r'ignores label 254, IoUMetric 255.*ignore_index=254'):
        evaluator.dataset_meta = meta
    Evaluator(IoUMetric(254)).dataset_meta = meta
    evaluator.dataset_meta = dict(classes=CLASSES)  # A data set of MMSegmentation does not say.
