"""The benchmark commands run, and both sides compute the same. Nothing here looks at a time."""
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(tmp_path, *arguments):
    path = tmp_path / 'results.json'
    result = subprocess.run(
        [sys.executable, 'tools/benchmark.py', *arguments, '--pairs', '1', '--threads', '1',
         '--json', str(path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout
    content = json.loads(path.read_text())
    assert content['options']['command'] == arguments[0] and content['machine']['threads'] == 1
    for row in content['results']:
        assert row['setting'] in result.stdout
    return content['results']


def test_loss(tmp_path):
    rows = run(tmp_path, 'loss', '--batch', '1', '2', '--crop', '64x128')
    assert [row['setting'] for row in rows] == ['1 x 64x128', '2 x 64x128']
    for row in rows:
        assert row['loss_difference'] < 1e-5 and row['gradient_difference'] < 1e-4
        assert 0 < row['saved_share'] < 0.1 and row['ratio'] > 0


def test_train(tmp_path):
    row, = run(tmp_path, 'train', '--batch', '2', '--crop', '64x128')
    assert row['loss_difference'] < 1e-4
    assert row['mmseg_peak_mb'] > 0 and row['ours_images_per_s'] > 0


def test_data(tmp_path):
    rows = run(tmp_path, 'data', '--size', '64x128', '--crop', '32x64', '--images', '2',
               '--draws', '4')
    assert [row['setting'].split(', ')[-1] for row in rows] == ['PNG', 'cache']
    for row in rows:
        assert row['largest_grey_difference'] == 0 and row['equal_labels'] == 1


def test_eval(tmp_path):
    rows = run(tmp_path, 'eval', '--size', '64x128', '--classes', '19', '30')
    for row in rows:
        assert f'{row["mmseg_miou"]:.2f}' == f'{row["ours_miou"]:.2f}'
        assert row['differing_pixels'] <= 1e-3 * row['pixels']
        assert row['predicted_classes'] > 5


def test_inference(tmp_path):
    picture = tmp_path / 'bars.png'
    rows = run(tmp_path, 'inference', '--size', '64x128', '--batch', '1', '2', '--picture',
               str(picture))
    names = [row['setting'].split(', ', 1)[1] for row in rows]
    assert names[:2] == ['MMSegmentation', 'torch fp32'] and 'openvino fp32' in names
    for row, name in zip(rows, names, strict=True):
        if 'bf16' not in name:
            assert row['agreement'] > 99.9, name
    assert picture.stat().st_size > 1000


def test_bars(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools')
    from benchmarks.inference import bars
    rows = [dict(setting=f'{size}, {name}', ratio=ratio, network_ms=ms)
            for size in ('64x128 x 1', '64x128 x 2')
            for name, ratio, ms in (('a', 1, 5.), ('b, file', 2, 4.), ('post', 3, None))]
    assert bars(rows[:3]) == ({'a': 1, 'b, file': 2},
                              'times the speed of MMSegmentation, 64x128 x 1')
    ratios, label = bars(rows)
    assert list(ratios)[1] == '64x128 x 1, b, file' and len(ratios) == 4
    assert label == 'times the speed of MMSegmentation'


def test_network_that_mmsegmentation_cannot_build():
    result = subprocess.run(
        [sys.executable, 'tools/benchmark.py', 'inference', '--size', '64x128',
         '--config', 'configs/bisenetv2_fcn_coincheung_cityscapes.py'],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 1 and 'Traceback' not in result.stdout
    assert "without bga_upsample='nearest'" in result.stdout
