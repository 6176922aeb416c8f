"""One training in a folder at a time."""
import json
import os
import socket
import time
from typing import IO, Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from mmseg_bisenetv2.registry import HOOKS

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = 'training.lock'
# The open files by their paths. The system releases a process's lock when any file object of it is
# closed, also that of an earlier training in the same process that was broken off.
HELD: dict[str, IO[str]] = {}


class WorkDirLockedError(RuntimeError):
    """Another training writes to the same folder."""


@HOOKS.register_module()
class WorkDirLockHook(Hook):
    """Refuses a second training in a work directory; testing there stays possible.

    The first process of a training holds a lock on the file ``training.lock``, which names it. The
    system releases the lock when the process ends, however it ends, so that a crash leaves no
    obstacle. Another machine may not see the lock: where the file names another host, the training
    is refused until the file is removed.
    """

    priority = 'HIGHEST'  # before anything is written

    def before_run(self, runner: Runner) -> None:
        """Takes the lock.

        Raises:
            WorkDirLockedError: If another training has it; with its host, process and start.
        """
        if not isinstance(runner.optim_wrapper, OptimWrapper):
            return  # a test or a validation
        refusal: list[str | None] = [None]
        if is_main_process():
            refusal = [self._take(os.path.join(runner.work_dir, NAME))]
        broadcast_object_list(refusal)  # so that the other processes do not wait for the first
        if refusal[0]:
            raise WorkDirLockedError(refusal[0])

    def _take(self, path: str) -> str | None:
        """Takes the lock, or says who has it."""
        file = HELD.get(path) or open(path, 'a+')
        file.seek(0)
        holder = _read(file)
        host = socket.gethostname()
        pid = holder.get('pid')
        training = (f'Process {pid} on {holder.get("host")} has trained in '
                    f'{os.path.dirname(path)} since {holder.get("start")}')
        refusal = None
        if _is_locked_by_another(file, holder):
            refusal = f'{training}. End it (kill {pid}), or choose another --work-dir'
        elif holder and holder.get('host') != host:
            refusal = f'{training}, or was broken off. End it there; if it has ended: rm {path}'
        if refusal:
            file.close()
            return refusal
        file.truncate(0)
        json.dump(dict(host=host, pid=os.getpid(), start=time.strftime('%Y-%m-%d %H:%M:%S')), file)
        file.flush()
        HELD[path] = file
        return None

    def after_run(self, runner: Runner) -> None:
        """Gives the lock back."""
        file = HELD.pop(os.path.join(runner.work_dir, NAME), None)
        if file:
            file.truncate(0)  # removing it would let two others lock an old and a new file
            file.close()


def _read(file: IO[str]) -> dict[str, Any]:
    try:
        content = json.load(file)
    except ValueError:  # empty, or broken off while it was written
        return {}
    return content if isinstance(content, dict) else {}


def _is_locked_by_another(file: IO[str], holder: dict[str, Any]) -> bool:
    """Locks the file for this process, its children excepted; they do not keep it locked."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except (BlockingIOError, PermissionError):
        return True
    except (OSError, AttributeError):
        # a file system or a platform without locks: ask whether the process still exists
        pid = holder.get('pid')
        return (holder.get('host') == socket.gethostname() and isinstance(pid, int)
                and pid != os.getpid() and os.path.exists(f'/proc/{pid}'))
