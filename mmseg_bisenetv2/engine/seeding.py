"""Random numbers that follow from the place in the run, so that no random state has to be saved.

What is random for a sample (augmentation) or an iteration (dropout) is seeded by the seed of the
run and by where in the run it stands. A run that is resumed at any iteration, with any number of
loading processes, therefore draws what the uninterrupted run draws.
"""
import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset


def seed_random_generators(*place: int) -> int:
    """Seeds Python's, NumPy's and PyTorch's CPU generators.

    Args:
        *place: Whole numbers from 0: the seed of the run and a place in it. The last one must not
            be 0, since NumPy takes (1, 2, 0) for (1, 2).

    Returns:
        The seed, of 32 bits.
    """
    seed = int(np.random.SeedSequence(place).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    # This takes 1 us. torch.manual_seed, which seeds all devices, takes 100 us.
    torch.default_generator.manual_seed(seed)
    return seed


class PlacedIndex(int):
    """An index into a data set that carries its place in the run to where the sample is loaded."""

    place: tuple[int, ...] = ()


class SeededDataset(Dataset):
    """A data set whose augmentation follows from the place of the sample in the run.

    Everything but the loading of a sample is the wrapped data set's.

    Args:
        dataset: Any data set with ``__getitem__`` and ``__len__``.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        """Loads a sample; a :class:`PlacedIndex` seeds the random generators before."""
        if isinstance(index, PlacedIndex):
            seed_random_generators(*index.place)
        return self.dataset[int(index)]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset' or name.startswith('__'):  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)
