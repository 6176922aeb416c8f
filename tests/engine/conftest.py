"""A training on seven pictures that was never interrupted, to compare others with."""
from pathlib import Path

import pytest
from trainings import Process, make_data


@pytest.fixture(scope='session')
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp('engine') / 'data')


@pytest.fixture(scope='session')
def straight(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work directory of eight iterations, with checkpoints at 2, 4, 6 and 8."""
    folder = tmp_path_factory.mktemp('straight')
    code, text = Process('train', config, folder / 'work', log=folder / 'log').wait()
    assert code == 0, text
    return folder / 'work'
