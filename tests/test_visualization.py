"""Pictures and curves of a run."""
import json

import cv2
import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from mmengine.config import Config

import mmseg_bisenetv2  # noqa: F401
from mmseg_bisenetv2.datasets.toy_cityscapes import make_toy_cityscapes
from mmseg_bisenetv2.visualization import (
    colour_table,
    draw_confusion,
    draw_curve,
    draw_samples,
    read_scores,
)

from mmseg.apis import init_model
from mmseg.registry import DATASETS


def test_samples_show_input_truth_and_prediction(request, tmp_path):
    make_toy_cityscapes(tmp_path / 'toy', num_train=1, num_val=2, size=(64, 128))
    config = Config.fromfile(request.config.rootpath / 'configs/bisenetv2_fcn_toy-cityscapes.py')
    config.test_dataloader.dataset.data_root = str(tmp_path / 'toy')
    model = init_model(config, device='cpu')
    dataset = DATASETS.build(config.test_dataloader.dataset)
    paths = draw_samples(model, dataset, tmp_path / 'pictures', range(2))
    assert [p.parent for p in paths] == [tmp_path / 'pictures'] * 2
    picture = cv2.imread(str(paths[1]))
    assert picture.shape == (64 + 24, 3 * 128, 3)
    image, truth, prediction = np.split(picture[24:], 3, axis=1)
    assert np.array_equal(image, cv2.imread(dataset.get_data_info(1)['img_path']))
    palette = {tuple(colour) for colour in dataset.metainfo['palette']}
    colours = {tuple(c) for c in truth[..., ::-1].reshape(-1, 3).tolist()}
    assert len(colours) > 3 and colours <= palette | {(0, 0, 0)}
    assert {tuple(c) for c in prediction[..., ::-1].reshape(-1, 3).tolist()} <= palette


def test_curve_joins_resumed_runs(tmp_path, monkeypatch):
    for run, loss, first in (('20260101_000000', 9.0, 1), ('20260102_000000', 1.0, 3)):
        (tmp_path / run / 'vis_data').mkdir(parents=True)
        rows = [dict(iter=i, loss=loss, step=i) for i in range(first, first + 3)]
        rows.append(dict(mIoU=50.0, step=first))
        (tmp_path / run / 'vis_data/scalars.json').write_text('\n'.join(map(json.dumps, rows)))
    lines = []
    monkeypatch.setattr(Axes, 'plot', lambda self, *args, **kwargs: lines.append(args))
    draw_curve(tmp_path, tmp_path / 'curve.png')
    assert lines == [((1, 2, 3, 4, 5), (9.0, 9.0, 1.0, 1.0, 1.0)), ((1, 3), (50.0, 50.0))]
    monkeypatch.undo()
    draw_curve(tmp_path, tmp_path / 'curve.png')
    assert cv2.imread(str(tmp_path / 'curve.png')).std() > 10


def test_scores_are_those_of_the_newest_test(tmp_path):
    for run, score in (('20260101_000000', 1.0), ('20260102_000000', 2.0)):
        (tmp_path / run).mkdir()
        (tmp_path / run / f'{run}.json').write_text(json.dumps(dict(mIoU=score)))
    assert read_scores(tmp_path) == dict(mIoU=2.0)


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        draw_curve(tmp_path, tmp_path / 'curve.png')
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        read_scores(tmp_path)


def test_colour_table():
    table = colour_table([(1, 2, 3), [255, 0, 128]])
    assert table.shape == (256, 3) and table.dtype == np.uint8
    assert table[:2].tolist() == [[1, 2, 3], [255, 0, 128]] and not table[2:].any()


def test_figures_leave_a_notebooks_backend_alone(tmp_path):
    (tmp_path / 'run/vis_data').mkdir(parents=True)
    (tmp_path / 'run/vis_data/scalars.json').write_text(json.dumps(dict(iter=1, loss=2, step=1)))
    before = matplotlib.get_backend()
    pyplot.switch_backend('svg')
    try:
        draw_curve(tmp_path, tmp_path / 'a.png')
        draw_confusion(np.eye(2), 'ab', tmp_path / 'new/b.png')
        assert matplotlib.get_backend() == 'svg' and not pyplot.get_fignums()
    finally:
        pyplot.switch_backend(before)
    assert all(cv2.imread(str(tmp_path / name)) is not None for name in ('a.png', 'new/b.png'))
