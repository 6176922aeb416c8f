"""tools/predict.py with a predictor that costs nothing, in this process or in one of its own."""
import contextlib
import multiprocessing
import os
import resource
import runpy
import sys
import time
from pathlib import Path

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
        return image.copy()


def run_tool(arguments, seconds=0., memory=None, log=None):
    """Runs it with a predictor that takes so many seconds, in so many bytes beyond today's."""
    if log:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(descriptor, number)
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
    process = processes.Process(target=run_tool, args=(arguments, ),
                                kwargs=dict(options, log=str(log)))
    process.start()
    yield process
    process.join(60)
    process.kill()
    process.join()


if __name__ == '__main__':
    run_tool(sys.argv[1:], seconds=.02)
