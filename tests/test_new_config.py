"""The config that ``tools/new_config.py`` writes for somebody's own classes and pictures."""
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from mmseg_bisenetv2.new_config import write_config

from mmseg.registry import DATASETS

TOOL = Path(__file__).parents[1] / 'tools/new_config.py'
CLASSES = ['background', 'road', "driver's car"]


@pytest.fixture
def data(tmp_path):
    """Pictures of 40 pixels' height and 90 width, and label maps of three classes."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for folder, suffix, content in (
                ('img_dir', '.JPG', rng.integers(0, 256, (40, 90, 3), np.uint8)),
                ('ann_dir', '.png', rng.integers(0, 3, (40, 90), np.uint8))):
            (tmp_path / 'data' / folder / split).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / 'data' / folder / split / f'a{suffix}'), content)
    for name in ('a.json', 'b.json', 'notes'):  # More than pictures.
        (tmp_path / 'data/img_dir/train' / name).touch()
    return tmp_path / 'data'


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments)])
    runpy.run_path(str(TOOL), run_name='__main__')


def test_everything_follows_the_classes_and_the_pictures(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, 'my.py', '--data', 'data', '--classes', ','.join(CLASSES))
    assert f'3 classes, pictures *.JPG of 90x40 in {data}' in capsys.readouterr().out
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')  # The data are found from any folder.
    config = Config.fromfile('../my.py')
    assert config.train_pipeline[2].scale == (90, 40)
    assert config.model.data_preprocessor.size == config.train_pipeline[2].crop_size == (40, 90)
    for head in (config.model.decode_head, *config.model.auxiliary_head):
        assert head.num_classes == 3
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        dataset = DATASETS.build(loader.dataset)
        assert list(dataset.metainfo['classes']) == CLASSES
        assert len({tuple(colour) for colour in dataset.metainfo['palette']}) == 3
        assert len(dataset) == 1
        dataset[0]


def test_all_else_is_the_config_that_is_copied_by_hand(tmp_path):
    write_config(tmp_path / 'my.py', tmp_path / 'none', ['background', 'drivable'], (1280, 720))
    found = Config.fromfile(tmp_path / 'my.py').to_dict()
    expected = Config.fromfile(TOOL.parents[1] / 'configs/bisenetv2_fcn_custom.py').to_dict()

    def neutral(value):
        if isinstance(value, dict):
            return {key: neutral(item) for key, item in value.items()
                    if key not in ('data_root', 'palette')}
        return [neutral(item) for item in value] if isinstance(value, (list, tuple)) else value

    assert neutral(found) == neutral(expected)


def test_settings_can_be_changed_in_the_file(data, tmp_path):
    write_config(tmp_path / 'my.py', data, CLASSES)
    text = (tmp_path / 'my.py').read_text()
    (tmp_path / 'my.py').write_text(text.replace('max_iters = 40000', 'max_iters = 30'))
    config = Config.fromfile(tmp_path / 'my.py')
    assert config.train_cfg.max_iters == 30
    assert config.train_cfg.val_interval == config.default_hooks.checkpoint.interval == 3
    assert max(map(len, text.splitlines())) <= 100 + len(str(data))


def test_classes_of_a_file(tmp_path, monkeypatch, capsys):
    (tmp_path / 'classes.txt').write_text('\ufeffbackground\r\nparked car, van\r\n\r\n', 'utf-8')
    run(monkeypatch, tmp_path / 'my.py', '--data', tmp_path / 'none', '--size', '1024x512',
        '--classes', tmp_path / 'classes.txt')
    assert f'{tmp_path / "none"}, which is not there yet' in capsys.readouterr().out
    config = Config.fromfile(tmp_path / 'my.py')
    assert config.classes == ('background', 'parked car, van')
    assert (config.scale, config.crop_size) == ((1024, 512), (512, 512))


@pytest.mark.parametrize('changes, message', [
    (dict(path='my.txt'), r'my\.txt: the name of a config ends with \.py'),
    (dict(path='nowhere/my.py'), r'nothing of the new file was kept: .*nowhere/my\.py'),
    (dict(classes='road'), '1 classes, expected 2 to 255'),
    (dict(classes='road,car,road'), "The class 'road' is there 2 times"),
    (dict(classes='road,,car'), "'' is no name of a class"),
    (dict(classes='road\ncar,van'), r"'road\\ncar' is no name of a class"),
    (dict(classes='nowhere.txt'), r"No such file.*nowhere\.txt"),
    (dict(size='1024x16'), 'Pictures of 1024x16, expected 32 pixels or more'),
    (dict(data='.'), 'expected img_dir/{train,val}/NAME.jpg and .*convert_labels'),
    (dict(data='none'), r'none does not exist\. If the pictures come later, give .*--size WIDTH'),
    (dict(data='empty'), 'No pictures in .*empty/img_dir/train yet: give their size, --size'),
])
def test_bad_values_are_refused_in_one_sentence(data, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty/img_dir/train').mkdir(parents=True)
    values = dict(path='my.py', data='data', classes='road,car') | changes
    options = [part for name, value in values.items() if name != 'path'
               for part in (f'--{name}', value)]
    with pytest.raises(SystemExit, match=f'(?s)^Nothing was written: .*{message}') as refused:
        run(monkeypatch, values['path'], *options)
    assert '\n' not in str(refused.value)
    assert not list(tmp_path.rglob('my.*'))


@pytest.mark.parametrize('size', ['1024', '1024x', '-1x512', '10.5x512', '1024x512x3'])
def test_size_is_two_numbers(tmp_path, monkeypatch, capsys, size):
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path / 'my.py', '--data', tmp_path, '--classes', 'a,b',
            f'--size={size}')
    assert 'expected WIDTHxHEIGHT in pixels, such as 2048x1024' in capsys.readouterr().err


@pytest.mark.parametrize('words', [
    ['background,road,parked car'], ['background', 'road', 'parked car'],
    ['background,', 'road,', 'parked car']])
def test_classes_between_commas_or_spaces(data, tmp_path, monkeypatch, words):
    run(monkeypatch, tmp_path / 'my.py', '--data', data, '--classes', *words)
    assert Config.fromfile(tmp_path / 'my.py').classes == ('background', 'road', 'parked car')


def test_classes_are_those_of_the_label_maps(data, tmp_path, monkeypatch):
    arguments = [tmp_path / 'my.py', '--data', data]
    with pytest.raises(SystemExit, match=r'classes\.txt is not there, so give .*--classes NAME'):
        run(monkeypatch, *arguments)
    (data / 'classes.txt').write_text('background\nobject\nroad\n')
    for other in ('background,road,object', 'background,object,car', 'background,object'):
        with pytest.raises(SystemExit, match=(
                r"are not those of the label maps, \['background', 'object', 'road'\] in the order "
                r'of their ids\. .*rename a class in .*classes\.txt')):
            run(monkeypatch, *arguments, '--classes', other)
    assert not (tmp_path / 'my.py').exists()
    for same in ([], ['--classes', 'background', 'object', 'road']):
        run(monkeypatch, *arguments, *same, '--force')
        assert Config.fromfile(tmp_path / 'my.py').classes == ('background', 'object', 'road')


def test_config_of_an_earlier_conversion_is_refused(data, tmp_path):
    (data / 'classes.txt').write_text('background\nroad\nsky\n')
    write_config(tmp_path / 'my.py', data)
    dataset = Config.fromfile(tmp_path / 'my.py').train_dataloader.dataset
    assert len(DATASETS.build(dataset)) == 1
    (data / 'classes.txt').write_text('background\ncar\nroad\n')  # By a later conversion.
    with pytest.raises(ValueError, match=r"\['background', 'road', 'sky'\], but the label maps "
                       r"have \['background', 'car', 'road'\] .*classes\.txt\. Write these into"):
        DATASETS.build(dataset)


def test_path_of_the_data_is_normalised(data, tmp_path, monkeypatch):
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    run(monkeypatch, '../elsewhere/my.py', '--data', '../data/', '--classes', 'a,b')
    assert Config.fromfile('my.py').data.data_root == str(data)
    assert '..' not in Path('my.py').read_text().partition('_base_')[0].replace('...', '')


def test_existing_file_is_kept_unless_forced(data, tmp_path, monkeypatch):
    (tmp_path / 'my.py').write_text('mine = 1\n')
    arguments = [tmp_path / 'my.py', '--data', data, '--classes', 'road,car']
    with pytest.raises(SystemExit, match=r'my\.py is there already\. --force overwrites it'):
        run(monkeypatch, *arguments)
    assert (tmp_path / 'my.py').read_text() == 'mine = 1\n'
    run(monkeypatch, *arguments, '--force')
    assert Config.fromfile(tmp_path / 'my.py').classes == ('road', 'car')
