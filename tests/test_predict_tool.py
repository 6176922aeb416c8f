"""The command line: what it prints, how it ends, and what it leaves behind."""
import os
import runpy
import signal
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import small
from tool_process import TOOL, tool_process
from tool_process import FakePredictor as Fake

import mmseg_bisenetv2.deploy
from mmseg_bisenetv2.video.writers import LABEL_ID_OF_TRAIN_ID

from mmseg.apis import inference_model, init_model
from mmseg.datasets import CityscapesDataset

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'configs/bisenetv2_fcn_toy-cityscapes.py'


def save(path, value=7):
    path.parent.mkdir(exist_ok=True, parents=True)
    assert cv2.imwrite(str(path), np.full((32, 48, 3), value, np.uint8))
    return path


def make_video(path, frames=40):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 25, (48, 32))
    for index in range(frames):
        writer.write(np.full((32, 48, 3), index % 256, np.uint8))
    writer.release()
    return path


def count(path):
    capture, frames = cv2.VideoCapture(str(path)), 0
    while capture.read()[0]:
        frames += 1
    return frames


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs the tool in this process: exit code, output, errors."""
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    handlers = {number: signal.getsignal(number) for number in numbers}
    for name in ('OPENCV_LOG_LEVEL', 'OPENCV_FFMPEG_LOGLEVEL'):
        monkeypatch.setenv(name, '')  # the tool leaves them as they are

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(TOOL), run_name='__main__')
        out, err = capfd.readouterr()
        code = caught.value.code
        # what Python does with a text: print it and exit with 1
        return (1, out, err + code) if isinstance(code, str) else (int(code or 0), out, err)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def tool(run, monkeypatch):
    """The same, with the fake for a predictor."""
    monkeypatch.setattr(mmseg_bisenetv2.deploy, 'Predictor', Fake)
    return run


def test_the_network_that_comes_with_the_package(run, tmp_path):
    code, _, errors = run(save(tmp_path / 'a.png'), '--model', 'camvid', '--backend', 'torch',
                          '--out', tmp_path / 'out', '--write', 'labels')
    assert code == 0, errors
    labels = cv2.imread(str(tmp_path / 'out/labels/a.png'), cv2.IMREAD_UNCHANGED)
    assert labels.shape == (32, 48) and labels.max() < 11


def test_pictures_and_a_video(tool, tmp_path):
    save(tmp_path / 'in/a.png')
    make_video(tmp_path / 'in/b.mp4')
    out = tmp_path / 'out'
    code, text, errors = tool(tmp_path / 'in', '--config', 'c.py', '--checkpoint', 'c.pth', '--out',
                              out, '--write', 'overlay', 'labels', '--every', 2, '--max-frames', 5,
                              '--backend', 'torch', '--precision', 'bf16', '--device', 'cpu',
                              '--size', '24x16', '--threads', 1)
    assert code == 0, errors
    assert Fake.made == (('c.py', 'c.pth'), dict(
        backend='torch', precision='bf16', device='cpu', size=(16, 24), threads=1))
    assert f'{out}/overlay: 2 files' in text and f'{out}/labels: 6 files' in text
    assert '6 frames; a backend, a precision' in text
    assert '1000.0 frames per second, network' in text  # that of the fake
    assert 'frames per second, end to end' in text
    assert '6/6' in errors  # the bar
    assert count(out / 'overlay/b.mp4') == 5


def test_exported_model_takes_the_place_of_the_config(tool, tmp_path):
    code, text, _ = tool(save(tmp_path / 'a.png'), '--model', 'm.onnx', '--out', tmp_path / 'out')
    assert code == 0 and Fake.made[0] == ('m.onnx', None)
    assert f'{tmp_path}/out/overlay: 1 file\n1 frame; ' in text
    assert (tmp_path / 'out/overlay/a.jpg').exists()


def test_unreadable_inputs_are_listed_and_end_with_1(tool, tmp_path):
    save(tmp_path / 'a.png')
    (tmp_path / 'b.png').write_bytes(b'broken')
    code, text, errors = tool(tmp_path / '?.png', tmp_path / 'c.png', '--model', 'm.onnx',
                              '--out', tmp_path / 'out')
    assert code == 1 and '1 frame; ' in text
    first, second = errors.split('Not read, or not to the end:\n')[1].splitlines()
    assert first == f'{tmp_path}/c.png: no picture or video there'
    assert second.startswith(f'{tmp_path}/b.png')


def test_nothing_to_read(tool, tmp_path):
    Fake.made = None
    code, _, errors = tool(tmp_path, tmp_path / 'no.mp4', '--model', 'm.onnx', '--out',
                           tmp_path / 'out')
    assert code == 1 and Fake.made is None  # said before the model is loaded
    assert errors.splitlines() == ['Nothing to read', f'{tmp_path}: no picture or video there',
                                   f'{tmp_path}/no.mp4: no picture or video there']


def test_label_ids_of_other_classes(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(Fake, 'classes', ('sky', 'tree'))
    code, _, errors = tool(save(tmp_path / 'a.png'), '--model', 'm.onnx', '--out', tmp_path / 'out',
                           '--write', 'label-ids')
    assert code == 1 and 'Nothing was written: label-ids' in errors and 'sky, tree' in errors
    assert not (tmp_path / 'out').exists()


def test_config_and_model_taken_for_each_other(tool, tmp_path):
    picture = save(tmp_path / 'a.png')
    for given, message in ((('--model', 'c.py'), 'a config goes with --config'),
                           (('--config', 'm.onnx'), 'an exported file goes with --model')):
        code, _, errors = tool(picture, *given, '--out', tmp_path / 'out')
        assert code == 2 and message in errors


def test_interrupted_before_it_began(tool, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(mmseg_bisenetv2.deploy, 'Predictor', interrupt)
    code, _, _ = tool(save(tmp_path / 'a.png'), '--model', 'm.onnx', '--out', tmp_path / 'out')
    assert code == 130


def test_network_that_cannot_be_deployed(tool, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise TypeError('a ResNet cannot be deployed')

    monkeypatch.setattr(mmseg_bisenetv2.deploy, 'Predictor', refuse)
    code, _, errors = tool(save(tmp_path / 'a.png'), '--model', 'm.onnx', '--out', tmp_path / 'out')
    assert code == 1 and 'Nothing was written: a ResNet cannot be deployed' in errors


def test_disk_that_is_full(tool, tmp_path):
    (tmp_path / 'out/overlay').mkdir(parents=True)
    (tmp_path / 'out/overlay/a.jpg').symlink_to('/dev/full')
    code, _, errors = tool(save(tmp_path / 'a.png'), '--model', 'm.onnx', '--out', tmp_path / 'out')
    assert code == 1 and f'Stopped: {tmp_path}/out/overlay/a.jpg: No space left' in errors


def test_no_display(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, 'currentUIFramework', lambda: '')
    code, _, errors = tool(save(tmp_path / 'a.png'), '--model', 'm.onnx', '--out', tmp_path / 'out',
                           '--show')
    assert code == 1 and 'pip install opencv-python' in errors


@pytest.mark.parametrize('arguments', [
    [], ['--config', 'c.py', '--model', 'm.onnx'], *(
        ['--model', 'm.onnx', *option.split()] for option in (
            '--every 0', '--opacity 1.1', '--opacity -0.1', '--opacity nan', '--fps 0', '--fps -25',
            '--fps inf', '--fps 1001', '--max-pixels 0', '--backend tensorrt', '--precision fp8'))])
def test_wrong_arguments(tool, tmp_path, arguments):
    code, _, errors = tool('x.png', '--out', tmp_path, *arguments)
    assert code == 2
    if len(arguments) == 4 and '--config' not in arguments:
        assert f'error: argument {arguments[2]}: ' in errors and arguments[3] in errors


def test_help_lists_the_choices(tool):
    code, text, _ = tool('--help')
    assert code == 0 and '{auto,torch,openvino,onnxruntime}' in text
    assert '{auto,fp32,bf16,fp16,int8}' in text


def test_backends_are_those_of_the_predictor():
    with pytest.raises(ValueError, match='backend=') as caught:
        mmseg_bisenetv2.deploy.Predictor(CONFIG, backend='none', device='cpu')
    for name in ('auto', 'torch', 'openvino', 'onnxruntime'):
        assert repr(name) in str(caught.value)


@pytest.mark.parametrize('number, code', [
    (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_leaves_a_whole_video(tmp_path, number, code):
    clip = make_video(tmp_path / 'clip.mp4', 2000)
    film, log = tmp_path / 'out/overlay/clip.mp4', tmp_path / 'log'
    with tool_process([clip, '--model', 'm.onnx', '--out', tmp_path / 'out'], log,
                      seconds=.02) as process:
        wait_for(film.exists)
        time.sleep(.2)
        os.kill(process.pid, number)
        if number == signal.SIGHUP:  # it comes twice, from the shell and from the system
            os.kill(process.pid, number)
    text = log.read_text()
    assert process.exitcode == code, text
    frames = count(film)
    assert 2 <= frames < 2000 and f'interrupted; {frames} frames; ' in text
    assert f'{tmp_path / "out"}/overlay: 1 file\n' in text
    assert 'Traceback' not in text


def test_closed_terminal_leaves_a_whole_video(tmp_path):
    clip = make_video(tmp_path / 'clip.mp4', 2000)
    film = tmp_path / 'out/overlay/clip.mp4'
    ours, theirs = os.openpty()
    with tool_process([clip, '--model', 'm.onnx', '--out', tmp_path / 'out'], os.ttyname(theirs),
                      seconds=.02) as process:
        wait_for(film.exists)
        time.sleep(.2)
        os.close(theirs)
        os.close(ours)  # from here on writing to the terminal is an error
    assert process.exitcode == 129
    assert 2 <= count(film) < 2000


def test_nohup_is_respected(tool, tmp_path):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert tool(save(tmp_path / 'a.png'), '--model', 'm.onnx', '--out', tmp_path / 'out')[0] == 0
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(.01)


def test_pictures_beyond_the_memory_are_listed_and_the_others_go_on(tmp_path):
    """600 bytes announce 32000x32000 pixels; and 90 megapixels can be read but not drawn."""
    data = bytearray(cv2.imencode('.jpg', np.zeros((32, 32, 3), np.uint8))[1].tobytes())
    size = data.find(b'\xff\xc0') + 5
    data[size:size + 4] = (32_000).to_bytes(2, 'big') * 2
    save(tmp_path / 'in/a.png')
    (tmp_path / 'in/b.jpg').write_bytes(data)
    (tmp_path / 'in/c.pbm').write_bytes(b'P4 10000 9000 ' + bytes(10_000 * 9_000 // 8))
    save(tmp_path / 'in/d.png')
    log = tmp_path / 'log'
    with tool_process([tmp_path / 'in', '--model', 'm.onnx', '--out', tmp_path / 'out'], log,
                      memory=1050 * 2 ** 20) as process:
        pass
    text = log.read_text()
    assert process.exitcode == 1, text
    assert 'Traceback' not in text
    listed = text.split('Not read, or not to the end:\n')[1].splitlines()
    assert [line.split(': ')[0] for line in listed] == [
        f'{tmp_path}/in/b.jpg', f'{tmp_path}/in/c.pbm'], text
    assert '32000x32000 are 1,024,000,000 pixels, more than 134,217,728' in listed[0]
    assert 'failed: Unable to allocate' in listed[1]  # in the thread that draws
    assert '3 frames' in text and (tmp_path / 'out/overlay/d.jpg').exists()


def test_damaged_films_and_missing_cameras_print_a_line_each(tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / 'torn.mkv'), cv2.VideoWriter_fourcc(*'XVID'), 25,
                             (160, 120))
    rng = np.random.default_rng(0)
    for _ in range(100):
        writer.write(rng.integers(0, 256, (120, 160, 3), np.uint8))
    writer.release()
    data = np.fromfile(tmp_path / 'torn.mkv', np.uint8)
    data[rng.integers(2000, len(data), len(data) // 500)] = 255
    data.tofile(tmp_path / 'torn.mkv')
    log = tmp_path / 'log'
    with tool_process([tmp_path / 'torn.mkv', '77', '/dev/null', '--model', 'm.onnx', '--out',
                       tmp_path / 'out'], log) as process:
        pass
    assert process.exitcode == 1
    assert ' frames, 0 of a camera dropped; ' in log.read_text()
    listed = log.read_text().split('Not read, or not to the end:\n')[1].splitlines()
    assert [line.split(': ')[0] for line in listed] == [
        str(tmp_path / 'torn.mkv'), '77', '/dev/null']
    # the bar, the files, the frames, the two speeds and the head of the list
    assert len(log.read_text().splitlines()) <= len(listed) + 7, log.read_text()


def test_pictures_and_videos_through_the_network(run, tmp_path):
    """Labels are those of the Predictor, and of MMSegmentation but where two classes tie."""
    config, weights = small.write(
        tmp_path, metainfo=CityscapesDataset.METAINFO, classes=len(Fake.classes))
    scenes = [small.image(64, 96, seed=seed) for seed in range(3)]
    (tmp_path / 'in').mkdir()
    cv2.imwrite(str(tmp_path / 'in/a.png'), scenes[0])
    writer = cv2.VideoWriter(str(tmp_path / 'in/b.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 25,
                             (96, 64))
    for scene in scenes:
        writer.write(scene)
    writer.release()
    code, text, errors = run(
        tmp_path / 'in', '--config', config, '--checkpoint', weights, '--out', tmp_path / 'out',
        '--write', 'overlay', 'labels', 'label-ids', '--backend', 'torch', '--precision', 'fp32')
    assert code == 0, errors
    assert '4 frames; ' in text and 'network' in text
    predictor = mmseg_bisenetv2.deploy.Predictor(
        config, weights, backend='torch', precision='fp32')
    model = init_model(str(config), str(weights), device='cpu')
    capture = cv2.VideoCapture(str(tmp_path / 'in/b.mp4'))
    images = {'a': scenes[0]}
    images |= {f'b.frames/{index:06d}': capture.read()[1] for index in range(3)}
    for name, image in images.items():
        labels = cv2.imread(str(tmp_path / f'out/labels/{name}.png'), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(labels, predictor(image)) and len(np.unique(labels)) > 5
        reference = inference_model(model, image).pred_sem_seg.data[0].numpy()
        assert (labels == reference).mean() > .999
        ids = cv2.imread(str(tmp_path / f'out/label-ids/{name}.png'), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(ids, LABEL_ID_OF_TRAIN_ID[labels])
    overlay = cv2.imencode('.jpg', predictor.overlay(scenes[0], predictor(scenes[0])))[1]
    assert (tmp_path / 'out/overlay/a.jpg').read_bytes() == overlay.tobytes()
    assert count(tmp_path / 'out/overlay/b.mp4') == 3
