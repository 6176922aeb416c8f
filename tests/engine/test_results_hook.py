"""What a run leaves in its work directory by itself."""
import logging
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from small import write
from trainings import build as build_runner

from mmseg_bisenetv2.deploy import Predictor
from mmseg_bisenetv2.engine import ResultsHook, results_hook
from mmseg_bisenetv2.visualization import read_curve

from mmseg.structures import SegDataSample

OPTIONS: dict[str, Any] = dict(
    train_cfg__val_interval=4, default_hooks__checkpoint__save_best='mIoU',
    default_hooks__checkpoint__interval=8, randomness__deterministic=False,
    optim_wrapper__optimizer__lr=1e-6)


def build(config: Path, work_dir: Path, **options: Any) -> Any:
    """A runner with a visualizer of its own: MMEngine keeps one for each name in a process."""
    return build_runner(config, work_dir, visualizer__name=str(work_dir), **options)


class OneClass(Hook):
    """From iteration 6 on, lets the network predict one class everywhere, which scores less."""

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None,
                         outputs: dict | None = None) -> None:
        if runner.iter + 1 == 6:
            runner.model.decode_head.conv_seg.bias.data[0] = 1e6


def read_log(work_dir: Path) -> str:
    return sorted(work_dir.glob('*/*.log'))[-1].read_text()


def written(work_dir: Path) -> list[str]:
    return sorted(path.name for path in work_dir.iterdir()
                  if path.name.startswith(('training_', 'val_', 'test_')))


@pytest.fixture(scope='module')
def work_dir(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a training whose validation at iteration 4 is better than that at 8."""
    folder = tmp_path_factory.mktemp('results') / 'work'
    _, weights = write(folder.parent)  # No class wins everywhere.
    runner = build(config, folder, **OPTIONS, load_from=str(weights))
    runner.register_hook(OneClass())
    runner.train()
    return folder


def test_files(work_dir: Path) -> None:
    assert written(work_dir) == ['training_curve.png', 'val_classes.md', 'val_confusion.png',
                                 'val_pictures']
    pictures = sorted(path.name for path in (work_dir / 'val_pictures').iterdir())
    assert pictures == ['1_0.png', '2_1.png', '3_2.png', '4_4.png', '5_5.png', '6_6.png']
    assert len(read_curve(work_dir).losses) == 8


def test_scores_are_those_of_the_best_checkpoint(work_dir: Path) -> None:
    scores = read_curve(work_dir).scores
    assert sorted(scores) == [4, 8] and scores[4] > scores[8] + 1
    mean = (work_dir / 'val_classes.md').read_text().splitlines()[-1]
    assert mean.startswith(f'| **mean** | {scores[4]:.2f} |')


def test_command_predicts_what_the_pictures_show(work_dir: Path) -> None:
    line, = (line for line in read_log(work_dir).splitlines() if 'To predict with it' in line)
    assert f'Best checkpoint: {work_dir}/best_mIoU_iter_4.pth. ' in line
    command = line.partition('To predict with it: python -m mmseg_bisenetv2 predict ')[2]
    picture, *options = shlex.split(command)
    assert options[::2] == ['--config', '--checkpoint', '--out'] and options[5] == 'predictions'
    predictor = Predictor(options[1], options[3], backend='torch', precision='fp32')
    assert Path(picture).name == '6.png'
    drawn = cv2.imread(str(work_dir / 'val_pictures/6_6.png'))
    height, width = 40, 48
    assert np.array_equal(drawn[24:24 + height, :width], cv2.imread(picture))
    labels = predictor(picture)
    assert len(np.unique(labels)) > 1
    # The palette of this data set gives class i the grey value i.
    assert np.array_equal(drawn[24:24 + height, 2 * width:, 0], labels)


def test_resuming_leaves_the_results_of_a_better_validation(
        work_dir: Path, config: Path, tmp_path: Path) -> None:
    folder = tmp_path / 'work'
    folder.mkdir()
    for name in ('iter_8.pth', 'best_mIoU_iter_4.pth', 'val_classes.md'):
        (folder / name).write_bytes((work_dir / name).read_bytes())
    before = (folder / 'val_classes.md').read_text()
    runner = build(config, folder, **OPTIONS, resume=True, train_cfg__max_iters=10)
    runner.train()
    assert list(read_curve(folder).scores) == [10]
    assert written(folder) == ['training_curve.png', 'val_classes.md']
    assert (folder / 'val_classes.md').read_text() == before
    assert f'Best checkpoint: {folder}/best_mIoU_iter_4.pth. ' in read_log(folder)


def test_testing(work_dir: Path, config: Path, tmp_path: Path) -> None:
    build(config, tmp_path, load_from=str(work_dir / 'best_mIoU_iter_4.pth'),
          randomness__deterministic=False).test()
    assert written(tmp_path) == ['test_classes.md', 'test_confusion.png', 'test_pictures']
    for name in ('classes.md', 'confusion.png', 'pictures/4_4.png'):
        assert (tmp_path / f'test_{name}').read_bytes() == (work_dir / f'val_{name}').read_bytes()


@pytest.mark.parametrize('number, expected', [
    (2, ['1_0.png', '2_6.png']), (20, [f'{i}_{i - 1}.png' for i in range(1, 8)]), (0, [])])
def test_number_of_pictures(work_dir: Path, config: Path, tmp_path: Path, number: int,
                            expected: list[str]) -> None:
    (tmp_path / 'test_pictures').mkdir()
    (tmp_path / 'test_pictures/12_old.png').touch()
    build(config, tmp_path, load_from=str(work_dir / 'best_mIoU_iter_4.pth'),
          default_hooks__results__pictures=number).test()
    assert sorted(path.name for path in (tmp_path / 'test_pictures').iterdir()) == expected


def test_what_cannot_be_written_is_a_warning(
        config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise OSError('disk is full')

    for name in ('draw_confusion', 'draw_curves'):
        monkeypatch.setattr(results_hook, name, fail)
    build(config, tmp_path, **OPTIONS, train_cfg__max_iters=2).train()
    text = read_log(tmp_path)
    assert "WARNING - Not all results were written" in text and "OSError('disk is full')" in text
    assert (tmp_path / 'iter_2.pth').exists() and 'training_curve.png' not in written(tmp_path)


def test_predictions_without_labels_draw_nothing(caplog: pytest.LogCaptureFixture) -> None:
    loader = SimpleNamespace(dataset=range(3), batch_size=2, __len__=None)
    hook, runner = ResultsHook(), SimpleNamespace(
        test_dataloader=type('Loader', (), dict(vars(loader), __len__=lambda self: 2))(),
        logger=logging.getLogger('test'))
    hook.before_test_epoch(runner)
    hook.after_test_iter(runner, 0, outputs=[SegDataSample(), SegDataSample()])
    assert not hook.samples and not caplog.records


@pytest.mark.parametrize('switch', ['enabled', 'is_main_process'])
def test_nothing_is_written(switch: str, config: Path, tmp_path: Path,
                            monkeypatch: pytest.MonkeyPatch) -> None:
    options = dict(OPTIONS, train_cfg__max_iters=2)
    if switch == 'enabled':
        options['default_hooks__results__enabled'] = False
    else:
        monkeypatch.setattr(results_hook, 'is_main_process', lambda: False)
    build(config, tmp_path, **options).train()
    assert not written(tmp_path) and 'To predict with it' not in read_log(tmp_path)


def test_every_config_has_it(request: pytest.FixtureRequest) -> None:
    for path in (request.config.rootpath / 'configs').glob('*.py'):
        assert Config.fromfile(path).default_hooks.results == dict(
            type='mmseg_bisenetv2.ResultsHook'), path


def test_tensorboard_beside_the_log_of_json_lines(
        request: pytest.FixtureRequest, config: Path, tmp_path: Path) -> None:
    reason = 'the page shows the option; TensorBoard is not installed'
    accumulator = pytest.importorskip(
        'tensorboard.backend.event_processing.event_accumulator', reason=reason)
    page = (request.config.rootpath / 'docs/train.md').read_text()
    setting = re.search(r'`visualizer = dict\((vis_backends=.*)\)`', page)
    assert setting
    backends = eval(f'dict({setting[1]})')['vis_backends']
    build(config, tmp_path, **OPTIONS, train_cfg__max_iters=2,
          visualizer__vis_backends=backends).train()
    events = accumulator.EventAccumulator(str(next(tmp_path.glob('*/vis_data'))))
    events.Reload()
    curve = read_curve(tmp_path)
    for name, values in (('loss', curve.losses), ('mIoU', curve.scores)):
        logged = {event.step: event.value for event in events.Scalars(name)}
        assert logged == pytest.approx(values) and values
