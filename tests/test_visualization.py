"""Pictures and curves of a run."""
import json

import cv2
import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes

import mmseg_bisenetv2  # noqa: F401
from mmseg_bisenetv2.visualization import (
    colour_table,
    draw_confusion,
    draw_curves,
    draw_sample,
    read_curve,
)


def test_samples_show_input_truth_and_prediction(tmp_path):
    rng = np.random.default_rng(0)
    image, labels = rng.integers(256, size=(64, 128, 3)), rng.integers(3, size=(2, 64, 128))
    labels[0, :5] = 255
    palette = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]])
    draw_sample(image.astype(np.uint8), *labels, 'abc', palette, tmp_path / 'a.png')
    picture = cv2.imread(str(tmp_path / 'a.png'))
    assert picture.shape == (64 + 2 * 24, 3 * 128, 3)
    panels = np.split(picture[24:24 + 64], 3, axis=1)
    assert np.array_equal(panels[0], image)
    table = np.zeros((256, 3))
    table[:3] = palette
    for panel, classes in zip(panels[1:], labels, strict=True):
        assert np.array_equal(panel[..., ::-1], table[classes])  # 255 is black.


def test_legend_names_the_classes_that_occur(tmp_path):
    image, labels = np.zeros((30, 400, 3), np.uint8), np.zeros((30, 400), np.uint8)
    palette = [[200, 0, 0], [0, 200, 0], [0, 0, 200]]

    def legend(truth, prediction):
        draw_sample(image, truth, prediction, 'abc', palette, tmp_path / 'new/a.png')
        picture = cv2.imread(str(tmp_path / 'new/a.png'))[24 + 30:, :, ::-1]
        colours = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
        return [colour for colour in palette if tuple(colour) in colours]

    assert legend(labels, labels) == palette[:1]
    assert legend(labels, labels + 2) == [palette[0], palette[2]]
    assert legend(np.full_like(labels, 255), labels + 1) == palette[1:2]  # 255 is no class.


def test_large_samples_are_drawn_smaller_and_in_the_size_of_the_labels(tmp_path):
    labels = np.zeros((2000, 4000), np.uint8)
    draw_sample(np.zeros((20, 40, 3), np.uint8), labels, labels, 'a', [[9, 9, 9]],
                tmp_path / 'a.png')
    assert cv2.imread(str(tmp_path / 'a.png')).shape == (512 + 2 * 24, 3 * 1024, 3)


def write_log(work_dir, name, rows, resume=None):
    folder = work_dir / name / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, rows)))
    if resume is not None:
        (folder / 'config.py').write_text(f'load_from = None\nresume = {resume}\n')


def losses(first, last, loss, **more):
    return [dict(iter=i, loss=loss, step=i, **more) for i in range(first, last + 1)]


@pytest.mark.parametrize('resume', [True, None])
def test_curve_joins_resumed_runs(tmp_path, resume):
    write_log(tmp_path, '20260101', [*losses(1, 3, 9.0), dict(mIoU=50.0, step=1)], False)
    write_log(tmp_path, '20260102', [*losses(3, 5, 1.0), dict(mIoU=60.0, step=3)], resume)
    curve = read_curve(tmp_path)
    assert curve.losses == {1: 9, 2: 9, 3: 1, 4: 1, 5: 1}
    assert curve.scores == {1: 50, 3: 60}


def test_curve_leaves_out_what_a_new_run_has_replaced(tmp_path):
    write_log(tmp_path, '20260101', [*losses(1, 9, 9.0), dict(mIoU=50.0, step=9)], False)
    write_log(tmp_path, '20260102', losses(5, 6, 1.0), False)
    assert read_curve(tmp_path) == ({5: 1, 6: 1}, {})
    write_log(tmp_path, '20260103', losses(2, 2, 3.0), True)  # From an earlier checkpoint.
    assert read_curve(tmp_path) == ({2: 3}, {})


def test_curve_counts_iterations_where_the_training_counts_epochs(tmp_path):
    write_log(tmp_path, '20260101', [
        *losses(1, 4, 9.0, epoch=1), dict(mIoU=5.0, step=1),
        *losses(5, 8, 8.0, epoch=2), dict(mIoU=6.0, step=2)])
    assert read_curve(tmp_path).scores == {4: 5, 8: 6}


def test_curve_of_a_run_that_was_killed_while_it_wrote(tmp_path):
    write_log(tmp_path, '20260101', losses(1, 3, 9.0))
    path = tmp_path / '20260101/vis_data/scalars.json'
    path.write_text(path.read_text()[:-9])
    assert list(read_curve(tmp_path).losses) == [1, 2]
    path.write_text(path.read_text() + '\n' + json.dumps(losses(4, 4, 1.0)[0]))
    with pytest.raises(json.JSONDecodeError):
        read_curve(tmp_path)


def test_curves_of_several_runs_with_their_labels(tmp_path, monkeypatch):
    write_log(tmp_path / 'a', '20260101', [*losses(1, 2, 9.0), dict(mIoU=50.0, step=2)])
    write_log(tmp_path / 'b', '20260101', losses(1, 3, 8.0))
    drawn = []
    original = Axes.plot
    monkeypatch.setattr(Axes, 'plot', lambda self, *args, **kwargs: drawn.append(
        (kwargs['label'], *args)) or original(self, *args, **kwargs))
    draw_curves(dict(ours=tmp_path / 'a', stock=tmp_path / 'b'), tmp_path / 'curves.png')
    assert drawn == [('ours', [1, 2], [9, 9]), ('ours', [2], [50]),
                     ('stock', [1, 2, 3], [8, 8, 8]), ('stock', [], [])]
    both = cv2.imread(str(tmp_path / 'curves.png'))
    draw_curves(dict(stock=tmp_path / 'b'), tmp_path / 'curves.png')  # Has no validation.
    assert len(cv2.imread(str(tmp_path / 'curves.png'))) < len(both)


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        draw_curves(dict(run=tmp_path), tmp_path / 'curve.png')


def test_colour_table():
    table = colour_table([(1, 2, 3), [255, 0, 128]])
    assert table.shape == (256, 3) and table.dtype == np.uint8
    assert table[:2].tolist() == [[1, 2, 3], [255, 0, 128]] and not table[2:].any()


def test_figures_leave_a_notebooks_backend_alone(tmp_path):
    write_log(tmp_path, 'run', losses(1, 1, 2.0))
    before = matplotlib.get_backend()
    pyplot.switch_backend('svg')
    pyplot.close('all')  # those of other tests
    try:
        draw_curves(dict(run=tmp_path), tmp_path / 'a.png')
        draw_confusion(np.eye(2), 'ab', tmp_path / 'new/b.png')
        assert matplotlib.get_backend() == 'svg' and not pyplot.get_fignums()
    finally:
        pyplot.switch_backend(before)
    assert all(cv2.imread(str(tmp_path / name)) is not None for name in ('a.png', 'new/b.png'))
