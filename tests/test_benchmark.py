"""The benchmark commands run, and both sides compute the same. Nothing here looks at a time."""
import argparse
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.utils import get_installed_path

import mmseg_bisenetv2  # noqa: F401 - before the tools import mmseg
from mmseg_bisenetv2.compat import cpu_has_bf16

ROOT = Path(__file__).parents[1]


COMMANDS = dict(
    loss='--batch 1 2 --crop 128x64 64x32 --ohem',
    train='--crop 128x64 --with-cp stages --amp bfloat16 --mmseg-amp none',
    data='--size 128x64 --crop 64x32',
    eval='--size 128x64 --classes 30',
    inference='--size 128x64 --batch 2 --picture bars.png',
    peers='--size 128x64 --networks Fast-SCNN MobileNetV3-LRASPP BiSeNetV2-head128-ours '
          '--picture peers.png',
    accuracy='--config camvid.py --picture points.png')
# One process runs them all, since each would need seconds to import what it needs. ONNX Runtime,
# whose conversion takes ten seconds, is made to look as if it were not installed, and BF16, whose
# conversions take as many, is left out.
SCRIPT = '''
import sys
import benchmark
from benchmarks import inference, peers
sys.modules['onnxruntime'] = None
inference.PRECISIONS = dict.fromkeys(inference.PRECISIONS, ('fp32', ))
peers.cpu_has_bf16 = lambda: False
for arguments in sys.argv[1:]:
    if arguments.startswith('accuracy'):  # which finds its backends as inference does
        inference.PRECISIONS = dict(torch=('fp32', ))
    sys.argv = ['benchmark.py', *arguments.split()]
    benchmark.main()
'''


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """What each command printed and wrote, with the folder they ran in."""
    folder = tmp_path_factory.mktemp('benchmark')
    for name in ('img_dir/val', 'ann_dir/val'):
        (folder / name).mkdir(parents=True)
        cv2.imwrite(str(folder / name / 'a.png'), np.random.default_rng(0).integers(
            0, 11, (64, 96, 3) if name.startswith('img') else (64, 96), dtype=np.uint8))
    (folder / 'camvid.py').write_text(
        f"_base_ = '{ROOT}/configs/bisenetv2_fcn_camvid.py'\n"
        f"val_dataloader = dict(dataset=dict(data_root='{folder}'))\n")
    return folder, run(folder, SCRIPT, [
        f'{name} {options} --pairs 1 --threads 1 --json {name}.json'
        for name, options in COMMANDS.items()])


def run(folder, script, arguments):
    process = subprocess.run(
        [sys.executable, '-c', script, *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT / 'tools'), str(ROOT)])))
    assert process.returncode == 0, process.stdout
    return process.stdout


@pytest.mark.slow
@pytest.mark.skipif(not cpu_has_bf16(), reason='needs a processor that computes in BF16')
def test_bf16(tmp_path):
    printed = run(tmp_path, """
import sys
import benchmark
for arguments in sys.argv[1:]:
    sys.argv = ['benchmark.py', *arguments.split()]
    benchmark.main()
""", ['inference --size 128x64 --pairs 1 --threads 1',
      'peers --size 128x64 --networks SegFormer-B0 BiSeNetV2-ours --pairs 1 --threads 1'])
    for name in ('torch bf16', 'openvino bf16', 'onnxruntime fp32', 'SegFormer-B0'):
        assert name in printed


def read(results, command):
    folder, printed = results
    content = json.loads((folder / f'{command}.json').read_text())
    assert content['options']['command'] == command and content['options']['pairs'] == 1
    machine = content['machine']
    assert machine['threads'] == 1 and machine['device'] == 'cpu'
    assert machine['processor'] and machine['torch'] and machine['commit']
    assert f'commit {machine["commit"]}' in printed
    for row in content['results']:
        assert row['setting'] in printed
        if command != 'peers':
            assert row['ratio'] > 0 and len(row['ratio_quartiles']) == 2
    return content['results']


def test_loss(results):
    rows = read(results, 'loss')
    assert [row['setting'] for row in rows] == [
        '1 x 128x64, 19 classes', '1 x 64x32, 19 classes',
        '2 x 128x64, 19 classes', '2 x 64x32, 19 classes']
    assert all(0 < row['saved_share'] < 0.1 for row in rows)
    assert all(row['loss_difference'] < 1e-5 for row in rows)


def test_train(results):
    row, = read(results, 'train')
    assert row['setting'] == '2 x 128x64'
    assert row['mmseg_peak_mb'] > 0 and row['ours_peak_mb'] > 0 and row['peak_share'] > 0
    assert row['mmseg_images_per_s'] == pytest.approx(2000 / row['mmseg_ms'])
    assert row['ours_images_per_s'] == pytest.approx(2000 / row['ours_ms'])


def test_data(results):
    rows = read(results, 'data')
    assert [row['setting'] for row in rows] == [
        '128x64, crop 64x32, PNG', '128x64, crop 64x32, cache']
    for row in rows:
        assert row['mmseg_images_per_s'] > 0 and row['ours_images_per_s'] > 0 and row['png_mb'] > 0


def test_eval(results):
    row, = read(results, 'eval')
    assert row['setting'] == '128x64, 30 classes'
    assert row['mmseg_miou'] == pytest.approx(row['ours_miou'], abs=0.02) and row['ours_miou'] > 0


def test_inference(results):
    rows = read(results, 'inference')
    sizes, names = zip(*(row['setting'].split(', ', 1) for row in rows), strict=True)
    assert set(sizes) == {'128x64 x 2'}
    assert names[:2] == ('MMSegmentation', 'torch fp32') and 'openvino fp32' in names
    assert 'onnxruntime fp32' not in names and 'onnxruntime fp32 is left out: ' in results[1]
    assert names[-2:] == ('post-processing, MMSegmentation', 'post-processing, ours')
    for row, name in zip(rows, names, strict=True):
        assert row['p99_ms'] == pytest.approx(row['end_to_end_ms'])  # of a single run
        assert (row['network_ms'] is None) == name.startswith('post-processing')
        if row['network_ms'] is not None:
            assert row['fps'] > 0 and row['network_ratio'] > 0
        assert row['agreement'] > 99.9, name
    assert (results[0] / 'bars.png').stat().st_size > 1000


def test_accuracy(results):
    rows = read(results, 'accuracy')
    found = {row['setting'].removeprefix('96x64, '): row['miou'] for row in rows}
    assert {*found} == {'MMSegmentation', 'torch fp32', 'torch fp32, half size'}
    assert found['MMSegmentation'] == pytest.approx(found['torch fp32'], abs=0.1)
    assert found['torch fp32'] != found['torch fp32, half size']
    assert (results[0] / 'points.png').stat().st_size > 1000


def test_peers(results):
    rows = read(results, 'peers')
    assert [(row['setting'], row['miou'], row['source']) for row in rows] == [
        ('BiSeNetV2-head128-ours', 73.73, 'zh320'),
        ('Fast-SCNN', 70.96, 'MMSegmentation')]
    assert 'MobileNetV3-LRASPP is left out: ' in results[1]  # it cannot take so small a frame
    for row in rows:
        assert row['size'] == '128x64' and row['stock_peak_mb'] is not None
        for way in ('stock', 'openvino_fp32'):
            assert row[f'{way}_p99_ms'] == pytest.approx(row[f'{way}_ms'])  # of a single run
            assert row[f'{way}_ms'] > 0
        ours = row['setting'].endswith('-ours')
        assert bool(row['predictor_fp32_ms']) == bool(row['predictor_fp32_p99_ms']) == ours
    # What training alone uses, the auxiliary heads, does not count.
    assert rows[0]['params_m'] == pytest.approx(2.31, abs=0.005)
    assert rows[0]['gmac'] == pytest.approx(16.008 * 64 * 128 / (512 * 1024), rel=0.01)
    printed = results[1].partition('| network ')[2].splitlines()
    assert any(line.startswith('| stock, ms ') for line in printed)
    assert (results[0] / 'peers.png').stat().st_size > 1000


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools')


def test_results_are_shown_again(results, tools, monkeypatch, capsys):
    import benchmark
    folder, printed = results
    monkeypatch.chdir(folder)
    for name in ('inference', 'peers'):
        monkeypatch.setattr(sys, 'argv', ['benchmark.py', 'draw', f'{name}.json', f'{name}.png'])
        benchmark.main()
        assert capsys.readouterr().out.partition('\n')[2] in printed
        assert (folder / f'{name}.png').stat().st_size > 1000
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', 'draw', 'loss.json', 'loss.png'])
    with pytest.raises(SystemExit, match='results of loss, of which there is no picture'):
        benchmark.main()


def test_each_network_is_in_the_model_zoo_with_its_figure(tools):
    from benchmarks.peers import CONFIGS, OURS, PEERS, zoo_miou
    folder = Path(get_installed_path('mmseg'), '.mim/configs')
    for path in PEERS.values():
        assert (folder / f'{path}.py').exists(), path
        assert 60 < zoo_miou(path) < 85
    # The same network, whose best weights are MMSegmentation's.
    assert OURS['BiSeNetV2-ours'][1] == zoo_miou(PEERS['BiSeNetV2'])
    assert all(f'{miou}' in (CONFIGS / path).read_text() for path, miou, _ in OURS.values())


def test_unknown_network(tools):
    from benchmarks.peers import measure
    with pytest.raises(SystemExit, match='--networks UNet: expected some of PIDNet-S'):
        measure(Namespace(networks=['UNet'], size=(64, 128)))


@pytest.mark.parametrize('height, width, number', [
    (1024, 2048, 3), (1024, 1024, 1), (64, 128, 1), (1025, 1793, 6)])
def test_windows_are_those_of_mmsegmentation(tools, height, width, number):
    """Counted as its slide_inference calls the network."""
    from benchmarks.peers import windows

    from mmseg.models import EncoderDecoder
    seen = []
    inputs = torch.arange(height * width).reshape(1, 1, height, width)
    model = SimpleNamespace(
        test_cfg=ConfigDict(mode='slide', crop_size=(1024, 1024), stride=(768, 768)),
        out_channels=1, encode_decode=lambda image, _: seen.append(image) or image)
    EncoderDecoder.slide_inference(model, inputs, [{}])
    assert len(seen) == number
    assert torch.equal(windows(model, inputs), torch.cat(seen))


def test_no_step_is_always_first_and_each_runs_equally_often(tools):
    from benchmarks.measure import time_in_turns
    calls = []
    times = time_in_turns({name: lambda name=name: calls.append(name) for name in 'abc'}, 3)
    assert [''.join(calls[i:i + 3]) for i in range(0, 12, 3)] == ['abc', 'bca', 'cab', 'abc']
    assert {name: len(values) for name, values in times.items()} == dict(a=3, b=3, c=3)


def test_compile(tools, monkeypatch):
    """Compiling takes a minute, which the rehearsal of tools/gpu_report.py spends."""
    from benchmarks.compile import measure
    monkeypatch.setattr(torch, 'compile', lambda network, **_: lambda frames: network(frames) + 1)
    rows = measure(argparse.Namespace(
        config=ROOT / 'configs/bisenetv2_fcn_cityscapes.py', device='cpu', size=(64, 128), batch=2,
        precision='fp32', pairs=1))
    assert [row['setting'] for row in rows] == [
        '128x64 x 2, fp32, eager', '128x64 x 2, fp32, compiled']
    for row in rows:
        assert row['network_ms'] == pytest.approx(2000 / row['fps']) and row['first_call_s'] > 0
        assert len(row['ratio_quartiles']) == 2
    assert rows[0]['ratio'] == 1 and rows[0]['logit_difference'] == 0
    assert rows[1]['logit_difference'] > 0  # The fake one gives other logits.


def test_reading_pictures_is_measured_on_the_cpu(tools, monkeypatch):
    from benchmarks import data
    devices = []
    monkeypatch.setattr(data, 'compare', lambda *_: devices.append(_[-1].device) or {})
    data.measure(argparse.Namespace(device='cuda', size=(64, 128), crop=(32, 64), pairs=1))
    assert devices == ['cpu', 'cpu']


def test_a_gpu_is_warmed_up_for_a_second(tools, monkeypatch):
    from benchmarks import measure
    clock, calls = [0.0], []

    def step():
        calls.append(clock[0])
        clock[0] += 0.125

    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    monkeypatch.setattr(measure, 'timer', lambda: clock[0])
    assert measure.time_in_turns(dict(a=step), 3) == dict(a=[0.125] * 3)
    assert calls[-3:] == [1.0, 1.125, 1.25]


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
    assert crops('--crop', '16x8', '64x32') == [(8, 16), (32, 64)]
    with pytest.raises(SystemExit):
        crops('--crop', '64', '128')
    assert '--crop: expected WIDTHxHEIGHT in pixels' in capsys.readouterr().err
