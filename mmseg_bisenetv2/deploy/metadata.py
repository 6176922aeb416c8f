"""What a deployed network says of itself, inside every exported file."""
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
from mmcv import rescale_size
from mmengine.config import Config

from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import DATASETS

METADATA_KEY = 'mmseg_bisenetv2'  # in an ONNX file and in an OpenVINO IR
METADATA_FILE = 'mmseg_bisenetv2.json'  # in a torch.export archive
FORMAT_VERSION = 1  # files without one were written before there were versions, and are the same
MAX_SIDE = 65535  # of a picture; JPEG has no larger ones
MAX_TEXT = 1_000_000  # characters; 256 classes with long names take 20,000


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
        size = f'None or two numbers from 1 to {MAX_SIDE}'
        checks = dict(
            classes=(2 <= number <= 256 and all(isinstance(name, str) for name in self.classes),
                     '2 to 256 names'),
            palette=(_is_palette(self.palette, number),
                     f'three numbers from 0 to 255 for each of {number} classes'),
            scale=(_is_size(self.scale), size),
            size=(_is_size(self.size), size),
            keep_ratio=(isinstance(self.keep_ratio, bool), 'true or false'),
            align_corners=(isinstance(self.align_corners, bool), 'true or false'),
            precision=(self.precision in ('fp32', 'bf16', 'int8'), 'fp32, bf16 or int8'),
            config=(isinstance(self.config, str | None), 'a name or None'),
            checkpoint=(isinstance(self.checkpoint, str | None), 'a name or None'),
            sha256=(isinstance(self.sha256, str | None), 'a checksum or None'))
        for name, (good, expected) in checks.items():
            if not good:
                raise ValueError(
                    f'{name} is {str(getattr(self, name))[:80]}, expected {expected}')

    def to_json(self) -> str:
        """As text for a file."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | None) -> Self:
        """Back from the text that a file held.

        Raises:
            ValueError: If that is nothing which this package wrote.
        """
        advice = 'It was not written by tools/export.py of this version. Export the network anew'
        try:
            if text is None or len(text) > MAX_TEXT:
                raise ValueError('nothing' if text is None else f'{len(text)} characters')
            values = json.loads(text)
            if not isinstance(values, dict):
                raise ValueError('no table of names and values')
            values = {'format_version': FORMAT_VERSION, **values}
            if values['format_version'] != FORMAT_VERSION:
                advice = 'Use the version of this package that wrote it, or export it anew'
                raise ValueError(f'format version {str(values["format_version"])[:20]}, this '
                                 f'package reads {FORMAT_VERSION}')
            known = {field.name for field in dataclasses.fields(cls)}
            if values.keys() != known:
                raise ValueError(f'other names than expected: {sorted(values.keys() ^ known)[:5]}')
            return cls(**{name: _tuples(value) for name, value in values.items()})
        except (ValueError, RecursionError) as error:
            raise ValueError(f'it does not say what it holds ({error}). {advice}') from error

    @classmethod
    def from_model(cls, model: EncoderDecoder,
                   checkpoint: str | os.PathLike | None = None) -> Self:
        """That of a model which ``mmseg.apis.init_model`` returned.

        Args:
            model: With its config.
            checkpoint: The file that its weights came from.

        Raises:
            ValueError: If the test pipeline changes pictures in a way that has no name here.
        """
        number = model.decode_head.num_classes
        meta = next(
            (meta for meta in _metas(model) if len(meta.get('classes') or ()) == number), {})
        classes = tuple(meta.get('classes') or (f'class {i}' for i in range(number)))
        palette = meta.get('palette') or ()
        if len(palette) != number:
            palette = default_palette(number)
        resize = _resize_step(_test_pipeline(model.cfg))
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


def _is_size(value: Any) -> bool:
    return value is None or (isinstance(value, tuple) and len(value) == 2 and all(
        type(side) is int and 1 <= side <= MAX_SIDE for side in value))


def _is_palette(value: Any, number: int) -> bool:
    return isinstance(value, tuple) and len(value) == number and all(
        isinstance(colour, tuple) and len(colour) == 3
        and all(type(part) is int and 0 <= part <= 255 for part in colour) for colour in value)


def _test_dataset(cfg: Config) -> dict:
    """The data set that `mim test` reads, without what is wrapped around it."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'pipeline' not in dataset and isinstance(dataset.get('dataset'), dict):
        dataset = dataset['dataset']
    return dataset


def _test_pipeline(cfg: Config) -> list[dict]:
    """The steps that `mim test` takes; ``test_pipeline`` is only a name which configs give them."""
    dataset = _test_dataset(cfg)
    return dataset['pipeline'] if 'pipeline' in dataset else cfg.get('test_pipeline', [])


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


def _metas(model: EncoderDecoder) -> Iterator[dict]:
    """What the checkpoint says of the classes, then the config, then the data set's own."""
    yield getattr(model, 'dataset_meta', None) or {}
    dataset = _test_dataset(model.cfg)
    yield dataset.get('metainfo') or {}
    yield getattr(DATASETS.get(dataset['type']), 'METAINFO', {}) if 'type' in dataset else {}


def default_palette(number: int) -> list[list[int]]:
    """Colours for classes that have none: well apart in hue, alternating in brightness, RGB."""
    hsv = np.array([[[180 * i / number, 200, 255 - 90 * (i % 2)] for i in range(number)]], np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0].tolist()
