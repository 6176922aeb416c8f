"""MMSegmentation's data sets, validated: what is wrong is said with the file and the remedy."""
import functools
import logging
import os.path as osp
from collections.abc import Iterator
from typing import Any

import numpy as np
from mmengine.logging import print_log

from mmseg_bisenetv2.datasets import checks
from mmseg_bisenetv2.datasets.cache import find_cached
from mmseg_bisenetv2.datasets.transforms import LoadAnnotations, LoadImageFromFile
from mmseg_bisenetv2.registry import DATASETS

from mmseg.datasets import BaseSegDataset as MMSegBaseSegDataset
from mmseg.datasets import CityscapesDataset as MMSegCityscapesDataset
from mmseg.datasets import COCOStuffDataset as MMSegCOCOStuffDataset

# For each file of an image, the key under which the loaders look for its decoded copy.
CACHE_KEYS = dict(img_path='img_cache', seg_map_path='seg_map_cache')
# When a run starts: half a second for pictures of 1024x2048, and two for 200 maps of 720x1280.
NUM_PAIRS_LOADED = 8
MAX_MAPS_LOADED = 200


class ValidatedDataset(MMSegBaseSegDataset):
    """Base of this package's data sets: folders exist, and label maps hold class ids.

    A class id outside the classes would otherwise end as a loss of NaN, as an assertion on the
    GPU that names no file, or in a mIoU that silently leaves those pixels out. Where
    ``tools/cache_dataset.py`` made a decoded copy, this package's loaders get it.
    """

    cached: dict[str, tuple] | None = None  # For each file, its raw pixels and their shape.
    remedy = 'Set data_root to the folder that holds it.'
    label_remedy = 'Class ids must run from 0 to the number of classes - 1; 255 is ignored.'

    @property
    def metainfo(self) -> dict:
        """MMSegmentation's, and the ``ignore_index``, which the metric compares with its own."""
        return dict(super().metainfo, ignore_index=self.ignore_index, label_map=self.label_map)

    def load_data_list(self) -> list[dict]:
        """Lists the images and their label maps.

        Raises:
            FileNotFoundError: If a local folder is missing or holds no image.
            ValueError: If ``classes`` is a string that is not the path of a file.
        """
        name, classes = type(self).__name__, self.metainfo.get('classes')
        if isinstance(classes, str):
            raise ValueError(f'{name}: classes is {classes!r}, and there is no such file. Expected '
                             'a list of names, or a text file with a name in each line')
        for folder in self.data_prefix.values():
            if folder and checks.is_local(self, folder) and not osp.isdir(folder):
                hint = checks.suggest_conversion(checks.list_local(self, 'img_path'))
                raise FileNotFoundError(
                    f'{name}: no folder {osp.abspath(folder)}. {self.remedy.rstrip(".")}{hint}')
        # MMSegmentation's tools read METAINFO, which lacks the classes that a config gives.
        self.METAINFO = self.metainfo
        data_list = super().load_data_list()
        folder = self.data_prefix['img_path']
        if checks.is_local(self, folder):
            folder = osp.abspath(folder)
        print_log(f'{name}: {len(data_list)} images *{self.img_suffix} in {folder}',
                  logger='current')
        if not data_list:
            found = sorted({osp.splitext(file)[1] for file in checks.list_local(self, 'img_path')})
            raise FileNotFoundError(
                f'{name}: no image *{self.img_suffix} below {folder}; there is '
                + (f'{", ".join(found)}: set img_suffix.' if found else f'nothing. {self.remedy}'))
        return data_list

    def full_init(self) -> None:
        """Lists the files, loads a few of them, and looks for decoded copies.

        Raises:
            CacheError: If the decoded cache is not up to date.
            FileNotFoundError: If a label map is missing.
            ValueError: If the classes are not those of ``data_root/classes.txt``, or if one of the
                files that were loaded cannot be used.
        """
        super().full_init()  # Does nothing if it was called before.
        if self.cached is None:
            if other := checks.describe_other_classes(self):
                raise ValueError(f'{type(self).__name__}: {other}')
            infos = [self.get_data_info(i) for i in range(len(self))]
            self.cached = self._find_cached(infos)
            self._check_files(infos)

    def _find_cached(self, infos: list[dict]) -> dict[str, tuple]:
        loaders = (LoadImageFromFile, LoadAnnotations)
        if not self.data_root or not any(isinstance(t, loaders) for t in self.pipeline.transforms):
            return {}
        cached = find_cached(
            self.data_root, [info[key] for info in infos for key in CACHE_KEYS if key in info])
        if cached:
            print_log(f'{type(self).__name__}: reads the decoded cache of '
                      f'{osp.abspath(self.data_root)}', logger='current')
        return cached

    def _check_files(self, infos: list[dict]) -> None:
        """Looks for all label maps, and loads a few pairs; all maps if they are not many."""
        name = type(self).__name__
        if missing := checks.find_missing_maps(self, infos):
            text = checks.explain_missing_maps(self, missing, len(infos))
            raise FileNotFoundError(f'{name}: {text}')
        if left_out := checks.describe_left_out(self, infos):
            print_log(f'{name}: {left_out}', logger='current', level=logging.WARNING)
        seen: set[int] = set()
        pairs = range(0, len(infos), max(1, len(infos) // NUM_PAIRS_LOADED))[:NUM_PAIRS_LOADED]
        looked_at = range(len(infos)) if len(infos) <= MAX_MAPS_LOADED else pairs
        for i in looked_at:
            pair = checks.load_pair(self, self.get_data_info(i), with_picture=i in pairs)
            labels = pair.get('gt_seg_map')
            if labels is not None:
                size = pair['img'].shape[:2] if 'img' in pair else labels.shape[-2:]
                self._check_labels(labels, [size], pair['seg_map_path'])
                seen.update(np.unique(labels).tolist())
        said = ''
        if checks.is_binary_mask(seen, self):
            said = f'{checks.ONLY_0_AND_255} ({len(looked_at)} looked at)'
        elif seen and len(looked_at) == len(infos) and (absent := checks.describe_absent(
                self.metainfo.get('classes') or (), seen)):
            said = (f'{absent}. From these {len(infos)} label maps a network cannot learn them; '
                    f'{checks.ABSENT_IN_MIOU}')
        if said:
            print_log(f'{name}: {said}. The first is {infos[0]["seg_map_path"]}',
                      logger='current', level=logging.WARNING)

    def get_data_info(self, idx: int) -> dict:
        """Returns what is known of image ``idx``: its paths, and those of its decoded copies."""
        info = super().get_data_info(idx)
        cached = self.cached or {}
        for key, cache_key in CACHE_KEYS.items():
            if info.get(key) in cached:
                info[cache_key] = cached[info[key]]
        return info

    def prepare_data(self, idx: int) -> Any:
        """Loads and transforms image ``idx``, then checks the label maps that came of it.

        Whatever error this ends with carries the names of the files.

        Raises:
            ValueError: If the map has several channels, is of another size than the image, or
                holds an id that is neither a class nor ``ignore_index``.
        """
        try:
            data = super().prepare_data(idx)
        except Exception as error:
            error.add_note(checks.describe_pair(self.get_data_info(idx)))
            raise
        for label, sizes in _label_maps(data):
            self._check_labels(label, sizes, self.get_data_info(idx).get('seg_map_path'))
        return data

    def _check_labels(self, label: np.ndarray, sizes: list[tuple], path: str | None) -> None:
        """Checks a label map, (1, H, W) or (H, W), whose size should be one of ``sizes``."""
        if label.ndim not in (2, 3) or (label.ndim == 3 and len(label) != 1):
            raise ValueError(f'{path}: a picture of several channels where each pixel should '
                             'hold a class id. Convert its colours to class ids')
        if label.shape[-2:] not in sizes:
            raise ValueError(f'{path}: a map of {label.shape[-2:]} for an image of {sizes[-1]}. '
                             'Expected the size of the image')
        classes = self.metainfo.get('classes')
        if classes is None:
            return
        outside = (label >= len(classes)) & (label != self.ignore_index)
        if outside.any():
            raise ValueError(
                f'{path}: class ids {np.unique(label[outside]).tolist()}, but there are '
                f'{len(classes)} classes (0 to {len(classes) - 1}; {self.ignore_index} is '
                f'ignored). {self.label_remedy}')


def _label_maps(data: Any) -> Iterator[tuple[np.ndarray, list[tuple]]]:
    """Yields the label maps that a pipeline gave, and the sizes that each may have.

    Training resizes image and map; testing leaves the map at the size of the image file.

    Args:
        data: Packed, as lists by test-time augmentation, or not packed, as
            ``MultiImageMixDataset`` wants it.
    """
    if not isinstance(data, dict):
        return
    if 'inputs' in data and 'data_samples' in data:
        images, samples = data['inputs'], data['data_samples']
        if not isinstance(samples, list):
            images, samples = [images], [samples]
        for image, sample in zip(images, samples, strict=True):
            if 'gt_sem_seg' in sample:
                sizes = [tuple(image.shape[-2:]), tuple(sample.get('ori_shape', ()))]
                # NumPy compares uint8 with -100 as what it is, PyTorch with 156.
                yield sample.gt_sem_seg.data.numpy(), sizes
    elif isinstance(data.get('gt_seg_map'), np.ndarray) and 'img' in data:
        yield data['gt_seg_map'], [data['img'].shape[:2], tuple(data.get('ori_shape', ()))]


@DATASETS.register_module()
class BaseSegDataset(ValidatedDataset):
    """Folders of images and label maps, validated; drop-in for MMSegmentation's.

    Args:
        label_map: For label maps of other ids, the class of each id: ``{7: 0, 26: 1}``. Ids that it
            does not name are ignored. The other arguments are MMSegmentation's.
    """

    @functools.wraps(MMSegBaseSegDataset.__init__)  # type: ignore[misc] # For its signature.
    def __init__(self, *args: Any, label_map: dict[int, int] | None = None, **kwargs: Any) -> None:
        self.class_of_id = label_map  # Before super() lists the files.
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Lists the images and their label maps.

        Raises:
            FileNotFoundError: If a local folder is missing or holds no image.
            ValueError: If ``label_map`` does not lead from ids to all classes, or if ``classes`` is
                a string that is not the path of a file.
        """
        if self.class_of_id is not None:
            self.label_map = self._complete(self.class_of_id)
        return super().load_data_list()

    def _complete(self, class_of_id: dict[int, int]) -> dict[int, int]:
        """Returns the new id of each id that changes."""
        classes = self.metainfo.get('classes') or ()
        ignored: int = self.ignore_index
        if self.reduce_zero_label or ignored not in range(256):
            raise ValueError('label_map goes neither with reduce_zero_label=True nor with an '
                             'ignore_index beyond 0 to 255. Found '
                             f'{self.reduce_zero_label} and {ignored}')
        for old, new in class_of_id.items():
            if old not in range(256) or (new not in range(len(classes)) and new != ignored):
                raise ValueError(f'label_map: {old!r} becomes {new!r}. Expected an id of 0 to 255, '
                                 f'and a class of 0 to {len(classes) - 1} or {ignored}, ignored')
        if missing := [name for i, name in enumerate(classes) if i not in class_of_id.values()]:
            raise ValueError(f'label_map={class_of_id}: no id becomes {", ".join(missing)}. Name '
                             'the ids of all classes')
        table = {old: class_of_id.get(old, ignored) for old in range(256)}
        return {old: new for old, new in table.items() if old != new}


@DATASETS.register_module()
class CityscapesDataset(ValidatedDataset, MMSegCityscapesDataset):
    """Cityscapes, validated; drop-in for MMSegmentation's."""

    remedy = (
        'Unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of cityscapes-dataset.com '
        'into data/cityscapes, then make the label maps: pip install cityscapesscripts && mim run '
        'mmseg cityscapes data/cityscapes. Or try configs/bisenetv2_fcn_toy-cityscapes.py, whose '
        'data tools/make_toy_cityscapes.py makes.')
    label_remedy = (
        'Training needs *_gtFine_labelTrainIds.png (19 classes), not *_gtFine_labelIds.png (34). '
        'Make them: pip install cityscapesscripts && mim run mmseg cityscapes data/cityscapes')


@DATASETS.register_module()
class COCOStuffDataset(ValidatedDataset, MMSegCOCOStuffDataset):
    """COCO-Stuff, validated; drop-in for MMSegmentation's."""

    remedy = (
        'Unpack cocostuff-10k-v1.1.zip (github.com/nightrome/cocostuff10k), then: '
        'mim run mmseg coco_stuff10k PATH_OF_IT -o data/coco_stuff10k')
