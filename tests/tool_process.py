"""tools/predict.py in a process of its own, with a predictor that costs nothing."""
import contextlib
import multiprocessing
import os
import resource
import runpy
import sys
import time
from pathlib import Path

import numpy as np

import mmseg_bisenetv2.deploy

from mmseg.datasets import CityscapesDataset

TOOL = Path(__file__).parents[1] / 'tools/predict.py'
# Each process is forked from one that has imported the package, which takes seconds.
processes = multiprocessing.get_context('forkserver')
processes.set_forkserver_preload(['mmseg_bisenetv2.video.pipeline'])


class FakePredictor:
    """Stands for Predictor, and keeps what it was made of."""

    made = None
    seconds = 0.
    network_seconds = 0.001
    backend, precision = 'a backend', 'a precision'
    classes = CityscapesDataset.METAINFO['classes']

    def __init__(self, *args, **kwargs):
        FakePredictor.made = args, kwargs

    def __call__(self, image):
        time.sleep(self.seconds)
        return image[..., 0].copy()

    def overlay(self, image, labels, opacity=0.5):
        return np.tile(image, (4, 1, 1))[:len(image)]  # takes memory, as the real one does


def run_tool(arguments, log, seconds=0., memory=None):
    """Runs it with a predictor that takes so many seconds, in so many bytes beyond today's.

    Its output goes to the log, a file or a terminal, which then controls the process.
    """
    os.setsid()
    descriptor = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.close(descriptor)
    if memory:
        used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    FakePredictor.seconds = seconds
    mmseg_bisenetv2.deploy.Predictor = FakePredictor
    sys.argv = [str(TOOL), *map(str, arguments)]
    runpy.run_path(str(TOOL), run_name='__main__')


@contextlib.contextmanager
def tool_process(arguments, log, **options):
    """The process that runs it, killed if it is still there in the end."""
    process = processes.Process(target=run_tool, args=(arguments, str(log)), kwargs=options)
    process.start()
    yield process
    process.join(60)
    process.kill()
    process.join()
