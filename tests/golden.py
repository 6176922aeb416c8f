"""Reference numbers, and weights and inputs that follow from names; see tests/data/README.md."""
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

DATA = Path(__file__).parent / 'data'


def shared(name):
    """A file of the folder ``shared`` beside the repository; skips where it is absent.

    MMSEG_BISENETV2_SHARED names another place.
    """
    root = os.environ.get('MMSEG_BISENETV2_SHARED', Path(__file__).parents[2] / 'shared')
    path = Path(root) / name
    if not path.exists():
        pytest.skip(f'needs {name} of the folder "shared" beside the repository')
    return path


def golden_arrays(name):
    """The arrays of 'ssseg' or 'coincheung', a mapping from names to NumPy arrays."""
    return np.load(DATA / f'{name}.npz')


def golden_state_dict(name):
    """The weights behind them, under the implementation's own keys: ``{key: tensor}``."""
    arrays = golden_arrays(name)
    shapes = json.loads((DATA / f'{name}_shapes.json').read_text())
    return {key: _weight(key, shape, arrays) for key, shape in shapes.items()}


def _weight(key, shape, arrays):
    if key.endswith('num_batches_tracked'):
        return torch.tensor(1234)
    if key.endswith(('running_mean', 'running_var')):
        return torch.from_numpy(arrays[f'stat/{key}'])
    rng = np.random.default_rng([0, zlib.crc32(key.encode())])
    if len(shape) == 4:
        value = rng.standard_normal(shape, dtype=np.float32)
        value *= np.float32(np.sqrt(2 / (shape[1] * shape[2] * shape[3])))
    elif key.endswith('bias'):
        value = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.2)
    else:
        value = rng.random(shape, dtype=np.float32) * np.float32(0.8) + np.float32(0.6)
    return torch.from_numpy(value)


def golden_input(height, width):
    """A normalised image, (1, 3, height, width), float32."""
    rng = np.random.default_rng([0, height, width])
    return torch.from_numpy(rng.standard_normal((1, 3, height, width), dtype=np.float32))


def golden_batch():
    """The training batch: images (2, 3, 128, 256), float32, and labels (2, 128, 256), int64."""
    rng = np.random.default_rng([0, 7])
    images = rng.standard_normal((2, 3, 128, 256), dtype=np.float32)
    labels = rng.integers(0, 19, (2, 16, 32))
    labels[rng.random((2, 16, 32)) < 0.2] = 255
    labels = labels.repeat(8, axis=1).repeat(8, axis=2)
    return torch.from_numpy(images), torch.from_numpy(labels)
