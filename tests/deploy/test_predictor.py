import dataclasses
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from small import NORM, build, image, write

from mmseg_bisenetv2.datasets.class_names import make_palette
from mmseg_bisenetv2.deploy import Predictor, predictor, runtimes
from mmseg_bisenetv2.deploy.image import read_image
from mmseg_bisenetv2.deploy.metadata import ExportMetadata
from mmseg_bisenetv2.deploy.runtimes import TorchRuntime, bf16_is_faster, import_optional

from mmseg.apis import inference_model, init_model
from mmseg.registry import MODELS

BACKENDS = [('torch', 'fp32'), ('torch', 'bf16'), ('openvino', 'fp32'), ('openvino', 'bf16'),
            ('onnxruntime', 'fp32')]
AGREEMENT = dict(fp32=0.999, bf16=0.95)  # an untrained network decides by narrow margins


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return write(tmp_path_factory.mktemp('small'))


@pytest.fixture(scope='module')
def predictors(files):
    return {key: Predictor(*files, backend=key[0], precision=key[1], device='cpu', threads=1)
            for key in BACKENDS}


def stock(files):
    """From a picture to its labels, by MMSegmentation's own way through model and pipeline."""
    model = init_model(str(files[0]), str(files[1]), device='cpu')
    model.keep_logits = True
    return lambda picture: inference_model(model, picture).pred_sem_seg.data[0].numpy()


@pytest.fixture(scope='module')
def reference(files):
    return stock(files)


@pytest.mark.parametrize('key', BACKENDS)
@pytest.mark.parametrize('height, width', [(64, 96), (33, 47), (1, 1), (1, 600), (70, 31)])
def test_labels_are_those_of_mmsegmentation(reference, predictors, key, height, width):
    picture = image(height, width)
    labels, expected = predictors[key](picture), reference(picture)
    assert labels.dtype == np.uint8 and labels.shape == (height, width)
    if height * width > 600:
        assert len(np.unique(expected)) > 1
    least = AGREEMENT[key[1]] if height * width > 600 else 0.9
    assert (labels == expected).mean() >= least


@pytest.mark.parametrize('resize', [
    dict(type='Resize', scale=(96, 64), keep_ratio=True),
    dict(type='Resize', scale=(80, 48), keep_ratio=False),
    dict(type='Resize', scale=(200, 150), keep_ratio=True)])
def test_pipeline_of_the_config(tmp_path, resize):
    files = write(tmp_path, [resize])
    one, expected = Predictor(*files, backend='torch', precision='fp32', device='cpu'), stock(files)
    for shape in ((50, 120), (96, 64), (128, 192)):
        picture = image(*shape)
        labels = one(picture)
        assert labels.shape == shape
        assert (labels == expected(picture)).mean() >= 0.999


def test_size_overrides_the_pipeline(tmp_path):
    files = write(tmp_path, [dict(type='Resize', scale=(96, 64), keep_ratio=True)])
    resized = write(tmp_path, [dict(type='Resize', scale=(72, 40), keep_ratio=False)], name='b.py')
    picture = image(64, 96)
    labels = Predictor(*files, backend='torch', precision='fp32', device='cpu',
                       size=(40, 72))(picture)
    expected = stock(resized)(picture)
    assert (labels == expected).mean() >= 0.999
    assert (labels != stock(files)(picture)).any()


def test_align_corners(tmp_path):
    files = write(tmp_path, align_corners=True)
    picture = image(64, 96)
    for backend in ('torch', 'openvino'):
        labels = Predictor(*files, backend=backend, precision='fp32', device='cpu')(picture)
        assert (labels == stock(files)(picture)).mean() >= 0.999


def test_several_pictures(predictors):
    one = predictors['torch', 'fp32']
    pictures = [image(64, 96), image(40, 56, seed=1), image(64, 96, seed=2)]
    results = one(pictures)
    assert [labels.shape for labels in results] == [(64, 96), (40, 56), (64, 96)]
    for labels, picture in zip(results, pictures, strict=True):
        assert (labels == one(picture)).mean() >= 0.999
    assert len(one(np.stack([pictures[0], pictures[2]]))) == 2
    assert one([]) == []


@pytest.mark.parametrize('key', BACKENDS)
def test_many_sizes(predictors, key):
    one = predictors[key]
    for _ in range(2):
        for width in range(40, 104, 8):
            assert one(image(48, width)).shape == (48, width)


@pytest.mark.parametrize('key', BACKENDS)
def test_threads_do_not_disturb_each_other(predictors, key):
    one = predictors[key]
    pictures = [image(64, 96, seed=i) for i in range(4)]
    expected = [one(picture) for picture in pictures]
    wrong = []

    def work(picture, labels):
        for _ in range(5):
            if not np.array_equal(one(picture), labels):
                wrong.append(picture)

    threads = [threading.Thread(target=work, args=pair)
               for pair in zip(pictures, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.fixture
def compilations(monkeypatch):
    """The shapes that OpenVINO compiles for from now on, and an event that it waits for."""
    core, shapes, may_end = runtimes.openvino_core(), [], threading.Event()
    may_end.set()

    def compile_model(model, *args):
        shapes.append(tuple(side.get_length() if side.is_static else -1
                            for side in model.input().partial_shape))
        assert may_end.wait(60)
        return core.compile_model(model, *args)

    monkeypatch.setattr(runtimes, 'openvino_core',
                        lambda: SimpleNamespace(compile_model=compile_model))
    return shapes, may_end


def test_threads_and_many_sizes_share_two_compilations(files, compilations):
    one, expected = (Predictor(*files, backend=backend, precision='fp32', device='cpu', threads=1)
                     for backend in ('openvino', 'torch'))
    pictures = [image(48, width) for width in range(40, 104, 8)]
    with ThreadPoolExecutor(4) as pool:
        for labels, picture in zip(pool.map(one, pictures), pictures, strict=True):
            assert (labels == expected(picture)).mean() >= 0.999
    shapes, _ = compilations
    assert len(shapes) == 2 and set(shapes) > {(-1, -1, -1, 3)}
    for picture in pictures:  # Sizes that come again have their own, up to five.
        assert (one(picture) == expected(picture)).mean() >= 0.999
    assert len(shapes) == 6 and len(set(shapes)) == 6


def test_trial_run_of_a_file_is_not_its_first_size(tmp_path, compilations):
    metadata = ExportMetadata(tuple('abcd'), ((0, 0, 0), ) * 4)
    network = predictor.FrameNetwork(build())
    predictor.converters.save_model(
        predictor.converters.openvino_model(network, metadata), tmp_path / 'a.xml', metadata)
    one = Predictor(tmp_path / 'a.xml', device='cpu', threads=1)
    one(image(64, 96))
    assert compilations[0] == [(1, *predictor.PROBE_SIZE, 3), (1, 64, 96, 3)]


def test_no_size_waits_for_the_compilation_of_another(files, compilations):
    one = Predictor(*files, backend='openvino', device='cpu', threads=1)
    one(image(64, 96))
    shapes, may_end = compilations
    may_end.clear()
    other = threading.Thread(target=one, args=(image(48, 64), ))
    other.start()
    try:
        while len(shapes) < 2:
            time.sleep(0.01)
        assert one(image(64, 96)).shape == (64, 96)
        assert other.is_alive()
    finally:
        may_end.set()
        other.join()


def test_network_seconds(predictors):
    one = predictors['torch', 'fp32']
    one(image())
    assert 0 < one.network_seconds < 60
    seen = []
    thread = threading.Thread(target=lambda: seen.append(one.network_seconds))
    thread.start()
    thread.join()
    assert seen == [0.0]


def test_path_grey_alpha_and_16_bit(predictors, tmp_path):
    one = predictors['torch', 'fp32']
    picture = image()
    labels = one(picture)
    cv2.imwrite(str(tmp_path / 'a.png'), picture)
    assert np.array_equal(one(tmp_path / 'a.png'), labels)
    assert np.array_equal(one(str(tmp_path / 'a.png')), labels)
    assert np.array_equal(one(np.dstack([picture, picture[..., 0]])), labels)
    assert np.array_equal(one(picture.astype(np.uint16) * 256 + 77), labels)
    grey = picture[..., 0]
    assert np.array_equal(one(grey), one(np.dstack([grey] * 3)))
    assert np.array_equal(one(grey[..., None]), one(grey))
    strided = np.dstack([picture, picture])[:, ::2, :3]
    assert np.array_equal(one(strided), one(strided.copy()))


@pytest.mark.parametrize('bad, message', [
    (np.zeros((8, 8, 3), np.float32), r'got float32.*255 \* image'),
    (np.zeros((0, 8, 3), np.uint8), r'got \(0, 8, 3\)'),
    (np.zeros((8, 8, 2), np.uint8), r'got \(8, 8, 2\)'),
    (np.zeros(8, np.uint8), r'got \(8,\)'),
    (np.zeros((8, 8, 3), bool), 'got bool'),
    (None, r'NoneType.*cv2\.imread gives None'),
])
def test_what_is_no_picture(predictors, bad, message):
    with pytest.raises(ValueError, match=message):
        predictors['torch', 'fp32'](bad)


def test_missing_picture(predictors, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'none\.png'):
        predictors['torch', 'fp32'](tmp_path / 'none.png')


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(['.png', '.jpg', '.bmp']), st.data())
def test_corrupt_files(tmp_path_factory, suffix, data):
    encoded = cv2.imencode(suffix, image(24, 32))[1]
    keep = data.draw(st.integers(0, len(encoded)))
    encoded = encoded[:keep]
    for _ in range(data.draw(st.integers(0, 3))):
        if keep:
            encoded[data.draw(st.integers(0, keep - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp('corrupt') / f'a{suffix}'
    path.write_bytes(encoded.tobytes())
    try:
        picture = read_image(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert picture.ndim == 3 and picture.dtype == np.uint8


def test_overlay(files):
    one = Predictor(*files, backend='torch', device='cpu')
    picture, labels = image(), np.zeros((64, 96), np.uint8)
    labels[:, 48:], labels[:4] = 1, 255
    blended = one.overlay(picture, labels, opacity=1)
    assert (blended[4:, :48] == one.palette[0][::-1]).all()
    assert (blended[4:, 48:] == one.palette[1][::-1]).all()
    assert np.array_equal(blended[:4], picture[:4])
    assert np.array_equal(one.overlay(picture, labels, opacity=0), picture)
    half = one.overlay(picture, labels)
    assert abs(half.astype(int) - (picture.astype(int) + blended) / 2).max() <= 1
    with pytest.raises(ValueError, match='labels of'):
        one.overlay(picture, labels[1:])
    for opacity in (-0.1, 50, float('nan')):
        with pytest.raises(ValueError, match=f'opacity={opacity}: expected a number from 0 to 1'):
            one.overlay(picture, labels, opacity)


def test_automatic_choices(files, monkeypatch):
    chosen = Predictor(*files, device='cpu')
    assert chosen.backend == 'openvino'
    assert chosen.precision == ('bf16' if bf16_is_faster() else 'fp32')
    monkeypatch.setattr(predictor.importlib.util, 'find_spec', lambda name: None)
    assert Predictor(*files, device='cpu').backend == 'torch'
    for faster, precision in ((True, 'bf16'), (False, 'fp32')):
        monkeypatch.setattr(predictor, 'bf16_is_faster', lambda faster=faster: faster)
        assert Predictor(*files, device='cpu').precision == precision


@pytest.mark.parametrize('has, bf16, expected', [
    (True, 0.005, True), (True, 0.019, False), (True, 0.04, False), (False, 0.005, False)])
def test_bf16_is_chosen_by_its_speed(monkeypatch, has, bf16, expected):
    monkeypatch.setattr(runtimes, 'cpu_has_bf16', lambda: has)
    monkeypatch.setattr(runtimes.F, 'conv2d', lambda x, *_, **__: time.sleep(
        bf16 if x.dtype == torch.bfloat16 else 0.02))
    bf16_is_faster.cache_clear()
    threads = torch.get_num_threads()
    try:
        assert bf16_is_faster() is expected and torch.get_num_threads() == threads
        assert (runtimes.openvino_config('int8')['INFERENCE_PRECISION_HINT'] == 'bf16') is expected
    finally:
        bf16_is_faster.cache_clear()


def test_warm_up(files, tmp_path, monkeypatch):
    """Twice, since a CUDA graph is recorded when a size comes again."""
    seen = []
    one = Predictor(*files, backend='torch', device='cpu')
    monkeypatch.setattr(Predictor, '__call__', lambda self, frames: seen.append(frames.shape))
    one.warm_up(64, 96, batch=2)
    assert seen == [(2, 64, 96, 3)] * 2
    with pytest.raises(ValueError, match=r'warm_up\(height, width\)'):
        one.warm_up()
    with pytest.raises(ValueError, match=r'height, width=\(64, None\): expected'):
        one.warm_up(64)
    for arguments, name in (((64, 96, 0), 'batch=0'), ((0, 96), r'height, width=\(0, 96\)')):
        with pytest.raises(ValueError, match=name):
            one.warm_up(*arguments)
    seen.clear()
    Predictor(*files, backend='torch', device='cpu', size=(32, 64)).warm_up()
    scaled = write(tmp_path, [dict(type='Resize', scale=(96, 40), keep_ratio=True)])
    one = Predictor(*scaled, backend='torch', device='cpu')
    one.warm_up()
    assert seen == [(1, 32, 64, 3)] * 2 + [(1, 40, 96, 3)] * 2
    one.device, compiled = torch.device('cuda'), []
    one.runtime.compile = lambda frames: compiled.append(frames.shape)
    one.warm_up(80, 80, batch=2)
    assert compiled == [(2, 40, 40, 3)]  # as the network sees them
    one._one_at_a_time = True
    one.warm_up(80, 80, batch=2)
    assert compiled[1] == (1, 40, 40, 3)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('g++'), reason='PyTorch compiles with g++ for a CPU')
def test_compiled_network():
    network = predictor.FrameNetwork(build())
    runtime = TorchRuntime(network, torch.device('cpu'))
    runtime.compile(image(64, 96)[None])
    compiled = runtime.compiled
    assert compiled is not None
    runtime.compile(image(96, 64)[None])
    assert runtime.compiled is compiled
    for shape in ((64, 96), (33, 47)):
        frames = image(*shape)[None]
        expected = network(torch.from_numpy(frames))
        torch.testing.assert_close(runtime(frames), expected, rtol=1e-4, atol=1e-4)


def test_logits_outlive_the_next_replay_of_a_graph(monkeypatch):
    """A CUDA graph writes its results into the same memory each time, as this fake does."""
    memory, asked = torch.zeros(1, 4, 8, 12), []

    def fake_compile(network, **options):
        asked.append(options)
        return lambda frames: memory.copy_(network(frames))

    monkeypatch.setattr(torch, 'compile', fake_compile)
    runtime = TorchRuntime(predictor.FrameNetwork(build()), torch.device('cpu'))
    plain = [runtime(image(seed=seed)[None]) for seed in (0, 1)]
    for _ in range(2):  # once is enough
        runtime.compile(image()[None])
    assert asked == [dict(dynamic=True, mode='reduce-overhead')]
    replayed = [runtime(image(seed=seed)[None]) for seed in (0, 1)]
    for logits, expected in zip(replayed, plain, strict=True):
        assert torch.equal(logits, expected)


@pytest.mark.parametrize('any_thread', [True, False])
def test_graphs_that_belong_to_a_thread(monkeypatch, any_thread):
    """Before PyTorch 2.13 a graph cannot be replayed by another thread, as in this fake."""
    def fake_compile(network, **_):
        return lambda frames: network(frames) + threading.get_ident()

    monkeypatch.setattr(torch, 'compile', fake_compile)
    monkeypatch.setattr(runtimes, 'GRAPHS_IN_ANY_THREAD', any_thread)
    network, frames = predictor.FrameNetwork(build()), image()[None]
    runtime, plain = TorchRuntime(network, torch.device('cpu')), network(torch.from_numpy(frames))
    runtime.compile(frames)
    assert torch.equal(runtime(frames), plain + threading.get_ident())
    with ThreadPoolExecutor(1) as other:
        logits, ident = other.submit(lambda: (runtime(frames), threading.get_ident())).result()
    assert torch.equal(logits, plain + ident if any_thread else plain)


def test_onnxruntime_that_cannot_start_cuda(monkeypatch):
    """It lists the GPU, but takes the CPU where a library of CUDA is missing."""
    import onnx
    import onnxruntime
    monkeypatch.setattr(onnxruntime, 'get_available_providers',
                        lambda: ['CUDAExecutionProvider', 'CPUExecutionProvider'])
    frames, logits = (onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in (
        ('frames', onnx.TensorProto.UINT8), ('logits', onnx.TensorProto.FLOAT)))
    node = onnx.helper.make_node('Cast', ['frames'], ['logits'], to=onnx.TensorProto.FLOAT)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], 'small', [frames], [logits]), ir_version=8,
        opset_imports=[onnx.helper.make_opsetid('', 17)])
    runtimes.ONNXRuntimeRuntime(model, torch.device('cpu'))
    with pytest.raises(ImportError, match='could not start CUDAExecutionProvider'):
        runtimes.ONNXRuntimeRuntime(model, torch.device('cuda'))


def test_network_that_cannot_be_compiled(monkeypatch):
    network, said = predictor.FrameNetwork(build()), []
    runtime = TorchRuntime(network, torch.device('cpu'))

    def fail(frames):
        raise RuntimeError('no Triton here\nand more')

    monkeypatch.setattr(torch, 'compile', lambda *_, **__: fail)
    monkeypatch.setattr(runtimes, 'print_log', lambda text, **_: said.append(text))
    runtime.compile(image()[None])
    assert runtime.compiled is None and said[0].endswith('as it is: no Triton here')


@pytest.mark.parametrize('options, message', [
    (dict(backend='tensorrt'), "backend='tensorrt': expected 'auto' or one of"),
    (dict(backend='onnxruntime', precision='bf16'), "precision='bf16': 'onnxruntime' has"),
    (dict(precision='fp8'), "precision='fp8'"),
    (dict(backend='openvino', device='cuda'), 'runs on the CPU|finds no GPU'),
    (dict(device='mps'), "device='mps': expected 'cpu' or 'cuda'"),
    (dict(backend='torch', precision='fp16'), "precision='fp16'"),
    (dict(size=512), r'size=512: expected \(height, width\)'),
    (dict(size=(0, 5)), r'size=\(0, 5\): expected'),
    (dict(size=(64., 96.)), r'size=\(64.0, 96.0\): expected .* whole numbers'),
    (dict(threads=-1), 'threads=-1: expected a whole number from 1'),
    (dict(device='gpu'), "device='gpu': expected 'cpu' or 'cuda'"),
])
def test_wrong_options(files, options, message):
    with pytest.raises(ValueError, match=message):
        Predictor(*files, **dict(dict(device='cpu'), **options))


@pytest.mark.parametrize('backend', ['torch', 'openvino'])
def test_threads(files, backend):
    """The labels are PyTorch's work whatever runs the network."""
    before = torch.get_num_threads()
    try:
        Predictor(*files, backend=backend, device='cpu', threads=before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_size_as_an_array(files):
    one = Predictor(*files, backend='torch', device='cpu', size=np.array([40, 72]))
    assert one.size == (40, 72)


@pytest.mark.filterwarnings('error:.*not writable')
def test_picture_that_cannot_be_written_to(predictors):
    picture = image()
    picture.flags.writeable = False
    predictors['torch', 'fp32'](picture)


def test_files_that_are_neither_config_nor_export(files, tmp_path):
    for path in (files[1], tmp_path / 'a.engine'):
        with pytest.raises(ValueError, match='expected a config'):
            Predictor(path, device='cpu')


def test_random_weights_are_announced(files, monkeypatch):
    said = []
    monkeypatch.setattr(predictor, 'print_log', lambda text, **_: said.append(text))
    Predictor(*files, backend='torch', device='cpu')
    assert not said
    Predictor(files[0], backend='torch', device='cpu')
    assert 'the weights are random' in said[0]


def test_missing_runtime_names_the_extra():
    with pytest.raises(ImportError, match=r'mmseg_bisenetv2\[deploy\]'):
        import_optional('a_runtime_that_is_not_there')


def test_classes_and_palette(tmp_path):
    meta = dict(classes=('a', 'b', 'c', 'd'), palette=[[i, 2, 3] for i in range(4)])
    config, checkpoint = write(tmp_path, metainfo=meta)
    one = Predictor(config, checkpoint, backend='torch', device='cpu')
    assert one.classes == meta['classes']
    assert one.palette.tolist() == meta['palette'] and one.palette.dtype == np.uint8
    assert one.metadata.checkpoint == 'small.pth' and len(one.metadata.sha256) == 64
    with open(config, 'a') as file:
        file.write("test_dataloader = dict(dataset=dict(type='BaseSegDataset', metainfo=dict("
                   "classes=('w', 'x', 'y', 'z'))))")
    torch.save(torch.load(checkpoint)['state_dict'], checkpoint)  # says nothing of classes
    other = Predictor(config, checkpoint, backend='torch', device='cpu')
    assert other.classes == ('w', 'x', 'y', 'z')
    assert other.palette.tolist() == make_palette('wxyz')
    assert Predictor(config, backend='torch', device='cpu').metadata.sha256 is None


def test_pipeline_that_is_not_understood(tmp_path):
    files = write(tmp_path, [dict(type='ResizeToMultiple', size_divisor=32)])
    with pytest.raises(ValueError, match='ResizeToMultiple'):
        Predictor(*files, device='cpu')


def test_other_networks_are_refused(files):
    model = init_model(str(files[0]), device='cpu')
    model.backbone = torch.nn.Identity()
    with pytest.raises(TypeError, match='Identity cannot be deployed'):
        predictor.FrameNetwork(model)
    model = init_model(str(files[0]), device='cpu')
    model.out_channels = 257
    with pytest.raises(TypeError, match='257 output channels'):
        predictor.FrameNetwork(model)


@pytest.mark.parametrize('head, reason', [
    (dict(type='DMHead', filter_sizes=(1, 3), fusion=True), 'view size is not compatible'),
    (dict(type='DAHead', pam_channels=4), 'tuple')], ids=['DMHead', 'DAHead'])
def test_heads_that_give_no_logits_for_two_frames_are_refused(head, reason):
    model = build()
    model.decode_head = MODELS.build(dict(
        head, in_channels=16, channels=16, in_index=0, num_classes=4, norm_cfg=NORM))
    with pytest.raises(TypeError, match=rf'A {head["type"]} cannot be deployed with this package: '
                                        rf'expected a head such as FCNHead.*got.*{reason}'):
        predictor.FrameNetwork(model)


def test_what_mim_test_would_do_otherwise_is_refused(files):
    for key, value in (('test_cfg', dict(mode='slide', crop_size=(32, 32), stride=(16, 16))),
                       ('data_preprocessor.test_cfg', dict(size_divisor=32))):
        model = init_model(str(files[0]), device='cpu', cfg_options={f'model.{key}': value})
        with pytest.raises(TypeError, match='expected whole images'):
            predictor.FrameNetwork(model)


def test_model_stays_in_training_mode(files):
    model = init_model(str(files[0]), device='cpu').train()
    predictor.FrameNetwork(model)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize('options', [dict(interpolation='nearest'), dict(scale_factor=0.5)])
def test_resize_that_is_not_understood(tmp_path, options):
    step = dict(type='Resize', **options)
    if 'scale_factor' not in options:
        step['scale'] = (96, 64)
    with pytest.raises(ValueError, match='expected one Resize'):
        Predictor(*write(tmp_path, [step]), device='cpu')


def test_metadata_survives():
    one = ExportMetadata(('a', 'b'), ((1, 2, 3), (4, 5, 6)), scale=(96, 64), checkpoint='x.pth')
    assert ExportMetadata.from_json(one.to_json()) == one
    values = json.loads(one.to_json())
    del values['format_version']  # as before there were versions
    assert ExportMetadata.from_json(json.dumps(values)) == one
    with pytest.raises(ValueError, match='format version 2, this package reads 1'):
        ExportMetadata.from_json(json.dumps(dict(values, format_version=2)))
    del values['size']
    for text in (None, '', '{}', '[]', '{"unknown": 1}', json.dumps(values), '[' * 10**5):
        with pytest.raises(ValueError, match='does not say what it holds'):
            ExportMetadata.from_json(text)


@pytest.mark.parametrize('change, message', [
    (dict(classes=('a', )), r"classes is \('a',\), expected 2 to 256 names"),
    (dict(palette=((1, 2, 3), ) * 3), 'palette is .* for each of 2 classes'),
    (dict(scale=(-5, 5)), r'scale is \(-5, 5\), expected None or two numbers from 1'),
    (dict(size=(0, 60)), r'size is \(0, 60\)'), (dict(precision='fp99'), 'precision is fp99'),
    (dict(align_corners=None), 'align_corners is None'), (dict(sha256=3), 'sha256 is .*3'),
])
def test_metadata_is_checked(change, message):
    good = ExportMetadata(('a', 'b'), ((1, 2, 3), (4, 5, 6)))
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(good, **change)


def test_size_is_that_of_the_test_loader(tmp_path):
    """Which `mim test` follows, whatever ``test_pipeline`` says."""
    config, checkpoint = write(tmp_path, [dict(type='Resize', scale=(96, 64), keep_ratio=False)])
    cfg = Config.fromfile(config)
    loader = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(72, 40), keep_ratio=False),
              dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
    dataset = dict(type='BaseSegDataset', pipeline=loader)
    for wrapped in (dataset, dict(type='RepeatDataset', times=2, dataset=dataset)):
        cfg.test_dataloader = dict(dataset=wrapped)
        one = Predictor(cfg, checkpoint, backend='torch', precision='fp32', device='cpu')
        assert one.metadata.scale == (72, 40)
    plain = Predictor(config, checkpoint, backend='torch', precision='fp32', device='cpu',
                      size=(40, 72))
    assert np.array_equal(one(image()), plain(image()))


def test_repr(files):
    one = Predictor(*files, backend='torch', precision='fp32', device='cpu')
    assert repr(one) == ("Predictor(small.py, small.pth: 4 classes, backend='torch', "
                         "precision='fp32', device='cpu', size=any)")


def test_one_mean_for_all_channels(tmp_path):
    """MMSegmentation takes it, and so does the network that is deployed."""
    config, checkpoint = write(tmp_path)
    options = {'model.data_preprocessor.mean': [120.0], 'model.data_preprocessor.std': [60.0]}
    labels = [Predictor(cfg, checkpoint, backend='torch', precision='fp32', device='cpu')(image())
              for cfg in (config, Config.fromfile(config))]
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(options)
    single = Predictor(cfg, checkpoint, backend='torch', precision='fp32', device='cpu')
    assert all(np.array_equal(single(image()), expected) for expected in labels)


@pytest.mark.parametrize('with_cp', ['activations', 'stages'])
def test_network_that_was_trained_with_checkpointing(tmp_path, with_cp):
    """It is converted all the same; the tracer of PyTorch cannot follow the checkpoints."""
    cfg = Config.fromfile(write(tmp_path)[0])
    cfg.model.backbone.with_cp = cfg.model.decode_head.with_cp = with_cp
    labels = [Predictor(cfg, tmp_path / 'small.pth', backend=backend, precision='fp32',
                        device='cpu')(image()) for backend in ('openvino', 'torch')]
    assert (labels[0] == labels[1]).mean() >= 0.999


@pytest.mark.parametrize('channels', [1, 4])
def test_images_of_other_channels_are_refused(tmp_path, channels):
    cfg = Config.fromfile(write(tmp_path)[0])
    cfg.model.backbone.in_channels = channels
    with pytest.raises(TypeError, match=f'images of {channels} channels cannot be deployed'):
        Predictor(cfg, backend='torch', device='cpu')


def test_group_norm_in_openvino(tmp_path):
    """OpenVINO 2026.4 ended the process when it compiled one for a fixed size."""
    norm = dict(type='GN', num_groups=2, requires_grad=True)
    cfg = Config.fromfile(write(tmp_path)[0])
    cfg.model.backbone.norm_cfg = cfg.model.decode_head.norm_cfg = norm
    torch.manual_seed(0)
    network = predictor.FrameNetwork(init_model(cfg, device='cpu'))
    metadata = ExportMetadata(tuple('abcd'), ((0, 0, 0), ) * 4)
    runtime = runtimes.OpenVINORuntime(
        predictor.converters.openvino_model(network, metadata), 'fp32', 1)
    frames = image()[None]
    torch.testing.assert_close(
        runtime(frames), network(torch.from_numpy(frames)), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('precision, least', [('fp32', 0.97), ('fp16', 0.97), ('bf16', 0.95)])
def test_gpu(files, precision, least):
    one = Predictor(*files, device='cuda', precision=precision)
    on_cpu = Predictor(*files, backend='torch', precision='fp32', device='cpu')
    assert one.backend == 'torch'
    for width in (96, 48, 96, 48):  # as it is, then compiled: a new size, by its graph, a new one
        if width == 48:
            one.warm_up(64, 96)
            assert one.runtime.compiled is not None, 'see the warning of TorchRuntime.compile'
        picture = image(64, width)
        expected = on_cpu(picture)
        assert (one(picture) == expected).mean() >= least
    with ThreadPoolExecutor(1) as other:
        for labels in other.map(one, [picture] * 3):
            assert (labels == expected).mean() >= least
