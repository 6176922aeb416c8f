"""Training by iterations that goes on where it stopped: within seconds, and to the last bit."""
from collections.abc import Iterator
from inspect import signature
from typing import Any

import torch
from mmengine.dist import broadcast_object_list, get_rank
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, Runner
from mmengine.runner import IterBasedTrainLoop as MMEngineIterBasedTrainLoop
from torch.utils.data import DataLoader

from mmseg_bisenetv2.engine.batch_sampler import ResumableBatchSampler
from mmseg_bisenetv2.engine.seeding import SeededDataset, seed_random_generators
from mmseg_bisenetv2.registry import LOOPS


class _Batches:
    """What MMEngine's loop takes batches from; those that it passes over are not loaded."""

    def __init__(self, loop: 'IterBasedTrainLoop') -> None:
        self.loop = loop
        self.passed_over = 0
        self.batches: Iterator[Any] | None = None

    def skip_iter(self, number: int) -> None:
        """Passes over past batches; later versions of MMEngine call this."""
        self.passed_over += number

    def __next__(self) -> Any:
        if self.batches is None:
            if self.passed_over < self.loop.iter:  # MMEngine asks for each past batch and drops it
                self.passed_over += 1
                return None
            self.batches = self.loop.begin(self.passed_over)
        return next(self.batches)


@LOOPS.register_module()
class IterBasedTrainLoop(MMEngineIterBasedTrainLoop):
    """Drop-in for MMEngine's IterBasedTrainLoop, for any data set and sampler.

    The order of the samples is that of MMEngine's loop under the same seed. MMEngine's loads every
    past batch again when a run is resumed; this one passes over their indices only. Augmentation
    and dropout are seeded by the place in the run (see :mod:`mmseg_bisenetv2.engine.seeding`), so
    that a resumed run continues exactly as if it had never stopped. With gradient accumulation
    this holds for checkpoints at multiples of ``accumulative_counts``.

    Args:
        runner: Of this loop.
        dataloader: The training data, built or to be built by the runner.
        max_iters: Iterations of the whole run.
        *args: Those of MMEngine's loop: ``val_begin``, ``val_interval``, ``dynamic_intervals``.
        **kwargs: The same, by name.
    """

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, max_iters: int,
                 *args: Any, **kwargs: Any) -> None:
        BaseLoop.__init__(self, runner, dataloader)  # the runner builds the data loader
        built: DataLoader = self.dataloader  # type: ignore[has-type]
        # MMEngine's constructor begins to load data, before it is known where the run begins. It
        # gets a loader that loads nothing until it is asked.
        super().__init__(runner, DataLoader(built.dataset), max_iters, *args, **kwargs)
        self.seed = 0
        self.batch_sampler = ResumableBatchSampler(built.batch_sampler)
        # Everything but the data set, and what the batch sampler replaces, stays as it was built.
        other = ('dataset', 'batch_size', 'shuffle', 'sampler', 'batch_sampler', 'drop_last')
        options = {name: getattr(built, name) for name in signature(DataLoader).parameters
                   if name not in other and hasattr(built, name)}
        self.dataloader = DataLoader(
            SeededDataset(built.dataset), batch_sampler=self.batch_sampler, **options)
        self.dataloader_iterator = _Batches(self)
        sampler = dataloader['sampler'] if isinstance(dataloader, dict) else None
        self.sampler_follows_run = isinstance(sampler, dict) and sampler.get('seed') is None

    def begin(self, start: int) -> Iterator[Any]:
        """The batches from iteration ``start`` on, after resuming has set the seed of the run."""
        if start:
            print_log(f'The data begin at iteration {start}; nothing was loaded for those before',
                      logger='current')
        seed = [self.runner.seed]
        broadcast_object_list(seed)  # with diff_rank_seed each rank has its own
        self.seed = seed[0]
        if self.sampler_follows_run and hasattr(self.batch_sampler.sampler, 'seed'):
            self.batch_sampler.sampler.seed = self.seed
        self.batch_sampler.begin(self.seed, get_rank(), start)
        return iter(self.dataloader)

    def run_iter(self, data_batch: Any) -> None:
        """Runs one iteration; what is random in the model follows from its number."""
        torch.manual_seed(seed_random_generators(self.seed, self.iter, get_rank() + 1))
        super().run_iter(data_batch)
