"""The config in a checkpoint is data: honest ones serve, and none is run, imported or followed."""
import functools
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, Runner

from mmseg_bisenetv2.checkpoints import read_checkpoint, write_checkpoint
from mmseg_bisenetv2.checkpoints.stored_config import literal_config

from mmseg.apis import MMSegInferencer

CONFIG = Path(__file__).parents[2] / 'configs' / 'bisenetv2_fcn_cityscapes.py'
COUNTER = itertools.count()
PLACES = ('config', 'cfg', 'runtime_info')


def small_config():
    """The config of this project, of the small network."""
    config = Config.fromfile(CONFIG)
    config.model.backbone.update(norm_cfg=small.NORM, **small.WIDTHS)
    config.model.decode_head.update(in_channels=16, channels=16, norm_cfg=small.NORM, num_classes=4)
    config.model.auxiliary_head = None
    return config


@functools.cache
def honest_text():
    return small_config().pretty_text


def attacks(folder):
    """Texts of configs, each of which makes a file in this folder if it has its way."""
    trap, base, module = folder / 'trap', folder / 'base.py', folder.name
    base.write_text(f'import os\nos.system("touch {trap}")\n')
    (folder / f'{module}.py').write_text(f'open({str(trap)!r}, "w").close()\n')
    call = f'__import__("os").mknod("{trap}")'
    loading = "dict(type='LoadImageFromFile')"
    built = f"type='os.system', command='touch {trap}'"
    honest = honest_text()
    pickled = folder / 'weights.pkl'
    pickled.write_bytes(b'cposix\nsystem\nX%c\0\0\0%s\x85R.' % (
        len(f'touch {trap}'), f'touch {trap}'.encode()))
    return dict(
        statement=f'{honest}\nimport os\nos.system("touch {trap}")\n',
        value=f'{honest}\nx = [1, {call}]\n',
        keyword=f'x = dict(a={call})\n{honest}',
        base=f'_base_ = [{str(base)!r}]\n{honest}',
        custom_imports=f"{honest}\ncustom_imports = dict(imports=[{module!r}])\n",
        substituted='x = "{{ $NONE:\'+' + call.replace('"', "'") + '+\' }}"\n' + honest,
        model=f'{honest}\nmodel = dict({built})\n',
        nested=f'{honest}\nmodel = dict(type="EncoderDecoder", backbone=dict({built}), '
               'decode_head=dict())\n',
        bare_module=f"{honest}\nmodel = dict(type={module!r})\n",
        scope=f"{honest}\nmodel = dict(type='EncoderDecoder', _scope_={module!r})\n",
        padding=f"{honest}\nmodel = dict(type='ConvModule', in_channels=3, out_channels=3, "
                f"kernel_size=3, padding_mode={module!r})\n",
        pickled_weights=honest.replace("'mmseg_bisenetv2.UpsampleCrossEntropy'",
                                       f"'CrossEntropyLoss', class_weight={str(pickled)!r}"),
        transform=f'{honest}\ntest_dataloader = dict(dataset=dict(pipeline=[{loading}, '
                  f'dict({built})]))\n',
        collate=f"{honest}\ntest_dataloader = dict(collate_fn={module!r}, dataset=dict("
                f"pipeline=[{loading}]))\n",
        visualizer=f"{honest}\nvisualizer = dict(type='tarfile.open', name={str(trap)!r}, "
                   "mode='w')\n",
        backend=f"{honest}\nvisualizer = dict(type='SegLocalVisualizer', vis_backends=[dict("
                f"type='LocalVisBackend', save_dir={str(trap)!r})])\n")


NAMES = ('statement', 'value', 'keyword', 'base', 'custom_imports', 'substituted', 'model',
         'nested', 'bare_module', 'scope', 'padding', 'pickled_weights', 'transform', 'collate',
         'visualizer', 'backend')
# Without what is dropped, these are still configs of a network.
STILL_CONFIGS = ('statement', 'value', 'keyword', 'base', 'substituted', 'backend')


def place(checkpoint, where, text):
    """Puts the text of a config where MMEngine looks for it."""
    if where == 'runtime_info':
        checkpoint.setdefault('message_hub', {}).setdefault('runtime_info', {})['cfg'] = text
    else:
        checkpoint['meta'][where] = text


@pytest.fixture(scope='module')
def weights():
    return small.build().state_dict()


@pytest.fixture
def image():
    return np.zeros((32, 64, 3), np.uint8)


def runner(folder, **kwargs):
    """A training of two iterations on noise, of the small network."""
    class Noise(torch.utils.data.Dataset):
        metainfo = dict(classes=('a', 'b', 'c', 'd'), palette=[[0, 0, 0]] * 4)

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return dict(x=torch.ones(1))

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def train_step(self, data, optim_wrapper):
            optim_wrapper.update_params(self.scale.sum())
            return dict(loss=self.scale.detach().sum())

    return Runner(
        Model(), str(folder), train_dataloader=dict(
            dataset=Noise(), batch_size=2, num_workers=0,
            sampler=dict(type='InfiniteSampler', shuffle=False)),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)), default_scope='mmseg',
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1)),
        cfg=dict(model=dict(type='Model')), experiment_name=f'stored{next(COUNTER)}', **kwargs)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained')
    runner(folder).train()
    return read_checkpoint(str(folder / 'iter_1.pth'))


@pytest.mark.parametrize('where', PLACES)
def test_resuming_runs_nothing_that_the_checkpoint_carries(trained, tmp_path, where, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    texts = attacks(tmp_path)
    for name in ('statement', 'base', 'custom_imports', 'substituted'):
        place(trained, where, texts[name])
        path = str(tmp_path / f'{name}.pth')
        torch.save(trained, path)
        run = runner(tmp_path / 'work', load_from=path, resume=True)
        run.train()
        assert run.iter == 2
        assert not (tmp_path / 'trap').exists(), name


def test_the_number_of_gpus_is_still_compared(trained, tmp_path):
    trained['meta']['config'] = 'gpu_ids = range(0, 2)\n'
    torch.save(trained, tmp_path / 'range.pth')
    trained['meta']['config'] = 'gpu_ids = [0, 1]\n'
    torch.save(trained, tmp_path / 'list.pth')
    runner(tmp_path / 'work', load_from=str(tmp_path / 'range.pth'), resume=True).train()
    with pytest.raises(RuntimeError, match='Number of GPUs'):
        runner(tmp_path / 'work', load_from=str(tmp_path / 'list.pth'), resume=True).train()


@pytest.mark.parametrize('name, where', [
    ('statement', 'runtime_info'), *((name, 'cfg') for name in NAMES)])
def test_an_inferencer_runs_nothing_either(weights, tmp_path, name, where, monkeypatch, image):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    checkpoint = dict(meta=dict(dataset_meta=dict(classes=list('abcd'), palette=[[0, 0, 0]] * 4)),
                      state_dict=weights)
    texts = attacks(tmp_path)
    assert tuple(texts) == NAMES
    place(checkpoint, where, texts[name])
    torch.save(checkpoint, tmp_path / 'evil.pth')
    try:
        inferencer = MMSegInferencer(None, weights=str(tmp_path / 'evil.pth'), device='cpu')
        inferencer(image, show=False, return_vis=True)
    except Exception as error:  # what is left of the config need not be a config
        assert name not in STILL_CONFIGS, error
    assert not (tmp_path / 'trap').exists()


@pytest.mark.parametrize('where', PLACES[1:])
def test_an_inferencer_works_from_an_honest_file(weights, tmp_path, where, image, log):
    checkpoint = dict(meta=dict(dataset_meta=dict(classes=list('abcd'), palette=[[0, 0, 0]] * 4)),
                      state_dict=weights)
    place(checkpoint, where, honest_text())
    torch.save(checkpoint, tmp_path / 'fine.pth')
    inferencer = MMSegInferencer(None, weights=str(tmp_path / 'fine.pth'), device='cpu')
    assert inferencer(image, show=False)['predictions'].shape == (32, 64)
    assert not any('left out' in line for line in log)


def test_what_is_dropped_is_logged_in_one_line(weights, tmp_path, log):
    text = 'a = 1\nimport os\nb = os.getpid()\ncustom_imports = dict(imports=["os"])\n'
    torch.save(dict(meta=dict(cfg=text), state_dict=weights), tmp_path / 'a.pth')
    assert CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'))['meta']['cfg'] == 'a = 1\n'
    assert sum('a.pth: of the config that it carries, line 2, b, custom_imports left out' in line
               for line in log) == 1


def test_the_config_of_a_safetensors_file(weights, tmp_path):
    pytest.importorskip('safetensors')
    path = str(tmp_path / 'a.safetensors')
    write_checkpoint(dict(meta=dict(config='import os\na = 1', cfg='os.getpid()'),
                          state_dict=weights), path)
    assert 'import os' in json.dumps(read_checkpoint(path)['meta'])
    assert CheckpointLoader.load_checkpoint(path)['meta'] == dict(config='a = 1\n')


def test_a_config_keeps_its_values():
    config = Config.fromfile(CONFIG)
    text, dropped = literal_config(config.pretty_text)
    back = Config.fromstring(text, '.py').to_dict()
    assert not dropped
    for key, value in config.to_dict().items():
        if key not in ('model', 'visualizer', 'custom_imports'):
            assert back[key] == value
    assert back['model']['backbone']['type'] == 'mmseg_bisenetv2.BiSeNetV2'
    assert back['visualizer']['type'] == 'SegLocalVisualizer'
    assert literal_config(text) == (text, [])


@pytest.mark.parametrize('text, kept', [
    ("a = 1\nb = -2.5\nc = 'x'\nd = True\ne = None\n",
     dict(a=1, b=-2.5, c='x', d=True, e=None)),
    ("a = dict(b=[1, (2, 3)], c={'d': dict()})", dict(a=dict(b=[1, (2, 3)], c=dict(d=dict())))),
    ('a = dict({7: 0, 26: dict({8: 1})})', dict(a={7: 0, 26: {8: 1}})),
    ('a = dict({7: f()})', {}), ('a = dict({}, {})', {}), ('a = dict({}, b=1)', {}),
    ('a = dict({**f()})', {}), ('a = dict(*[{}])', {}),
    ("a = '{{ fileDirname }}{{{{'", dict(a='{{ fileDirname }}{{{{')),
    ("a = (b'x', {1, 2}, 1j)", dict(a=(b'x', {1, 2}, 1j))),
    ("a = 1\na = f()", {}), ('a = b = 1', {}), ('a: int = 1', {}), ("a['b'] = 1", {}),
    ('a = 1e999', {}), ('a = [-1e999]', {}), ('a = ...', {}), ('a = dict(**{})', {}),
    ('a = {[]: 1}', {}), ('a = dict(b=dict(**f()))', {}),
    ('a = {**{}}', {}), ('a = dict([])', {}), ('a = {f(): 1}', {}), ("a = f'{1}'", {}),
    ('a = [b for b in ()]', {}), ('a = lambda: 1', {}), ('__builtins__ = 1', {}),
    ('pretty_text = 1', {}), ("default_scope = 'os'", {}), ('', {}), ('a =', {}), ('\0', {}),
    (None, {}), (3, {}), (['a = 1'], {}), ('a = 1' + ' ' * 10**6, {}), ('a = ' + '9' * 5000, {}),
    ('a = ' + '-' * 190_000 + '1', {}), ('a = ' + '[' * 190_000, {}),
    ('a = b' + '.c' * 90_000, {}), ('a = 1' + '+1' * 90_000, {}), ('b' + '.c' * 90_000, {}),
], ids=lambda value: str(value)[:20])
def test_literals_are_kept_and_nothing_else(text, kept):
    result, dropped = literal_config(text)
    assert Config.fromstring(result, '.py').to_dict() == kept
    assert bool(dropped) != bool(kept) or text == ''
