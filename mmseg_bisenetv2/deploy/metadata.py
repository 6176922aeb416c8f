"""What a deployed network says of itself, inside every exported file."""
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from mmcv import rescale_size
from mmengine.config import Config

from mmseg_bisenetv2.datasets.class_names import make_palette

from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import DATASETS

METADATA_KEY = 'mmseg_bisenetv2'  # in an ONNX file and in an OpenVINO IR
METADATA_FILE = 'mmseg_bisenetv2.json'  # in a torch.export archive
FORMAT_VERSION = 1  # files without one were written before there were versions, and are the same
MAX_SIDE = 65535  # of a picture; JPEG has no larger ones


@dataclasses.dataclass(frozen=True)
class ExportMetadata:
    """Classes, sizes and origin of a network. Its values are checked when it is built.

    Attributes:
        classes: Their names, 2 to 256.
        palette: Their colours, RGB, 0 to 255.
        scale: (width, height) that images are resized to before the network, as MMSegmentation's
            ``Resize`` understands it; None where they are taken as they are.
        keep_ratio: Whether that keeps the ratio of width to height.
        size: (height, width) of the only frames that a file takes, one at a time; None: any.
        align_corners: How the logits are resized.
        precision: What a file was made for: 'fp32', 'bf16', or 'int8' where it was quantised.
        config: Name of the config.
        checkpoint: Name of the checkpoint, None for random weights.
        sha256: Of the checkpoint file.
        format_version: Of this record.

    Raises:
        ValueError: If a value has another type, length or range.
    """

    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    scale: tuple[int, int] | None = None
    keep_ratio: bool = True
    size: tuple[int, int] | None = None
    align_corners: bool = False
    precision: str = 'fp32'
    config: str | None = None
    checkpoint: str | None = None
    sha256: str | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        number = len(self.classes) if isinstance(self.classes, tuple) else 0
        size = f'None or two numbers from 1 to {MAX_SIDE}', lambda value: (
            value is None or _are_numbers(value, 2, 1, MAX_SIDE))
        flag = 'true or false', lambda value: isinstance(value, bool)
        text = 'a text or None', lambda value: isinstance(value, str | None)
        checks: dict[str, tuple[str, Callable[[Any], bool]]] = dict(
            classes=('2 to 256 names', lambda value: (
                2 <= number <= 256 and all(isinstance(name, str) for name in value))),
            palette=(f'three numbers from 0 to 255 for each of {number} classes', lambda value: (
                isinstance(value, tuple) and len(value) == number
                and all(_are_numbers(colour, 3, 0, 255) for colour in value))),
            precision=('fp32, bf16 or int8', lambda value: value in ('fp32', 'bf16', 'int8')),
            scale=size, size=size, keep_ratio=flag, align_corners=flag,
            config=text, checkpoint=text, sha256=text)
        for name, (expected, is_good) in checks.items():
            value = getattr(self, name)
            if not is_good(value):
                raise ValueError(f'{name} is {str(value)[:80]}, expected {expected}')

    def to_json(self) -> str:
        """As text for a file."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | None) -> Self:
        """Back from the text that a file held.

        Raises:
            ValueError: If that is nothing which this package wrote.
        """
        try:
            found = json.loads(text or '{}')
            if not isinstance(found, dict):
                raise ValueError('no table of names and values')
            values = {'format_version': FORMAT_VERSION, **found}
            if values['format_version'] != FORMAT_VERSION:
                raise ValueError(f'format version {str(values["format_version"])[:20]}, this '
                                 f'package reads {FORMAT_VERSION}')
            known = {field.name for field in dataclasses.fields(cls)}
            if values.keys() != known:
                raise ValueError(f'other names than expected: {sorted(values.keys() ^ known)[:5]}')
            return cls(**{name: _tuples(value) for name, value in values.items()})
        except (ValueError, RecursionError) as error:
            raise ValueError(f'it does not say what it holds ({str(error)[:300]}). Export the '
                             'network anew, with tools/export.py of this version') from error

    @classmethod
    def from_model(cls, model: EncoderDecoder,
                   checkpoint: str | os.PathLike | None = None) -> Self:
        """The metadata of a model that ``mmseg.apis.init_model`` returned.

        Raises:
            ValueError: If the test pipeline changes pictures in a way that has no name here.
        """
        number, dataset = model.decode_head.num_classes, _test_dataset(model.cfg)
        # What the checkpoint says of the classes, then the config, then the data set itself.
        metas = (getattr(model, 'dataset_meta', None), dataset.get('metainfo'),
                 'type' in dataset and getattr(DATASETS.get(dataset['type']), 'METAINFO', None))
        meta: dict[str, Any] = next(
            (meta for meta in metas if meta and len(meta.get('classes') or ()) == number), {})
        classes = tuple(meta.get('classes') or (f'class {i}' for i in range(number)))
        palette = meta.get('palette') or ()
        if len(palette) != number:
            palette = make_palette(classes)
        # ``test_pipeline`` is only a name which configs give the steps of `mim test`.
        resize = _resize_step(dataset.get('pipeline', model.cfg.get('test_pipeline', [])))
        path = Path(checkpoint) if checkpoint else None
        return cls(
            classes, tuple((int(red), int(green), int(blue)) for red, green, blue in palette),
            scale=tuple(resize['scale']) if resize else None,
            keep_ratio=bool(resize.get('keep_ratio', False)) if resize else True,
            align_corners=model.align_corners,
            config=Path(model.cfg.filename).name if model.cfg.filename else None,
            checkpoint=path.name if path else None,
            sha256=(hashlib.sha256(path.read_bytes()).hexdigest()
                    if path and path.is_file() else None))

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) at which the network sees an image of that size."""
        if self.size:
            return self.size
        if self.scale is None:
            return height, width
        if not self.keep_ratio:
            return self.scale[1], self.scale[0]
        width, height = rescale_size((width, height), self.scale)
        return max(1, height), max(1, width)


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _are_numbers(value: Any, length: int, lowest: int, highest: int) -> bool:
    return isinstance(value, tuple) and len(value) == length and all(
        type(number) is int and lowest <= number <= highest for number in value)


def _test_dataset(cfg: Config) -> dict:
    """The data set that `mim test` reads, without what is wrapped around it."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'pipeline' not in dataset and isinstance(dataset.get('dataset'), dict):
        dataset = dataset['dataset']
    return dataset


def _resize_step(pipeline: list[dict]) -> dict | None:
    """The only step of a test pipeline that changes sizes, if there is one."""
    found = None
    for step in pipeline:
        name = step['type'].split('.')[-1]
        if name == 'Resize' and found is None and 'scale' in step and not (
                step.keys() - {'type', 'scale', 'keep_ratio', '_scope_'}):
            side = step['scale']
            found = dict(step, scale=(side, side) if isinstance(side, int) else side)
        elif not name.startswith(('Load', 'Pack')):
            raise ValueError(f'The test pipeline has {dict(step)}: expected one Resize to a scale, '
                             'and nothing else that changes the picture')
    return found
