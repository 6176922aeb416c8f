"""The config that users copy: what they change in it reaches all that depends on it."""
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS, init_default_scope

import mmseg_bisenetv2  # noqa: F401

from mmseg.registry import MODELS

CONFIG = Path(__file__).parents[1] / 'configs/bisenetv2_fcn_custom.py'


def change(folder, **settings):
    """A copy of the config with other settings, loaded."""
    lines = CONFIG.read_text().replace("'./_base_/", f"'{CONFIG.parent}/_base_/").splitlines()
    for name, value in settings.items():
        found = [i for i, line in enumerate(lines) if line.startswith(f'{name} = ')]
        assert len(found) == 1
        lines[found[0]] = f'{name} = {value!r}'
    (folder / 'mine.py').write_text('\n'.join(lines))
    return Config.fromfile(folder / 'mine.py')


@pytest.mark.parametrize('max_iters, interval', [(1, 1), (9, 1), (300, 30), (80000, 8000)])
def test_schedule_follows_the_number_of_iterations(tmp_path, max_iters, interval):
    config = change(tmp_path, max_iters=max_iters)
    assert config.train_cfg.max_iters == max_iters
    assert config.train_cfg.val_interval == config.default_hooks.checkpoint.interval == interval
    assert config.default_hooks.logger.interval == min(50, interval)
    assert [s.end for s in config.param_scheduler] == [min(1000, interval) + 1, max_iters + 1]


def test_classes_from_a_file(tmp_path):
    (tmp_path / 'classes.txt').write_text('road\nparked car\nsky\n')
    config = change(tmp_path, classes=str(tmp_path / 'classes.txt'), palette=[[0] * 3] * 3)
    assert config.model.decode_head.num_classes == 3
    assert {head.num_classes for head in config.model.auxiliary_head} == {3}
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        assert loader.dataset.metainfo.classes == ('road', 'parked car', 'sky')


def test_label_map_reaches_all_data(tmp_path):
    config = change(tmp_path, label_map={7: 0, 26: 1})
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        assert loader.dataset.label_map == {7: 0, 26: 1}
    config.dump(tmp_path / 'dumped.py')
    dumped = Config.fromfile(tmp_path / 'dumped.py')
    assert dumped.val_dataloader.dataset.label_map == {7: 0, 26: 1}
    start(dumped)
    assert 'label_map' not in Config.fromfile(CONFIG).train_dataloader.dataset


def test_two_classes_are_not_advised_to_share_a_channel():
    def advice(model):
        with warnings.catch_warnings(record=True) as caught, torch.device('meta'):
            warnings.simplefilter('always')
            built = MODELS.build(model)
        assert built.out_channels == 2
        return [warning for warning in caught if 'out_channels = 1' in str(warning.message)]

    config = Config.fromfile(CONFIG)
    init_default_scope(config.default_scope)
    assert len(config.model.auxiliary_head) == 4
    assert not advice(config.model)
    for head in (config.model.decode_head, *config.model.auxiliary_head):
        assert head.num_classes == head.pop('out_channels') == 2
    assert len(advice(config.model)) == 5  # what MMSegmentation says otherwise


def start(config):
    """What the runner does with the hook when a run starts."""
    hook = HOOKS.build(config.default_hooks.settings)
    hook.before_run(SimpleNamespace(cfg=config))
    hook.before_train(SimpleNamespace(cfg=config))


@pytest.mark.parametrize('options', [
    dict(max_iters=5), dict(classes=['a', 'b', 'c']), dict(crop_size=(64, 64)),
    dict(scale=(640, 360)), {'data.data_root': 'elsewhere'}, {'label_map.7': 0}])
def test_option_that_comes_too_late_is_refused(options):
    config = Config.fromfile(CONFIG)
    config.merge_from_dict(options)
    name = next(iter(options)).split('.')[0]
    with pytest.raises(ValueError, match=f'{name}=.* has no effect.*Change it in that file'):
        start(config)


def test_other_options_and_a_dumped_config_pass(tmp_path):
    config = Config.fromfile(CONFIG)
    config.merge_from_dict({'train_cfg.val_interval': 5, 'train_dataloader.batch_size': 2})
    start(config)
    config.dump(tmp_path / 'dumped.py')
    start(Config.fromfile(tmp_path / 'dumped.py'))


def test_training_that_ends_elsewhere_than_its_schedule_is_refused():
    config = Config.fromfile(CONFIG)
    config.merge_from_dict({'train_cfg.max_iters': 6})
    with pytest.raises(ValueError, match=r'max_iters=6, .* for max_iters=40000\. Change'):
        start(config)
    config.train_cfg = None  # As of a config that only tests.
    start(config)
