"""MMSegmentation without compiled operators, and MMEngine's checkpoints under weights_only."""
import importlib.util
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.utils.dl_utils import mmcv_full_available

import mmseg_bisenetv2
from mmseg_bisenetv2 import compat
from mmseg_bisenetv2.compat import (
    MissingOpError,
    amp_wrapper_on_cpu,
    copy_without_blocking,
    cpu_has_bf16,
    has_hooks,
    resume_and_load_from,
    swaps_channels,
    with_source,
)

ROOT = Path(__file__).parents[1]
needs_lite = pytest.mark.skipif(mmcv_full_available(), reason='the full mmcv is installed')


def run_python(code, **kwargs):
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code)],
        capture_output=True, text=True, **kwargs)


@needs_lite
def test_mmseg_models_import_only_with_this_package():
    assert "No module named 'mmcv._ext'" in run_python('import mmseg.apis').stderr
    result = run_python('import mmseg_bisenetv2, mmseg.apis')
    assert result.returncode == 0, result.stderr


@needs_lite
def test_the_import_in_the_wrong_order_is_explained_and_can_be_made_up_for():
    result = run_python('''
        try:
            import mmseg.apis
        except ModuleNotFoundError as error:
            print(f'ModuleNotFoundError: {error}')
        import mmseg_bisenetv2, mmseg.apis
        mmseg.apis.init_model
    ''')
    assert result.returncode == 0, result.stderr
    assert f'\n{result.stdout.strip()}\n' in (ROOT / 'docs/install.md').read_text()


def test_without_any_mmcv_the_extra_is_named():
    result = run_python("""
        import sys
        sys.modules['mmcv'] = None
        import mmseg_bisenetv2
    """)
    assert 'mmseg_bisenetv2[lite]' in result.stderr


@pytest.mark.parametrize('module', ['mmengine', 'mmseg'])
def test_without_openmmlab_the_extra_is_named(module):
    result = run_python(f"""
        import sys
        sys.modules[{module!r}] = None
        import mmseg_bisenetv2
    """)
    assert 'needs MMEngine, MMCV and MMSegmentation: pip install' in result.stderr
    assert 'mmseg_bisenetv2[lite]' in result.stderr


def distribution(folder, name, version='1'):
    """Makes a package of this name, as far as importlib.metadata can tell."""
    info = folder / f'{name.replace("-", "_")}-{version}.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')


@pytest.mark.parametrize('installed, expected', [
    (['onedl-mmsegmentation'], 'onedl-mmsegmentation'), (['mmsegmentation'], 'mmsegmentation'),
    (['mmsegmentation', 'onedl-mmsegmentation'], 'mmsegmentation')])
def test_configs_inherit_from_the_fork_where_it_is_installed(
        tmp_path, monkeypatch, installed, expected):
    for name in installed:
        distribution(tmp_path, name)
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    table = dict(compat.MODULE2PACKAGE, mmseg='mmsegmentation')
    monkeypatch.setattr(compat, 'MODULE2PACKAGE', table)
    compat.name_the_fork()
    assert table['mmseg'] == expected
    monkeypatch.setattr(compat, 'MODULE2PACKAGE', {})  # as if MMEngine had given it up
    compat.name_the_fork()


def test_configs_are_read_with_the_table_that_is_written():
    from mmengine.config import Config, utils
    assert compat.MODULE2PACKAGE is utils.MODULE2PACKAGE
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(compat.MODULE2PACKAGE, 'mmseg', 'a-package-that-is-not-there')
        with pytest.raises(Exception, match='a-package-that-is-not-there'):
            Config.fromfile(ROOT / 'configs/bisenetv2_fcn_cityscapes.py')


@pytest.mark.parametrize('name, remedy', [
    ('onedl-mmcv', '--no-cache-dir --no-build-isolation onedl-mmcv'),
    ('mmcv-lite', r'mmseg_bisenetv2\[full\]')])
def test_missing_op_names_the_installation_of_the_mmcv_that_is_there(
        tmp_path, monkeypatch, name, remedy):
    distribution(tmp_path, name)
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    with pytest.raises(MissingOpError, match=remedy):
        compat._MissingExtension().nms()


@pytest.mark.parametrize('swap', [True, False])
def test_channels_swap_by_either_name(swap):
    from mmengine.model import ImgDataPreprocessor

    from mmseg.models import SegDataPreProcessor
    assert swaps_channels(SegDataPreProcessor(bgr_to_rgb=swap)) is swap
    assert swaps_channels(ImgDataPreprocessor(bgr_to_rgb=swap)) is swap  # the fork's is its child
    with pytest.raises(AttributeError):
        swaps_channels(torch.nn.Module())


def test_network_swaps_channels_where_the_fork_keeps_it_elsewhere():
    from small import batch, build

    from mmseg_bisenetv2.deploy.network import FrameNetwork
    model = build(preprocessor=dict(type='mmseg_bisenetv2.SegDataPreProcessor'))
    preprocessor = model.data_preprocessor
    images, network = preprocessor(batch())['inputs'], FrameNetwork(model)
    preprocessor._channel_conversion = preprocessor.channel_conversion
    del preprocessor.channel_conversion  # as onedl-mmsegmentation has it
    assert preprocessor._channel_conversion
    assert torch.equal(preprocessor(batch())['inputs'], images)
    assert torch.equal(FrameNetwork(model).mean, network.mean)
    preprocessor._channel_conversion = False
    assert torch.equal(preprocessor(batch())['inputs'], images.flip(1))  # one mean for all channels
    assert torch.equal(FrameNetwork(model).mean, network.mean.flip(1))


@needs_lite
def test_missing_op_names_itself_and_the_extra():
    from mmcv.ops import nms
    with pytest.raises(MissingOpError, match=r'"nms".*mmseg_bisenetv2\[full\]'):
        nms(torch.rand(3, 4), torch.rand(3), 0.5)


@needs_lite
def test_mmengine_still_knows_that_the_ops_are_missing():
    assert importlib.util.find_spec('mmcv._ext').loader is None
    assert not mmcv_full_available()


def test_nothing_is_replaced_where_the_extension_exists(tmp_path):
    package = tmp_path / 'mmcv'  # a full MMCV, as far as anyone can tell from outside
    package.mkdir()
    (package / '__init__.py').write_text("__version__ = '2.1.0'\n")
    (package / '_ext.py').write_text("real = True\n")
    result = run_python(f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        spec = __import__('importlib.util').util.spec_from_file_location(
            'compat', {mmseg_bisenetv2.compat.__file__!r})
        spec.loader.exec_module(__import__('importlib.util').util.module_from_spec(spec))
        import mmcv._ext
        assert mmcv._ext.real is True
    """)
    assert result.returncode == 0, result.stderr


def test_log_buffers_survive_weights_only(tmp_path):
    from mmengine.logging import HistoryBuffer
    buffer = HistoryBuffer()
    buffer.update(1.0)
    buffer.update(3.0)
    path = tmp_path / 'checkpoint.pth'
    torch.save(dict(
        loss=buffer, score=np.float64(0.5), count=np.int64(3), flags=np.array([True])), path)
    loaded = torch.load(path, weights_only=True)
    assert loaded['loss'].mean() == 2.0
    assert loaded['score'] == 0.5
    assert loaded['count'] == 3


@pytest.mark.parametrize('owner, name', [
    (torch.Tensor, 'numpy'), ('os', 'system'), (np.ndarray, 'tofile'),
])
def test_getattr_in_a_checkpoint_reaches_log_statistics_only(tmp_path, owner, name):
    class Attack:
        def __reduce__(self):
            return getattr, (owner, name)

    path = tmp_path / 'crafted.pth'
    torch.save(dict(state_dict={}, attack=Attack()), path)
    with pytest.raises(pickle.UnpicklingError, match='refused in a checkpoint'):
        torch.load(path, weights_only=True)


def test_an_array_in_a_checkpoint_begins_empty(tmp_path):
    class Attack:
        def __reduce__(self):
            return np.zeros(1).__reduce__()[0], (np.ndarray, (10**10, ), b'b')

    path = tmp_path / 'crafted.pth'
    torch.save(dict(state_dict={}, attack=Attack()), path)
    with pytest.raises(pickle.UnpicklingError, match='an array of shape'):
        torch.load(path, weights_only=True)


def test_load_hooks_are_told_the_source_and_the_versions():
    found = []
    module = torch.nn.Sequential(torch.nn.BatchNorm2d(2))
    for part in (module, module[0]):
        part.register_load_state_dict_pre_hook(lambda *args: found.append(args[3]))
    original = module.state_dict()
    module.load_state_dict(with_source(dict(original), original, 'name.pth'))
    assert found[0]['source'] == 'name.pth'
    assert found[1]['version'] == module[0]._version
    original._metadata = {'': {'version': 'text'}, '0': 3}
    module.load_state_dict(with_source(dict(original), original, 'name.pth'))
    module.load_state_dict(with_source(dict(original), 3, 'name.pth'))


def test_foreign_classes_stay_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return exec, (f'open({str(tmp_path / "pwned")!r}, "w")', )

    path = tmp_path / 'crafted.pth'
    torch.save(dict(state_dict={}, attack=Attack()), path)
    with pytest.raises(pickle.UnpicklingError, match='exec'):
        torch.load(path, weights_only=True)
    assert not (tmp_path / 'pwned').exists()


def test_hooks_are_found(monkeypatch):
    module = torch.nn.Sequential(torch.nn.Sequential(torch.nn.ReLU()))
    assert not has_hooks(module)
    for register in (module[0][0].register_forward_hook, module[0].register_forward_pre_hook,
                     module.register_full_backward_hook, module.register_full_backward_pre_hook):
        handle = register(lambda *_: None)
        assert has_hooks(module)
        handle.remove()
    assert not has_hooks(module)
    module.register_forward_hook(lambda *_: None)
    monkeypatch.delattr(module, '_forward_hooks')  # as if PyTorch had renamed it
    assert not has_hooks(module)


def test_what_a_runner_was_told_to_load():
    class Renamed:  # as if MMEngine had renamed its attributes
        cfg = dict(resume=True, load_from='file.pth')

    class Runner(Renamed):
        _resume, _load_from = False, None

    assert resume_and_load_from(Renamed()) == (True, 'file.pth')
    assert resume_and_load_from(Runner()) == (False, None)


def test_preprocessors_copy_without_blocking():
    from mmengine.model import BaseDataPreprocessor
    preprocessor, asked = BaseDataPreprocessor(), []

    class Batch(torch.Tensor):
        def to(self, device, non_blocking=False):
            asked.append(non_blocking)
            return self

    images = torch.zeros(2).as_subclass(Batch)
    preprocessor(images)
    copy_without_blocking(preprocessor)
    preprocessor(images)
    assert asked == [False, True]
    del preprocessor._non_blocking  # as if MMEngine had renamed it
    copy_without_blocking(preprocessor)
    assert not hasattr(preprocessor, '_non_blocking')


@pytest.mark.skipif(torch.cuda.is_available(), reason='MMEngine takes the GPU')
def test_amp_wrapper_is_built_on_a_cpu_and_mmengine_keeps_refusing():
    from mmengine.optim import AmpOptimWrapper
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    with amp_wrapper_on_cpu():
        wrapper = AmpOptimWrapper(optimizer=optimizer)
    assert wrapper.loss_scaler.get_scale() == 65536
    with pytest.raises(AssertionError, match='only available training on gpu'):
        AmpOptimWrapper(optimizer=optimizer)


@pytest.mark.parametrize('capabilities, expected', [
    (dict(avx512_bf16=True), True), (dict(amx_bf16=True), True), (dict(avx2=True), False),
    ({}, False)])
def test_bf16_by_the_public_function(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: capabilities, raising=False)
    assert cpu_has_bf16() is expected


@pytest.mark.parametrize('names, expected', [
    (['_is_avx512_bf16_supported', '_is_amx_tile_supported'], True), ([], False)])
def test_bf16_where_the_public_function_is_not_there(monkeypatch, names, expected):
    monkeypatch.delattr(torch.cpu, 'get_capabilities', raising=False)
    for name in ('_is_avx512_bf16_supported', '_is_amx_tile_supported'):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    for name in names:
        monkeypatch.setattr(torch.cpu, name, lambda: True, raising=False)
    assert cpu_has_bf16() is expected
