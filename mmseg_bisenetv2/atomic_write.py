"""Writing a file whole or not at all."""
import contextlib
import os


def write_atomically(content: bytes, path: str) -> None:
    """Writes a file beside the old one, flushes it to the disk, and puts it in its place.

    Whenever this process or the machine stops, ``path`` is the old file or the new one. What a
    kill leaves behind, ``{path}.partial``, is overwritten by the next attempt.

    Args:
        content: What the file shall hold.
        path: File to write or replace.

    Raises:
        OSError: With ``path``, if it cannot be written; a full disk, for example. Nothing of the
            new file is kept.
    """
    partial = f'{path}.partial'
    try:
        with open(partial, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        if os.name == 'posix':  # the name in the folder has to reach the disk as well
            folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise OSError(error.errno, f'{error.strerror}: nothing of the new file was kept',
                      path) from error
