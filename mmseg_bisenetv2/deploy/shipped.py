"""The networks that come with the package, found by name."""
from pathlib import Path

from mmseg_bisenetv2 import MIM_FOLDER

# Name -> stem of the config in configs/ and of the files in weights/. The cards beside the weights
# say what each was trained on, what it may be used for, and how well it does.
SHIPPED = dict(camvid='bisenetv2_fcn_camvid')


def find_shipped(name: str, precision: str = 'auto') -> tuple[Path, Path | None]:
    """Files of a network that comes with the package.

    Args:
        name: One of ``SHIPPED``.
        precision: 'int8' for the quantised form, which OpenVINO runs; any other for the weights.

    Returns:
        The config and its checkpoint; or the exported file, and None.

    Raises:
        FileNotFoundError: If the weights are not there, with the ways to get them.
    """
    stem = SHIPPED[name]
    config = MIM_FOLDER / 'configs' / f'{stem}.py'
    weights = MIM_FOLDER / 'weights' / (
        stem + ('_int8.xml' if precision == 'int8' else '.safetensors'))
    for path in (weights, weights.with_suffix('.bin') if precision == 'int8' else config):
        if not path.is_file():
            raise FileNotFoundError(
                f'{name!r} needs {path}, which is not there. It comes with the wheel and with '
                'every complete clone. In a clone, `git checkout -- weights` brings it back; else '
                'install the package anew, or name a config and a checkpoint of your own')
    return (weights, None) if precision == 'int8' else (config, weights)
