"""Writing a file whole or not at all."""
import contextlib
import os


def flush_to_disk(path: str) -> None:
    """Waits until a file, or the names in a folder, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(content: bytes, path: str) -> None:
    """Writes a file beside the old one and puts it in its place.

    Whenever this process stops, ``path`` is the old file or the new one. What a kill leaves
    behind, ``{path}.partial``, is overwritten by the next attempt. Against a loss of power see
    :func:`flush_to_disk`.

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
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise OSError(error.errno, f'{error.strerror}: nothing of the new file was kept',
                      path) from error
