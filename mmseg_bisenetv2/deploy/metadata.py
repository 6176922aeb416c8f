"""What a deployed network says of itself, inside every exported file."""
import dataclasses
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
from mmcv import rescale_size

from mmseg.registry import DATASETS

KEY = 'mmseg_bisenetv2'  # of the metadata in an ONNX file and in an OpenVINO IR
FILE = 'mmseg_bisenetv2.json'  # in a torch.export archive


@dataclasses.dataclass(frozen=True)
class ExportMetadata:
    """Classes, sizes and origin of a network.

    Attributes:
        classes: Their names.
        palette: Their colours, RGB.
        scale: (width, height) that images are resized to before the network, as MMSegmentation's
            ``Resize`` understands it; None where they are taken as they are.
        keep_ratio: Whether that keeps the ratio of width to height.
        size: (height, width) of the only frames that a file takes, one at a time; None: any.
        align_corners: How the logits are resized.
        precision: What a file was made for: 'fp32', 'bf16', or 'int8' where it was quantised.
        config: Name of the config.
        checkpoint: Name of the checkpoint, None for random weights.
        sha256: Of the checkpoint file.
    """

    classes: tuple
    palette: tuple
    scale: tuple | None = None
    keep_ratio: bool = True
    size: tuple | None = None
    align_corners: bool = False
    precision: str = 'fp32'
    config: str | None = None
    checkpoint: str | None = None
    sha256: str | None = None

    def to_json(self):
        """As text for a file."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text, path):
        """Back from the text that ``path`` held.

        Raises:
            ValueError: If that is nothing which this package wrote.
        """
        try:
            values = json.loads(text)
            for name in ('classes', 'scale', 'size'):
                values[name] = values[name] and tuple(values[name])
            values['palette'] = tuple(map(tuple, values['palette']))
            return cls(**values)
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f'{path} does not say what it holds: it was not written by '
                             'tools/export.py of this version. Export the network anew') from error

    @classmethod
    def of(cls, model, checkpoint=None):
        """That of a model which ``mmseg.apis.init_model`` returned.

        Args:
            model (EncoderDecoder): With its config.
            checkpoint (str, optional): The file that its weights came from.
        """
        number = model.decode_head.num_classes
        meta = next(
            (meta for meta in _metas(model) if len(meta.get('classes') or ()) == number), {})
        classes = tuple(meta.get('classes') or (f'class {i}' for i in range(number)))
        palette = meta.get('palette') or default_palette(number)
        resize = _resize(model.cfg.get('test_pipeline', []))
        path = Path(checkpoint) if checkpoint else None
        local = path is not None and path.is_file()
        return cls(
            classes, tuple(tuple(int(value) for value in colour) for colour in palette),
            scale=tuple(resize['scale']) if resize else None,
            keep_ratio=bool(resize.get('keep_ratio', False)) if resize else True,
            align_corners=model.align_corners,
            config=Path(model.cfg.filename).name if model.cfg.filename else None,
            checkpoint=path.name if path else None,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest() if local else None)

    def network_size(self, height, width):
        """(height, width) at which the network sees an image of that size."""
        if self.size:
            return self.size
        if self.scale is None:
            return height, width
        if not self.keep_ratio:
            return self.scale[1], self.scale[0]
        width, height = rescale_size((width, height), self.scale)
        return max(1, height), max(1, width)


def _resize(pipeline):
    """The only step of a test pipeline that changes sizes, if there is one."""
    found = None
    for step in pipeline:
        name = step['type'].split('.')[-1]
        if name == 'Resize' and found is None and 'scale' in step and not (
                step.keys() - {'type', 'scale', 'keep_ratio', '_scope_'}):
            side = step['scale']
            found = dict(step, scale=(side, side) if isinstance(side, int) else side)
        elif not name.startswith(('Load', 'Pack')):
            raise ValueError(f'test_pipeline has {dict(step)}: expected one Resize to a scale, and '
                             'nothing else that changes the picture')
    return found


def _metas(model):
    """What the checkpoint says of the classes, then the config, then the data set's own."""
    yield getattr(model, 'dataset_meta', None) or {}
    dataset = model.cfg.get('test_dataloader', {}).get('dataset', {})
    yield dataset.get('metainfo') or {}
    yield getattr(DATASETS.get(dataset['type']), 'METAINFO', {}) if 'type' in dataset else {}


def default_palette(number):
    """Colours for classes that have none: well apart in hue, alternating in brightness, RGB."""
    hsv = np.array([[[180 * i / number, 200, 255 - 90 * (i % 2)] for i in range(number)]], np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0].tolist()
