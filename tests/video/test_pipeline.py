"""Frames carry their number as black and white squares, which every codec keeps."""
import functools
import http.server
import os
import threading
import time
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import mmseg_bisenetv2  # noqa: F401
from mmseg_bisenetv2.deploy.image import read_image
from mmseg_bisenetv2.video.pipeline import (
    MAX_WAITING,
    FrameQueue,
    check_display,
    max_waiting,
    predict_all,
)
from mmseg_bisenetv2.video.sources import (
    Frame,
    Source,
    count_frames,
    find_sources,
    read_frames,
)
from mmseg_bisenetv2.video.writers import OUTPUTS, VideoFile, Writer

from mmseg.datasets import CityscapesDataset

# The official table, cityscapesscripts/helpers/labels.py: train id -> label id.
OFFICIAL = {0: 7, 1: 8, 2: 11, 3: 12, 4: 13, 5: 17, 6: 19, 7: 20, 8: 21, 9: 22, 10: 23, 11: 24,
            12: 25, 13: 26, 14: 27, 15: 28, 16: 31, 17: 32, 18: 33, 255: 0}
BITS = 10


class Fake:
    """Stands for a Predictor: the label of a pixel is its blue value."""

    classes = CityscapesDataset.METAINFO['classes']
    network_seconds = 0.001

    def __init__(self):
        self.seen = []

    def __call__(self, image):
        assert image.dtype == np.uint8 and image.ndim == 3
        self.seen.append(number(image))
        return image[..., 0].copy()

    def overlay(self, image, labels, opacity=0.5):
        return cv2.addWeighted(image, 1 - opacity, np.zeros_like(image), opacity, 0)


def numbered(index, height=16):
    bits = (index >> np.arange(BITS)) & 1
    row = np.repeat(np.uint8(255 * bits), 16)
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (height, len(row), 3)))


def number(image):
    bits = cv2.resize(image[:16, :16 * BITS, 0], (BITS, 1), interpolation=cv2.INTER_AREA)[0]
    return int((bits > 60) @ (1 << np.arange(BITS)))  # 60: overlays are half as bright


def make_video(path, frames, fps=25., height=16, code='mp4v'):
    path.parent.mkdir(exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), fps, (16 * BITS, height))
    for index in range(frames):
        writer.write(numbered(index, height))
    writer.release()
    return path


def read_video(path):
    capture = cv2.VideoCapture(str(path))
    images = []
    while capture.grab():
        images.append(capture.retrieve()[1])
    return images, capture.get(cv2.CAP_PROP_FPS)


def numbers(path):
    return [number(image) for image in read_video(path)[0]]


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def run(inputs, out, predictor=None, outputs=('overlay',), show=False, stopped=lambda: False,
        progress=lambda: None, **reading):
    """The summary, with the problems of both steps, and the files written."""
    predictor = predictor or Fake()
    sources, problems = find_sources(inputs, out)
    writer = Writer(predictor, str(out), sources, outputs)
    predictor.writer = writer  # kept, or its end would complete the videos, too
    report = predict_all(predictor, sources, writer, functools.partial(read_frames, **reading),
                         show, stopped, progress)
    report.problems[:0] = problems
    files = sorted(str(path.relative_to(out)) for path in out.rglob('*') if path.is_file())
    assert writer.files == Counter(name.split('/')[0] for name in files)
    return report, files


@pytest.fixture(autouse=True)
def no_thread_stays():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


# Videos


@pytest.mark.parametrize('every, max_frames', [(1, None), (7, None), (3, 5)])
def test_every_frame_once_and_in_order(tmp_path, every, max_frames):
    clip = make_video(tmp_path / 'clip.mp4', 90, fps=30)
    fake = Fake()
    report, files = run([clip], tmp_path / 'out', fake, every=every, max_frames=max_frames)
    expected = list(range(0, 90, every))[:max_frames]
    assert fake.seen == expected and report.frames == len(expected)
    assert files == ['overlay/clip.mp4'] and not report.problems and not report.dropped
    assert numbers(tmp_path / 'out/overlay/clip.mp4') == expected
    assert read_video(tmp_path / 'out/overlay/clip.mp4')[1] == pytest.approx(30 / every, abs=.01)
    assert count_frames(
        find_sources([clip], 'out')[0], every, max_frames) == len(expected)


def test_rate_that_is_given_replaces_that_of_the_video(tmp_path):
    clip = make_video(tmp_path / 'clip.mp4', 4, fps=30)
    run([clip], tmp_path / 'out', fps=12.5)
    assert read_video(tmp_path / 'out/overlay/clip.mp4')[1] == pytest.approx(12.5)


def test_all_outputs_of_a_video(tmp_path):
    clip = make_video(tmp_path / 'clip.mp4', 5)
    _, files = run([clip], tmp_path / 'out', outputs=OUTPUTS * 2)
    frames = [f'clip.frames/{index:06d}.png' for index in range(5)]
    assert files == [*(f'label-ids/{name}' for name in frames),
                     *(f'labels/{name}' for name in frames),
                     'overlay/clip.mp4', 'side-by-side/clip.mp4']
    assert numbers(tmp_path / 'out/side-by-side/clip.mp4') == list(range(5))
    both = read_video(tmp_path / 'out/side-by-side/clip.mp4')[0][3]
    assert both.shape == (16, 2 * 16 * BITS, 3)
    assert both[:, :32].mean() > 240 and both[:, 16 * BITS:].mean() < 10  # all colour: black here
    originals = read_video(clip)[0]
    for index, name in enumerate(frames):
        labels = cv2.imread(str(tmp_path / 'out/labels' / name), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(labels, originals[index][..., 0])


def test_odd_sizes_lose_no_row(tmp_path):
    stem, image = str(tmp_path / 'odd'), cv2.resize(numbered(5), (161, 33))
    video = VideoFile(stem, image, 25)
    for _ in range(3):
        video.write(image, 1)
    video.close()
    images, _ = read_video(f'{stem}.mp4')
    assert [i.shape for i in images] == [(34, 162, 3)] * 3
    assert abs(images[0][:33, :161].astype(int) - image).mean() < 8


def test_frame_of_another_size_is_kept(tmp_path):
    video = VideoFile(str(tmp_path / 'a'), numbered(1), 25)
    for index, height in ((1, 16), (2, 48), (3, 16)):
        video.write(numbered(index, height), 1)
    video.close()
    assert numbers(tmp_path / 'a.mp4') == [1, 2, 3]


def test_rate_that_mpeg4_has_not_becomes_motion_jpeg(tmp_path):
    clip = make_video(tmp_path / 'fast.avi', 9, fps=1000 / 7, code='MJPG')
    _, files = run([clip], tmp_path / 'out')
    assert files == ['overlay/fast.avi']
    assert numbers(tmp_path / 'out/overlay/fast.avi') == list(range(9))
    assert read_video(tmp_path / 'out/overlay/fast.avi')[1] == pytest.approx(1000 / 7, abs=.01)


def test_no_writer_at_all(tmp_path):
    with pytest.raises(OSError, match=r'160x16 at 25 frames.*neither'):
        VideoFile(str(tmp_path / 'no/folder'), numbered(0), 25)


def test_damaged_videos_are_kept_as_far_as_they_go(tmp_path):
    whole = make_video(tmp_path / 'in/whole.avi', 60, code='MJPG')
    data = whole.read_bytes()
    (tmp_path / 'in/half.avi').write_bytes(data[:len(data) // 2])
    (tmp_path / 'in/empty.mp4').write_bytes(b'')
    (tmp_path / 'in/noise.mp4').write_bytes(np.random.default_rng(0).bytes(5000))
    report, files = run([tmp_path / 'in'], tmp_path / 'out')
    assert files == ['overlay/half.mp4', 'overlay/whole.mp4']
    kept = numbers(tmp_path / 'out/overlay/half.mp4')
    assert 10 < len(kept) < 50 and kept == list(range(len(kept)))
    assert numbers(tmp_path / 'out/overlay/whole.mp4') == list(range(60))
    assert [line.split(': ')[0] for line in report.problems] == [
        str(tmp_path / 'in' / name) for name in ('empty.mp4', 'half.avi', 'noise.mp4')]
    assert f'{len(kept)} of 60 frames' in report.problems[1]


# Cameras and streams


class Camera:
    """Stands for cv2.VideoCapture: ``frames`` numbered frames, then it is unplugged."""

    def __init__(self, frames, fps, grabbed=lambda index: None):
        self.frames, self.fps, self.grabbed, self.index, self.released = frames, fps, grabbed, -1, 0

    def isOpened(self):
        return True

    def get(self, key):
        return self.fps if key == cv2.CAP_PROP_FPS else -1.

    def grab(self):
        self.grabbed(self.index)  # what has been handed on
        self.index += 1
        return self.index < self.frames

    def retrieve(self):
        return True, numbered(self.index)

    def release(self):
        self.released += 1


def test_slow_network_gets_the_newest_frame_of_a_camera(tmp_path, monkeypatch):
    """While the network is busy with frame 0, frames 1 to 6 come in."""
    waiting, busy = threading.Event(), threading.Event()

    def grabbed(index):
        if index == 0:
            busy.wait(10)
        if index == 6:
            waiting.set()

    class Slow(Fake):
        def __call__(self, image):
            busy.set()
            assert waiting.wait(10)
            return super().__call__(image)

    camera, slow = Camera(7, fps=90_000., grabbed=grabbed), Slow()
    monkeypatch.setattr(cv2, 'VideoCapture', lambda index: camera)
    report, files = run(['0'], tmp_path / 'out', slow)
    monkeypatch.undo()
    assert slow.seen == [0, 6] and report.frames == 2 and report.dropped == 5
    assert files == ['overlay/camera0.mp4'] and camera.released == 1
    # 6 stands for the time from 1 on: the film runs as fast as the world did
    assert numbers(tmp_path / 'out/overlay/camera0.mp4') == [0] + [6] * 6
    assert read_video(tmp_path / 'out/overlay/camera0.mp4')[1] == 25  # not 90000


def test_camera_without_a_picture_is_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, 'VideoCapture', lambda index: Camera(0, fps=30.))
    report, files = run(['2'], tmp_path / 'out')
    assert not files and report.frames == 0 and report.seconds == 0
    assert report.problems == ['2: damaged, 0 of its frames can be decoded']


def test_camera_replaces_no_frame_of_a_file():
    queue, image = FrameQueue(), numbered(0)
    source, camera = Source('a', 'a', 'video'), Source('0', 'camera0', 'live')
    waiting = [Frame(source, 0, image, 25), Frame(source, 1, image, 25),
               Frame(camera, 0, image, 25, True), Frame(camera, 1, image, 25, True)]
    for frame in waiting:
        assert queue.put(frame)
    queue.close()
    assert not queue.put(waiting[0])
    assert list(queue) == [waiting[0], waiting[1], waiting[3]]


def test_frame_of_a_video_that_cannot_be_decoded_is_not_called_dropped(tmp_path, monkeypatch):
    class Damaged(Camera):
        def retrieve(self):
            return self.index != 2, numbered(self.index)

    source, fake = Source('film.mp4', 'film', 'video'), Fake()
    writer = Writer(fake, str(tmp_path), [source])
    monkeypatch.setattr(cv2, 'VideoCapture', lambda path: Damaged(5, fps=25.))
    report = predict_all(fake, [source], writer)
    assert fake.seen == [0, 1, 3, 4] and report.dropped == 0
    assert report.problems == ['film.mp4: damaged, 4 of its frames can be decoded']


def test_memory_does_not_grow_with_the_video(tmp_path, monkeypatch):
    """However slow the network and the encoder are, few frames are under way."""
    lead = []

    class Counting(Writer):
        done = 0

        def write(self, frame, labels):
            if frame.number % 50 == 0:
                time.sleep(.02)
            self.done += 1

    def grabbed(index):
        lead.append(index + 1 - writer.done)

    camera = Camera(3000, fps=25., grabbed=grabbed)
    monkeypatch.setattr(cv2, 'VideoCapture', lambda path: camera)
    source = Source('film.mp4', 'film', 'video')
    fake = Fake()
    writer = Counting(fake, str(tmp_path), [source])
    report = predict_all(fake, [source], writer)
    assert report.frames == writer.done == 3000
    assert fake.seen == [index % 2 ** BITS for index in range(3000)]
    # both queues, one frame in each of the three hands, and one being read
    assert 4 < max(lead) <= 2 * MAX_WAITING + 4


@pytest.fixture
def server(tmp_path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if not self.path.startswith('/live'):
                return super().do_GET()
            self.send_response(200)
            self.send_header('Content-Type', 'multipart/x-mixed-replace; boundary=frame')
            self.end_headers()
            for index in range(60):
                data = cv2.imencode('.jpg', numbered(index))[1].tobytes()
                self.wfile.write(b'--frame\r\nContent-Type: image/jpeg\r\nContent-Length: '
                                 b'%d\r\n\r\n%b\r\n' % (len(data), data))

        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.HTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(.01,))
        thread.start()
        yield f'127.0.0.1:{server.server_port}'
        server.shutdown()
        thread.join()


def test_stream_over_http(tmp_path, server):
    fake = Fake()
    report, files = run([f'http://user:secret@{server}/live.mjpg'], tmp_path / 'out', fake)
    assert report.frames + report.dropped == 60 and not report.problems
    assert fake.seen == sorted(set(fake.seen)) and fake.seen[-1] == 59
    assert files == [f'overlay/{server.replace(":", "_")}_live.mjpg.mp4']
    written = numbers(tmp_path / 'out' / files[0])
    assert written[-1] == 59 and len(written) == 60 and written == sorted(written)


def test_film_over_http_is_no_camera(tmp_path, server):
    make_video(tmp_path / 'film.avi', 60, code='MJPG')
    fake = Fake()
    report, _ = run([f'http://{server}/film.avi'], tmp_path / 'out', fake)
    assert fake.seen == list(range(60)) and report.dropped == 0


def test_silent_address_is_listed_without_its_password(tmp_path):
    report, _ = run(['rtsp://me:sec@ret@127.0.0.1:9/x'], tmp_path / 'out')
    assert report.problems == ['rtsp://127.0.0.1:9/x: OpenCV cannot open it as a video']


def test_film_of_too_many_pixels(tmp_path):
    clip = make_video(tmp_path / 'clip.mp4', 3)
    assert not run([clip], tmp_path / 'out', max_pixels=160 * 16)[0].problems
    report, _ = run([clip], tmp_path / 'none', max_pixels=160 * 16 - 1)
    assert report.frames == 0
    assert f'{clip}: frames of 160x16, more than 2,559' in report.problems[0]


# Memory that does not suffice


def test_large_pictures_wait_one_at_a_time():
    assert max_waiting(np.empty((1024, 2048, 3), np.uint8)) == MAX_WAITING
    assert max_waiting(np.empty((2160, 3840, 3), np.uint8)) == MAX_WAITING
    assert max_waiting(np.empty((4320, 7680, 3), np.uint8)) == 1
    assert max_waiting(np.empty((10_000, 10_000, 3), np.uint8)) == 1


@pytest.mark.parametrize('error, text', [
    (MemoryError(), 'not enough memory'),
    (MemoryError('Unable to allocate 8 GiB'), 'Unable to allocate 8 GiB'),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory\nat"), "can't allocate memory"),
    (torch.OutOfMemoryError('CUDA out of memory'), 'CUDA out of memory')])
@pytest.mark.parametrize('place', ['reading', 'predicting', 'writing'])
def test_frames_without_memory_are_listed_and_the_others_go_on(
        tmp_path, monkeypatch, place, error, text):
    for index in range(1, 4):
        save(tmp_path / f'{index}.png', numbered(index))
    clip = make_video(tmp_path / 'clip.mp4', 5)

    class Failing(Fake):
        def __call__(self, image):
            if place == 'predicting' and number(image) == 2:
                raise error
            return super().__call__(image)

        def overlay(self, image, labels, opacity=0.5):
            if place == 'writing' and number(image) == 2:
                raise error
            return super().overlay(image, labels, opacity)

    def read(source):
        for frame in read_frames(source):
            if place == 'reading' and number(frame.image) == 2:
                raise error
            yield frame

    fake = Failing()
    sources, _ = find_sources([tmp_path / '[123].png', clip], tmp_path / 'out')
    writer = Writer(fake, str(tmp_path / 'out'), sources)
    report = predict_all(fake, sources, writer, read)
    for name in ('1', '3'):
        assert (tmp_path / f'out/overlay/{name}.jpg').exists()
    assert not (tmp_path / 'out/overlay/2.jpg').exists()
    # A film goes on behind the frame, whose place is taken by the next, if it can be read
    assert numbers(tmp_path / 'out/overlay/clip.mp4') == (
        [0, 1] if place == 'reading' else [0, 1, 3, 3, 4])
    assert sorted(line.split(': ')[0] for line in report.problems) == [
        f'{tmp_path}/2.png', str(clip)]
    assert all(text in line and '\n' not in line for line in report.problems)
    assert report.dropped == 0


# However it ends


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_predictor_that_raises_leaves_a_complete_video(tmp_path, error):
    clip = make_video(tmp_path / 'clip.mp4', 60)

    class Failing(Fake):
        def __call__(self, image):
            if number(image) == 20:
                raise error('in frame 20')
            return super().__call__(image)

    with pytest.raises(error, match='in frame 20'):
        run([clip], tmp_path / 'out', Failing())
    assert numbers(tmp_path / 'out/overlay/clip.mp4') == list(range(20))


def test_stopped(tmp_path):
    clip = make_video(tmp_path / 'clip.mp4', 60)
    fake = Fake()
    report, _ = run([clip], tmp_path / 'out', fake, stopped=lambda: len(fake.seen) >= 7)
    assert numbers(tmp_path / 'out/overlay/clip.mp4') == list(range(7))
    assert report.frames == 7 and not report.problems


def test_an_input_is_never_overwritten(tmp_path):
    clip = make_video(tmp_path / 'overlay/clip.mp4', 60)
    before = clip.read_bytes()
    sources, _ = find_sources([clip], tmp_path)
    writer = Writer(Fake(), str(tmp_path), sources)
    with pytest.raises(OSError, match=r'clip\.mp4 is an input.*--out'):
        predict_all(Fake(), sources, writer)
    assert clip.read_bytes() == before
    image = save(tmp_path / 'labels/a.png', numbered(1))
    sources, _ = find_sources([image], tmp_path)
    before = image.read_bytes()
    with pytest.raises(OSError, match='is an input'):
        predict_all(
            Fake(), sources, Writer(Fake(), str(tmp_path), sources, ['labels']))
    assert image.read_bytes() == before


def test_disk_that_is_full(tmp_path):
    save(tmp_path / 'a.png', numbered(1))
    (tmp_path / 'out/overlay').mkdir(parents=True)
    (tmp_path / 'out/overlay/a.jpg').symlink_to('/dev/full')
    with pytest.raises(OSError, match=r'overlay/a\.jpg: No space left'):
        run([tmp_path / 'a.png'], tmp_path / 'out')


def test_progress_counts_every_frame(tmp_path):
    save(tmp_path / 'in/a.png', numbered(1))
    make_video(tmp_path / 'in/b.mp4', 7)
    calls = []
    run([tmp_path / 'in'], tmp_path / 'out', progress=lambda: calls.append(1))
    assert len(calls) == 8 == count_frames(
        find_sources([tmp_path / 'in'], tmp_path / 'out')[0])


# Names


def test_names_keep_the_folders(tmp_path):
    for name in ('b/x.png', 'a/x.png', 'a/x.jpg', 'a/deep/x.png', 'a/x.mp4', 'a/notes.txt',
                 'out/overlay/old.png', '[odd]/x.png'):
        save(tmp_path / name, numbered(0)) if name.endswith(('png', 'jpg')) else (
            tmp_path / name).write_bytes(b'')

    def names(*inputs):
        sources, problems = find_sources(inputs, tmp_path / 'out')
        return [source.name for source in sources], problems

    assert names(tmp_path) == (['[odd]/x', 'a/deep/x', 'a/x', 'a/x', 'a/x_2', 'b/x'], [])
    assert names(tmp_path / 'a/x.png') == (['x'], [])
    assert names(tmp_path / 'a/x.png', tmp_path / 'b/x.png') == (['a/x', 'b/x'], [])
    assert names(tmp_path / 'a/x.png', tmp_path / 'a/x.jpg') == (['x', 'x_2'], [])
    assert names(tmp_path / 'a', tmp_path / 'a/*.png', tmp_path / 'a/x.png') == (
        ['deep/x', 'x', 'x', 'x_2'], [])  # each once
    assert names(tmp_path / '*/x.png') == (['[odd]/x', 'a/x', 'b/x'], [])
    assert names(tmp_path / '[odd]') == (['x'], [])
    assert names('3', 'rtsp://me:secret@host:554/live/1') == (['camera3', 'host_554_live_1'], [])
    lost = [str(tmp_path / name) for name in ('none.png', 'no*.png')]
    assert names(*lost) == ([], [f'{text}: no picture or video there' for text in lost])


def test_kind_is_what_opencv_makes_of_the_content(tmp_path):
    data = {suffix: cv2.imencode(suffix, numbered(5, 64))[1].tobytes()
            for suffix in ('.jpg', '.jp2', '.png') if cv2.haveImageWriter(suffix)}
    for name, suffix in (('a.jfif', '.jpg'), ('b.jp2', '.jp2'), ('c', '.png'), ('d.mp4', '.png')):
        if suffix in data:
            (tmp_path / name).write_bytes(data[suffix])
    make_video(tmp_path / 'film.mkv', 3)
    (tmp_path / 'notes.txt').write_text('neither')
    sources, problems = find_sources([tmp_path], tmp_path / 'out')
    assert not problems
    assert [source.kind for source in sources] == ['image'] * (len(sources) - 1) + ['video']
    assert len(sources) == 2 + len(data)
    named, _ = find_sources([source.address for source in sources], tmp_path / 'out')
    assert named == sources


def test_folder_that_links_to_itself(tmp_path):
    for index in range(21):
        save(tmp_path / f'in/{index:02d}.png', numbered(index))
    (tmp_path / 'in/again').symlink_to(tmp_path / 'in')
    (tmp_path / 'in/once more').symlink_to(tmp_path / 'in')
    report, files = run([tmp_path / 'in', tmp_path / 'in/again'], tmp_path / 'out')
    assert report.frames == 21 and files == [f'overlay/{index:02d}.jpg' for index in range(21)]


def test_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    os.mkfifo(tmp_path / 'pipe.mp4')
    save(tmp_path / 'a.png', numbered(1))
    sources, problems = find_sources([tmp_path / 'pipe', tmp_path / 'pipe.mp4', tmp_path], 'out')
    assert [source.name for source in sources] == ['a']
    assert problems == [f'{tmp_path}/{name}: a pipe. Write it to a file first'
                        for name in ('pipe', 'pipe.mp4')]


# Pictures


def test_outputs_of_pictures_are_as_large_as_they(tmp_path):
    save(tmp_path / 'grey.png', numbered(5, 40)[..., 0])
    turned = numbered(6, 40)
    exif = Image.Exif()
    exif[0x112] = 6  # orientation: to be turned clockwise
    Image.fromarray(turned).save(tmp_path / 'turned.jpg', exif=exif)
    _, files = run([tmp_path / '*.*g'], tmp_path / 'out', outputs=OUTPUTS)
    assert len(files) == 2 * 4
    for name, shape in (('turned', (160, 40)), ('grey', (40, 160))):
        labels = cv2.imread(str(tmp_path / f'out/labels/{name}.png'), cv2.IMREAD_UNCHANGED)
        assert labels.shape == shape
        overlay = cv2.imread(str(tmp_path / f'out/overlay/{name}.jpg'))
        assert overlay.shape == (*shape, 3)
        both = cv2.imread(str(tmp_path / f'out/side-by-side/{name}.jpg'))
        assert both.shape == (shape[0], 2 * shape[1], 3)


def test_overlay_longer_than_jpeg_allows_is_png(tmp_path):
    save(tmp_path / 'a.png', np.zeros((2, 40_000, 3), np.uint8))
    report, files = run([tmp_path / 'a.png'], tmp_path / 'out', outputs=['overlay', 'side-by-side'])
    assert files == ['overlay/a.jpg', 'side-by-side/a.png'] and not report.problems


def test_label_ids_are_those_of_the_benchmark_server(tmp_path):
    labels = np.uint8(list(OFFICIAL))[None]
    source = Source('x.png', 'frankfurt/frankfurt_000000_000294_leftImg8bit', 'image')
    writer = Writer(Fake(), str(tmp_path), [source], ['label-ids'])
    writer.write(Frame(source, 0, np.zeros((1, 20, 3), np.uint8)), labels)
    written = cv2.imread(
        str(tmp_path / f'label-ids/{source.name}.png'), cv2.IMREAD_UNCHANGED)
    assert written.dtype == np.uint8 and written.tolist() == [list(OFFICIAL.values())]
    other = Fake()
    other.classes = ('sky', 'tree')
    with pytest.raises(ValueError, match=r'sky, tree.*--write labels'):
        Writer(other, str(tmp_path), [], ['label-ids'])


def test_unreadable_pictures_do_not_stop_the_rest(tmp_path):
    save(tmp_path / 'in/a.png', numbered(3))
    (tmp_path / 'in/b.png').write_bytes(b'')
    (tmp_path / 'in/c.jpg').write_bytes(b'no picture')
    (tmp_path / 'in/d.jpg').symlink_to(tmp_path / 'nowhere')  # is no file: left out
    (tmp_path / 'in/e.ppm').write_bytes(b'P6 40000 40000 255 ')  # 1.6 billion pixels
    save(tmp_path / 'in/f.png', numbered(4))
    fake = Fake()
    report, files = run([tmp_path / 'in'], tmp_path / 'out', fake)
    assert fake.seen == [3, 4] and files == ['overlay/a.jpg', 'overlay/f.jpg']
    assert len(report.problems) == 3
    for name, line in zip(('b.png', 'c.jpg', 'e.ppm'), report.problems, strict=True):
        assert line.startswith(str(tmp_path / 'in' / name)) and line.count('\n') == 0


PNG, JPEG = (cv2.imencode(suffix, numbered(77))[1].tobytes() for suffix in ('.png', '.jpg'))


@given(st.one_of(
    st.binary(max_size=200),
    st.builds(lambda data, keep: data[:keep], st.sampled_from([PNG, JPEG]), st.integers(0, 500)),
    # not in the sizes of pictures and chunks, which may ask OpenCV for gigabytes
    st.builds(lambda at, new: JPEG[:len(JPEG) - at] + new + JPEG[len(JPEG) - at + len(new):],
              st.integers(1, 200), st.binary(min_size=1, max_size=20)),
    st.builds(lambda at, new: PNG[:at] + new + PNG[at + len(new):],
              st.integers(41, len(PNG) - 33), st.binary(min_size=1, max_size=20))))
@settings(max_examples=150, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_picture_or_an_error_that_names_the_file(tmp_path, data):
    path = tmp_path / 'any.png'
    path.write_bytes(data)
    try:
        image = read_image(path)
    except (OSError, ValueError) as error:
        assert str(path) in str(error)
    else:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


# The window


def test_show_ends_with_q(tmp_path, monkeypatch):
    clip = make_video(tmp_path / 'clip.mp4', 60)
    shown = []
    monkeypatch.setattr(cv2, 'imshow', lambda _, image: shown.append(number(image)))
    monkeypatch.setattr(cv2, 'waitKey', lambda _: ord('q') if len(shown) == 4 else -1)
    run([clip], tmp_path / 'out', Fake(), show=True)
    assert shown == [0, 1, 2, 3]
    assert numbers(tmp_path / 'out/overlay/clip.mp4') == [0, 1, 2, 3]


def test_no_window_is_said_before_opencv_aborts(monkeypatch):
    monkeypatch.setattr(cv2, 'currentUIFramework', lambda: '')
    with pytest.raises(RuntimeError, match='pip install opencv-python'):
        check_display()
    monkeypatch.setattr(cv2, 'currentUIFramework', lambda: 'QT')
    monkeypatch.setattr('sys.platform', 'linux')
    for name in ('DISPLAY', 'WAYLAND_DISPLAY'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match='WAYLAND_DISPLAY'):
        check_display()
    monkeypatch.setitem(os.environ, 'DISPLAY', ':0')
    check_display()
