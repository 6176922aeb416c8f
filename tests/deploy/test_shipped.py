"""The network that comes with the package: files, card, figures, and pictures of any kind."""
import hashlib
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from golden import shared
from mmengine.config import Config
from mmengine.runner import Runner

from mmseg_bisenetv2.deploy import Predictor, shipped
from mmseg_bisenetv2.metrics import IoUMetric, mean_iou

from mmseg.registry import DATASETS

ROOT = Path(__file__).parents[2]
CONFIG, WEIGHTS = shipped.find_shipped('camvid')
INT8 = WEIGHTS.with_name(f'{WEIGHTS.stem}_int8.xml')
CARD = (WEIGHTS.parent / 'README.md').read_text()


def figure(name):
    """What the card says in the row of a file."""
    return re.search(rf'^\| `?{re.escape(name)}`? \|(.*)\|$', CARD, re.M)[1].split('|')[0].strip()


@pytest.fixture(scope='module')
def val():
    """The config with CamVid's validation set, and its pictures and labels."""
    config = Config.fromfile(CONFIG)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.dataset.data_root = str(shared('data/camvid'))
        loader.update(num_workers=0, persistent_workers=False)
    dataset = DATASETS.build(config.val_dataloader.dataset)
    return config, [(dataset.get_data_info(i)['img_path'], dataset[i]['data_samples'])
                    for i in range(len(dataset))]


def miou(predictor, pairs):
    confusion = sum(
        IoUMetric.intersect_and_union(torch.from_numpy(predictor(path)), sample.gt_sem_seg.data[0],
                                      11, 255).to_dense() for path, sample in pairs)
    return mean_iou(confusion)


def test_files_are_small_and_those_of_the_card():
    files = [WEIGHTS, INT8, INT8.with_suffix('.bin')]
    assert sum(file.stat().st_size for file in files[:1]) < 8e6
    for file in files:
        assert hashlib.sha256(file.read_bytes()).hexdigest() in CARD, f'{file.name} is not the one'


def test_nothing_is_said_of_heads_that_only_training_uses(capsys):
    """The file has none, and MMEngine would list their tensors as missing."""
    Predictor('camvid', backend='torch', device='cpu')
    assert 'do not match' not in capsys.readouterr().out


def test_mim_test_gives_the_figure_of_the_card(val, tmp_path):
    config, _ = val
    config = Config(dict(config), filename=config.filename)
    config.update(load_from=str(WEIGHTS), work_dir=str(tmp_path), launcher='none')
    scores = Runner.from_cfg(config).test()
    assert f'{scores["mIoU"]:.2f}' == figure('mIoU')


def test_predictor_gives_the_figure_of_the_card(val):
    found = miou(Predictor('camvid', precision='fp32', backend='torch'), val[1])
    assert f'{found:.2f}' == figure('mIoU')


def test_int8_file_is_within_the_gate(val):
    pytest.importorskip('openvino')
    predictor = Predictor('camvid', precision='int8')
    assert predictor.precision == 'int8'
    assert miou(predictor, val[1]) > float(figure('mIoU')) - 0.5


@pytest.mark.parametrize('precision', ['fp32', 'int8'])
def test_a_larger_picture_is_seen_at_the_size_of_the_training(val, precision):
    """At 1440x1080 the objects of a CamVid picture are three times as large as in training."""
    if precision == 'int8':
        pytest.importorskip('openvino')
    predictor = Predictor('camvid', precision=precision)
    picture = cv2.imread(val[1][0][0])
    labels = predictor(cv2.resize(picture, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC))
    assert labels.shape == (1080, 1440)
    assert (labels[1::3, 1::3] == predictor(picture)).mean() > 0.97


@pytest.mark.parametrize('picture', [
    np.full((300, 400, 3), 120, np.uint8),
    np.random.default_rng(0).integers(0, 256, (120, 480, 3), dtype=np.uint8),
    np.random.default_rng(0).integers(0, 256, (90, 120), dtype=np.uint8)],
    ids=['one colour', 'panorama', 'grey'])
def test_pictures_of_another_kind_get_a_map(picture):
    labels = Predictor('camvid', backend='torch')(picture)
    assert labels.shape == picture.shape[:2] and labels.dtype == np.uint8 and labels.max() < 11


def test_classes_come_with_the_network():
    predictor = Predictor('camvid', backend='torch')
    assert predictor.classes[:4] == ('Sky', 'Building', 'Pole', 'Road')
    assert repr(predictor).startswith(
        'Predictor(bisenetv2_fcn_camvid.py, bisenetv2_fcn_camvid.safetensors: 11 classes')


def test_a_checkpoint_beside_it_is_refused():
    with pytest.raises(ValueError, match="'camvid' has its weights"):
        Predictor('camvid', 'other.pth')


@pytest.mark.parametrize('precision', ['auto', 'int8'])
def test_missing_weights_say_how_to_get_them(monkeypatch, tmp_path, precision):
    (tmp_path / 'configs').mkdir()
    shutil.copy(CONFIG, tmp_path / 'configs')
    monkeypatch.setattr(shipped, 'MIM_FOLDER', tmp_path)
    with pytest.raises(FileNotFoundError, match='git checkout -- weights'):
        Predictor('camvid', precision=precision)


def test_another_name_lists_those_that_there_are():
    with pytest.raises(ValueError, match=r"one of \['camvid'\]"):
        Predictor('kitti')
