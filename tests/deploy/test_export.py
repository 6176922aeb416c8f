import dataclasses
import io
import json
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small import image, write

from mmseg_bisenetv2.deploy import Predictor, converters
from mmseg_bisenetv2.deploy.export import DisagreementError, export_and_verify
from mmseg_bisenetv2.deploy.exported_file import read_exported_file
from mmseg_bisenetv2.deploy.metadata import ExportMetadata
from mmseg_bisenetv2.deploy.network import FrameNetwork
from mmseg_bisenetv2.deploy.runtimes import ProgramLogits, only_logits
from mmseg_bisenetv2.models.upsample_argmax import upsample_argmax

from mmseg.apis import init_model

ROOT = Path(__file__).parents[2]
META = dict(classes=('road', 'sky', 'car', 'tree'), palette=[[9 * i, 2, 3] for i in range(4)])


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return write(tmp_path_factory.mktemp('small'), metainfo=META)


@pytest.fixture(scope='module')
def model(files):
    return init_model(str(files[0]), str(files[1]), device='cpu')


@pytest.fixture(scope='module')
def metadata(model, files):
    return ExportMetadata.from_model(model, files[1])


PICTURES = [image(64, 96, seed=i) for i in range(3)]


@pytest.fixture(scope='module')
def openvino_model(model, metadata):
    return converters.openvino_model(FrameNetwork(model), metadata)


@pytest.fixture
def converted(openvino_model, monkeypatch):
    """Spares the tests of what comes after the conversion the seconds that it takes."""
    monkeypatch.setattr(converters, 'openvino_model', lambda *_: openvino_model.clone())


@pytest.mark.parametrize('size', [None, (40, 72)])
@pytest.mark.parametrize('suffix', ['.onnx', '.xml', '.pt2'])
def test_file_agrees_and_describes_itself(model, metadata, files, tmp_path, suffix, size):
    path = tmp_path / f'net{suffix}'
    metadata = dataclasses.replace(metadata, size=size)
    figures = export_and_verify(model, metadata, path, PICTURES)
    assert figures['agreement'] >= 99.9 and figures['size_mb'] > 0.01
    assert {p.suffix for p in tmp_path.iterdir()} == {suffix, *(['.bin'] * (suffix == '.xml'))}
    loaded = Predictor(path, device='cpu', precision='fp32')
    assert loaded.metadata == metadata
    assert loaded.classes == META['classes'] and loaded.palette.tolist() == META['palette']
    reference = Predictor(*files, backend='torch', precision='fp32', device='cpu', size=size)
    for shape in (64, 96), (33, 47), (40, 200):  # whatever the size of the file
        assert (loaded(image(*shape)) == reference(image(*shape))).mean() >= 0.999
    for labels, expected in zip(loaded(PICTURES), reference(PICTURES), strict=True):
        assert (labels == expected).mean() >= 0.999
    if size:
        loaded.warm_up()
        with pytest.raises(ValueError, match=r'takes frames of \(40, 72\) only'):
            Predictor(path, device='cpu', size=(64, 96))


def test_program_computes_no_labels_that_are_thrown_away(model, metadata):
    network = FrameNetwork(model)
    run = ProgramLogits(converters.torch_program(network, metadata))
    frames = torch.from_numpy(PICTURES[0][None])
    with torch.inference_mode(), torch.profiler.profile() as profile:
        logits = run(frames)
    assert torch.equal(logits, network(frames))
    names = {event.key for event in profile.key_averages()}
    assert any('conv2d' in name for name in names)
    assert not any('amax' in name or 'aten::where' in name for name in names)
    with pytest.raises(ValueError, match=r'takes no frames of \(32, 96\)'):
        run(frames[:, :32])


def test_bf16_file(model, metadata, tmp_path):
    path = tmp_path / 'bf16.xml'
    export_and_verify(model, dataclasses.replace(metadata, precision='bf16'), path, PICTURES,
                      min_agreement=90)
    assert Predictor(path, device='cpu').precision == 'bf16'
    assert Predictor(path, device='cpu', precision='fp32').precision == 'fp32'


def test_raw_file(model, metadata, tmp_path):
    path = tmp_path / 'raw.onnx'
    figures = export_and_verify(model, metadata, path, PICTURES, raw=True)
    assert figures['agreement'] >= 99.9 and 0 < figures['logit_difference'] < 1e-3
    with pytest.raises(ValueError, match='exported with --raw'):
        Predictor(path, device='cpu')


def test_logits_are_the_last_of_that_name(openvino_model):
    """The converter also gives tensors the names of Python's variables."""
    exported = openvino_model.clone()
    exported.get_ordered_ops()[3].output(0).get_tensor().add_names({'logits'})
    assert only_logits(exported).output(0).get_partial_shape()[1].get_length() == 4


def test_graph_has_no_argmax(model, metadata, tmp_path):
    path = tmp_path / 'net.onnx'
    export_and_verify(model, metadata, path, PICTURES[:1])
    operators = {node.op_type for node in converters.import_optional('onnx').load(path).graph.node}
    assert not operators & {'ArgMax', 'TopK'}
    session = converters.import_optional('onnxruntime').InferenceSession(path)
    assert [(x.name, x.type) for x in session.get_inputs()] == [('frames', 'tensor(uint8)')]
    assert [(x.name, x.type) for x in session.get_outputs()] == [('labels', 'tensor(uint8)')]
    batch = np.stack(PICTURES)
    labels = session.run(['labels'], {'frames': batch})[0]
    assert labels.shape == (3, 64, 96) and labels.dtype == np.uint8


def test_quantised_file(model, metadata, files, tmp_path):
    path = tmp_path / 'int8.xml'
    int8 = dataclasses.replace(metadata, precision='int8')
    figures = export_and_verify(
        model, int8, path, PICTURES, calibration=[image(64, 96, seed=i) for i in range(10, 18)],
        min_agreement=80)
    _, quantised = read_exported_file(path)
    shapes = [tuple(op.get_output_shape(0)) for op in quantised.get_ops()
              if op.get_type_name() == 'Constant' and op.get_element_type().to_string() == 'i8']
    # The detail branch but for its first convolution, two of the aggregation, and the head
    assert sorted(shapes) == sorted(
        [(8, 8, 3, 3)] * 4 + [(16, 8, 3, 3)] + [(16, 16, 3, 3)] * 5 + [(4, 16, 1, 1)])
    # OpenVINO computes this pooling wrongly in INT8, and resized logits would lose their order.
    for op in quantised.get_ops():
        if op.get_type_name() in ('AvgPool', 'Interpolate'):
            assert op.input_value(0).get_node().get_type_name() != 'FakeQuantize'
    loaded = Predictor(path, device='cpu')
    assert loaded.precision == 'int8' and figures['agreement'] < 100
    with pytest.raises(ValueError, match=r"'fp32': 'openvino' has 'auto' and \['int8'\]"):
        Predictor(path, device='cpu', precision='fp32')


def test_outliers_do_not_stretch_the_ranges(model, metadata, monkeypatch):
    highest, int8 = [], dataclasses.replace(metadata, precision='int8')
    for share in (1e-9, 0.01):
        monkeypatch.setattr(converters, 'OUTLIERS', share)
        quantised = converters.openvino_model(FrameNetwork(model), int8, PICTURES)
        highest.append([op.input_value(2).get_node().data.item() for op in quantised.get_ops()
                        if op.get_type_name() == 'FakeQuantize'])
    all_of_it, most = map(np.array, highest)
    assert len(most) >= 8 and (most < all_of_it).all()


def test_file_that_disagrees_is_not_left_behind(converted, model, metadata, tmp_path):
    with pytest.raises(DisagreementError, match=r'would agree with PyTorch on .* expected 100.1 %'):
        export_and_verify(model, metadata, tmp_path / 'a.xml', PICTURES, min_agreement=100.1)
    assert list(tmp_path.iterdir()) == []


def test_broken_export_is_noticed(model, metadata, tmp_path, monkeypatch):
    other = dataclasses.replace(metadata, align_corners=True)
    real = converters.openvino_model
    monkeypatch.setattr(converters, 'openvino_model',
                        lambda network, *_: real(network, other))
    with pytest.raises(DisagreementError):
        export_and_verify(model, metadata, tmp_path / 'a.xml', PICTURES)
    assert list(tmp_path.iterdir()) == []


def test_pixels_that_the_head_ignores_do_not_count_for_miou(
        converted, model, metadata, tmp_path, monkeypatch):
    monkeypatch.setattr(model.decode_head, 'ignore_index', 254)
    with torch.no_grad():
        logits = FrameNetwork(model)(torch.from_numpy(PICTURES[0][None]))[0]
    truth = upsample_argmax(logits, 64, 96).numpy()
    truth[:20] = 254
    figures = export_and_verify(
        model, metadata, tmp_path / 'net.xml', PICTURES[:1], truths=[truth])
    assert figures['pytorch_miou'] == 100


def test_file_that_loses_miou_does_not_replace_an_earlier_one(
        converted, model, metadata, tmp_path):
    truths = [np.random.default_rng(i).integers(0, 4, (64, 96)).astype(np.uint8)
              for i in range(3)]
    path = tmp_path / 'a.xml'
    figures = export_and_verify(model, metadata, path, PICTURES, truths=truths)
    assert figures['miou'] == pytest.approx(figures['pytorch_miou'], abs=0.05)
    before = path.read_bytes()
    with pytest.raises(DisagreementError, match=r'% mIoU, PyTorch .* expected -1 less'):
        export_and_verify(model, metadata, path, PICTURES, truths=truths, max_miou_drop=-1)
    assert path.read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {'a.xml', 'a.bin'}


@pytest.mark.parametrize('name, options, message', [
    ('a.engine', {}, 'expected a name that ends in'),
    ('a.xml', dict(raw=True), r'raw export is for \.onnx'),
    ('a.onnx', dict(precision='int8'), r'int8 is for OpenVINO'),
    ('a.xml', dict(precision='int8'), 'needs pictures to calibrate'),
    ('a.xml', dict(calibration=PICTURES), 'calibrate on, and fp32: they are for INT8'),
    ('a.xml', dict(max_miou_drop=1.0), 'limit of 1.0 points of mIoU needs true labels'),
])
def test_options_that_do_not_go_together(model, metadata, tmp_path, name, options, message):
    chosen = dataclasses.replace(metadata, precision=options.pop('precision', 'fp32'))
    with pytest.raises(ValueError, match=message):
        export_and_verify(model, chosen, tmp_path / name, PICTURES, **options)


@pytest.mark.parametrize('suffix', ['.onnx', '.xml', '.pt2'])
def test_files_that_cannot_be_read(tmp_path, suffix):
    path = tmp_path / f'a{suffix}'
    with pytest.raises(FileNotFoundError, match=f'a{suffix}'):
        Predictor(path, device='cpu')
    for content in (b'', b'\x00' * 40, b'<net>'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f'a{suffix}'):
            Predictor(path, device='cpu')


def write_members(path, **members):
    """A .pt2 with these members alone."""
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in members.items():
            archive.writestr(f'a/{name}', content)


@pytest.mark.parametrize('text', [
    "'s0' * 4_000_000_000", "Symbol('s0' * 2_000_000_000)", '(1, 1) * 2_000_000_000', '9**9**9**9',
    '1 << 10**12', '-' * 90_000 + '1', 's0.__class__', 'exit()'])
def test_expressions_are_refused_as_text(tmp_path, text):
    """SymPy would evaluate them, and some fill the memory."""
    graph = dict(nodes=[], sizes=[dict(expr_str=text)])
    program = json.dumps(dict(graph_module=dict(graph=graph, module_call_graph=[])))
    write_members(tmp_path / 'a.pt2', **{'models/model.json': program})
    with pytest.raises(ValueError, match=r'a\.pt2 cannot be read: its program has the expression'):
        read_exported_file(tmp_path / 'a.pt2')


def test_pickles_of_older_pytorch_are_audited(tmp_path):
    """PyTorch's weights_only would build the 2 GB that this one asks for."""
    class Large:
        def __reduce__(self):
            return bytearray, (2**31, )

    content = io.BytesIO()
    torch.save(dict(weight=Large()), content)
    write_members(tmp_path / 'a.pt2', **{'data/weights/model.pt': content.getvalue()})
    with pytest.raises(ValueError, match=r'a\.pt2 cannot be read: .*bytearray'):
        read_exported_file(tmp_path / 'a.pt2')


def test_picture_that_cannot_be_read_stops_before_the_conversion(model, metadata, tmp_path,
                                                                 monkeypatch):
    monkeypatch.setattr(converters, 'onnx_model', None)
    (tmp_path / 'torn.png').write_bytes(b'\x89PNG')
    with pytest.raises(ValueError, match=r'torn\.png'):
        export_and_verify(model, metadata, tmp_path / 'a.onnx', [tmp_path / 'torn.png'])


def test_foreign_onnx_file(tmp_path):
    torch.onnx.export(torch.nn.Identity(), (torch.zeros(2), ), str(tmp_path / 'a.onnx'),
                      dynamo=True, verbose=False)
    with pytest.raises(ValueError, match='does not say what it holds'):
        Predictor(tmp_path / 'a.onnx', device='cpu')


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs tools/export.py in this process, since a new one takes seconds to import PyTorch."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))  # as Python does for a script

    def run(*arguments, ok=True):
        monkeypatch.setattr(sys, 'argv', ['export.py', *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(ROOT / 'tools/export.py'), run_name='__main__')
        except SystemExit as error:
            code = error.code or 0
        said = capsys.readouterr()
        text = f'{said.out}{said.err}{code}'
        assert (code == 0) == ok, text
        return text

    return run


def test_tool(run, files, tmp_path):
    for i in range(2):
        cv2.imwrite(str(tmp_path / f'{i}.png'), PICTURES[i])
    (tmp_path / 'drive.mp4').write_bytes(b'no picture')
    out = run(*files, tmp_path / 'net.xml', '--images', tmp_path)
    assert 'on 2 pictures: ' in out and (tmp_path / 'net.bin').exists()
    out = run(*files, tmp_path / 'q.xml', '--images', tmp_path / '*.png',
              '--precision', 'int8', '--calibrate', tmp_path / '*.png',
              '--min-agreement', 100.1, ok=False)
    assert 'It was not written' in out
    assert not (tmp_path / 'q.xml').exists()
    out = run(*files, tmp_path / 'a.engine', ok=False)
    assert 'trtexec' in out
    out = run(files[0], tmp_path / '0.png', tmp_path / 'b.onnx', ok=False)
    assert '0.png' in out


def test_tool_says_at_which_size_the_config_tests(run, tmp_path):
    files = write(tmp_path, [dict(type='Resize', scale=(96, 64), keep_ratio=True)])
    out = run(*files, tmp_path / 'any.pt2')
    assert 'The config tests at 96x64. Predictor resizes to it' in out
    out = run(*files, tmp_path / 'one.pt2', '--size', '60x40')
    assert 'The config tests at 96x64. This file sees 60x40' in out
    out = run(*files, tmp_path / 'none.xml', '--size', '60', '40', ok=False)
    assert "argument --size: expected WIDTHxHEIGHT in pixels, such as 2048x1024, got '60'" in out
    out = run(files[0], tmp_path / 'no.pth', tmp_path / 'a.onnx', ok=False)
    assert 'no.pth' in out


def test_tool_names_what_cannot_be_exported(run, tmp_path):
    config, checkpoint = write(tmp_path)
    with open(config, 'a') as file:
        file.write("model['test_cfg'] = dict(mode='slide', crop_size=(32, 32), stride=(16, 16))")
    out = run(config, checkpoint, tmp_path / 'a.onnx', ok=False)
    assert 'expected whole images' in out
    with open(config, 'a') as file:
        file.write("\ntest_pipeline = [dict(type='Resize', scale_factor=2.0)]")
    out = run(config, checkpoint, tmp_path / 'a.onnx', ok=False)
    assert 'expected one Resize' in out


def test_tool_names_validation_pictures_that_are_missing(run, tmp_path):
    config, checkpoint = write(tmp_path)
    with open(config, 'a') as file:
        file.write("\nval_dataloader = dict(dataset=dict(type='mmseg_bisenetv2.CamVidDataset', "
                   f'data_root={str(tmp_path / "nowhere")!r}, pipeline=[]))')
    out = run(config, checkpoint, tmp_path / 'a.onnx', '--val', 2, ok=False)
    assert 'CamVidDataset: no folder' in out and 'prepare_camvid.py' in out


@pytest.mark.slow
def test_exports_from_pngs_need_no_imagecodecs(files, tmp_path):
    """The extra "deploy" does not bring it."""
    cv2.imwrite(str(tmp_path / 'street.png'), image(64, 96))
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', f'''
import runpy, sys
sys.modules['imagecodecs'] = None
sys.path.insert(0, {str(ROOT / 'tools')!r})
for arguments in (['a.onnx'], ['a.xml', '--precision', 'int8', '--calibrate', 'street.png',
                               '--min-agreement', '50']):
    sys.argv = ['export.py', {str(files[0])!r}, {str(files[1])!r}, *arguments,
                '--images', 'street.png']
    runpy.run_path({str(ROOT / 'tools/export.py')!r}, run_name='__main__')
'''], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count('agreement with PyTorch FP32 on 1 pictures') == 2
    assert {'a.onnx', 'a.xml', 'a.bin'} <= {path.name for path in tmp_path.iterdir()}
