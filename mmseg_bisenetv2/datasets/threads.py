"""Work on many files in threads, with a progress bar."""
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar('Item')
Result = TypeVar('Result')


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item], title: str,
                   num_threads: int | None = None) -> Iterator[Result]:
    """Calls a function with each item; yields what it returns, in the order of the items.

    Args:
        function: What to call, in several threads at once.
        items: What to call it with.
        title: The text before the progress bar, which is drawn on stderr.
        num_threads: By default as many as cores, but at most 8.

    Raises:
        Exception: The first one of ``function``. Items that still wait are left out then, and also
            if the loop over the results ends early, by Ctrl-C for example.
    """
    pool = ThreadPoolExecutor(num_threads or min(8, os.cpu_count() or 1))
    try:
        yield from track(pool.map(function, items), title, len(items), console=Console(stderr=True))
    finally:
        pool.shutdown(cancel_futures=True)
