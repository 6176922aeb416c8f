"""The benchmark commands run, and both sides compute the same. Nothing here looks at a time."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

import mmseg_bisenetv2  # noqa: F401 - before the tools import mmseg

ROOT = Path(__file__).parents[1]


def run(tmp_path, *arguments):
    path = tmp_path / 'results.json'
    result = subprocess.run(
        [sys.executable, 'tools/benchmark.py', *map(str, arguments), '--pairs', '1', '--threads',
         '1', '--json', str(path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout
    content = json.loads(path.read_text())
    assert content['options']['command'] == arguments[0] and content['options']['pairs'] == 1
    machine = content['machine']
    assert machine['threads'] == 1 and machine['device'] == 'cpu'
    assert machine['processor'] and machine['torch'] and machine['commit']
    assert f'commit {machine["commit"]}' in result.stdout
    for row in content['results']:
        assert row['setting'] in result.stdout
        assert row['ratio'] > 0 and len(row['ratio_quartiles']) == 2
    return content['results']


def test_loss(tmp_path):
    rows = run(tmp_path, 'loss', '--batch', '1', '2', '--crop', '64', '128', '--crop', '32', '64',
               '--ohem')
    assert [row['setting'] for row in rows] == [
        '1 x 64x128, 19 classes', '1 x 32x64, 19 classes',
        '2 x 64x128, 19 classes', '2 x 32x64, 19 classes']
    for row in rows:
        assert row['loss_difference'] < 1e-5 and row['accuracy_difference'] < 1e-3
        assert 0 < row['gradient_difference'] < 1e-4  # not 0: they are computed in two ways
        assert 0 < row['saved_share'] < 0.1


def test_train(tmp_path):
    row, = run(tmp_path, 'train', '--batch', '2', '--crop', '64', '128', '--with-cp', 'stages',
               '--amp', 'bfloat16', '--mmseg-amp', 'none')
    assert row['setting'] == '2 x 64x128'
    assert row['loss_difference'] < 1e-4 and 0 < row['step_difference_fp64'] < 1e-8
    assert row['mmseg_peak_mb'] > 0 and row['ours_peak_mb'] > 0 and row['peak_share'] > 0
    assert row['mmseg_images_per_s'] == pytest.approx(2000 / row['mmseg_ms'])
    assert row['ours_images_per_s'] == pytest.approx(2000 / row['ours_ms'])


def test_data(tmp_path):
    rows = run(tmp_path, 'data', '--size', '64', '128', '--crop', '32', '64')
    assert [row['setting'] for row in rows] == [
        '64x128, crop 32x64, PNG', '64x128, crop 32x64, cache']
    for row in rows:
        assert row['largest_grey_difference'] == 0 and row['equal_labels'] == 1
        assert row['mmseg_images_per_s'] > 0 and row['ours_images_per_s'] > 0 and row['png_mb'] > 0


def test_eval(tmp_path):
    row, = run(tmp_path, 'eval', '--size', '64', '128', '--classes', '30')
    assert row['setting'] == '64x128, 30 classes' and row['pixels'] == 2 * 64 * 128
    assert row['mmseg_miou'] == pytest.approx(row['ours_miou'], abs=0.02) and row['ours_miou'] > 0
    assert row['differing_pixels'] <= 1e-3 * row['pixels']
    assert row['predicted_classes'] > 5


def test_inference(tmp_path):
    picture = tmp_path / 'bars.png'
    rows = run(tmp_path, 'inference', '--size', '64', '128', '--batch', '2', '--picture', picture)
    sizes, names = zip(*(row['setting'].split(', ', 1) for row in rows), strict=True)
    assert set(sizes) == {'64x128 x 2'}
    assert names[:2] == ('MMSegmentation', 'torch fp32') and 'openvino fp32' in names
    assert names[-2:] == ('post-processing, MMSegmentation', 'post-processing, ours')
    for row, name in zip(rows, names, strict=True):
        assert row['p99_ms'] == pytest.approx(row['end_to_end_ms'])  # of a single run
        assert (row['network_ms'] is None) == name.startswith('post-processing')
        if row['network_ms'] is not None:
            assert row['fps'] > 0 and row['network_ratio'] > 0
        if 'bf16' not in name:
            assert row['agreement'] > 99.9, name
    assert picture.stat().st_size > 1000


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools')


def test_no_step_is_always_first_and_each_runs_equally_often(tools):
    from benchmarks.measure import time_in_turns
    calls = []
    times = time_in_turns({name: lambda name=name: calls.append(name) for name in 'abc'}, 3)
    assert [''.join(calls[i:i + 3]) for i in range(0, 12, 3)] == ['abc', 'bca', 'cab', 'abc']
    assert {name: len(values) for name, values in times.items()} == dict(a=3, b=3, c=3)


def test_network_that_mmsegmentation_cannot_build(tools):
    from benchmarks.measure import mmseg_config
    config = Config.fromfile(ROOT / 'configs/bisenetv2_fcn_coincheung_cityscapes.py')
    with pytest.raises(SystemExit, match="without bga_upsample='nearest'"):
        mmseg_config(config)


def test_sizes(tools, monkeypatch, capsys):
    from benchmark import parse_args

    def crops(*arguments):
        monkeypatch.setattr(sys, 'argv', ['benchmark.py', 'loss', *arguments])
        return parse_args().crop

    assert crops() == [(1024, 1024)]
    assert crops('--crop', '8', '16', '--crop', '32', '64') == [(8, 16), (32, 64)]
    with pytest.raises(SystemExit):
        crops('--crop', '64x128')
    assert '--crop H W' in capsys.readouterr().err
