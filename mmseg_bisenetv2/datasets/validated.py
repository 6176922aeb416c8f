"""MMSegmentation's data sets, checked: what is wrong is said with the file and the remedy."""
import os
import os.path as osp

import numpy as np
from mmengine.logging import print_log

from mmseg_bisenetv2.datasets.cache import find_cached
from mmseg_bisenetv2.datasets.transforms import LoadAnnotations, LoadImageFromFile
from mmseg_bisenetv2.registry import DATASETS

from mmseg.datasets import BaseSegDataset as MMSegBaseSegDataset
from mmseg.datasets import CityscapesDataset as MMSegCityscapesDataset
from mmseg.datasets import COCOStuffDataset as MMSegCOCOStuffDataset

CACHED = dict(img_path='img_cache', seg_map_path='seg_map_cache')  # what the loaders look for


class ValidatedDataset:
    """Mixed into a data set of MMSegmentation: its folders exist and its labels are classes.

    A class id outside the classes would otherwise end as a loss of NaN, as an assertion on the
    GPU that names no file, or in a mIoU that silently leaves those pixels out. Where
    ``tools/cache_dataset.py`` made a decoded copy, this package's loaders get it.
    """

    cached = {}  # for each file its pixels' file and shape
    remedy = 'Set data_root to the folder that holds it.'
    label_remedy = 'Class ids must run from 0 to the number of classes - 1; 255 is ignored.'

    def load_data_list(self):
        """Lists the images and their label maps.

        Raises:
            FileNotFoundError: If a folder is missing or holds no image.
        """
        for folder in self.data_prefix.values():
            if folder and '://' not in folder and not osp.isdir(folder):
                raise FileNotFoundError(
                    f'{type(self).__name__}: no folder {osp.abspath(folder)}. {self.remedy}')
        data_list = super().load_data_list()
        folder = osp.abspath(self.data_prefix['img_path'])
        print_log(f'{type(self).__name__}: {len(data_list)} images *{self.img_suffix} in {folder}',
                  logger='current')
        if not data_list:
            found = sorted({osp.splitext(name)[1] for _, _, names in os.walk(folder)
                            for name in names})
            raise FileNotFoundError(
                f'{type(self).__name__}: no image *{self.img_suffix} below {folder}; there is '
                + (f'{", ".join(found)}: set img_suffix.' if found else f'nothing. {self.remedy}'))
        return data_list

    def full_init(self):
        """Lists the files and looks for their decoded copies.

        Raises:
            CacheError: If the decoded cache is not up to date.
        """
        if self._fully_initialized:
            return
        super().full_init()
        loaders = (LoadImageFromFile, LoadAnnotations)
        if self.data_root and any(isinstance(t, loaders) for t in self.pipeline.transforms):
            infos = [self.get_data_info(i) for i in range(len(self))]
            paths = [info[key] for info in infos for key in CACHED if key in info]
            self.cached = find_cached(self.data_root, paths)
            if self.cached:
                print_log(f'{type(self).__name__}: reads the decoded cache of '
                          f'{osp.abspath(self.data_root)}', logger='current')

    def get_data_info(self, idx):
        """What is known of image ``idx``: its paths, and those of its decoded copies."""
        info = super().get_data_info(idx)
        for key, cache_key in CACHED.items():
            if info.get(key) in self.cached:
                info[cache_key] = self.cached[info[key]]
        return info

    def prepare_data(self, idx):
        """Loads and transforms image ``idx``, then checks the label map that came of it.

        Whatever error this ends with carries the names of the files.

        Raises:
            ValueError: If the map has several channels, is of another size than the image, or
                holds an id that is neither a class nor ``ignore_index``.
        """
        try:
            data = super().prepare_data(idx)
        except Exception as error:
            info = self.get_data_info(idx)
            error.add_note(f'Image {info["img_path"]}, label map {info.get("seg_map_path")}')
            raise
        num_classes = len(self.metainfo['classes'])
        for image, sample in _pairs(data):
            if 'gt_sem_seg' not in sample:
                continue
            label = sample.gt_sem_seg.data
            path = self.get_data_info(idx)['seg_map_path']
            # Training resizes both; testing leaves the map at the size of the image file
            sizes = [tuple(image.shape[-2:]), tuple(sample.get('ori_shape', ()))]
            if label.ndim != 3 or len(label) != 1:
                raise ValueError(f'{path}: a picture of several channels where each pixel should '
                                 'hold a class id. Convert its colours to class ids')
            if tuple(label.shape[1:]) not in sizes:
                raise ValueError(f'{path}: a map of {tuple(label.shape[1:])} for an image of '
                                 f'{sizes[-1]}. Expected the size of the image')
            label = label.numpy()  # compares uint8 with -100 as what it is; PyTorch with 156
            outside = (label >= num_classes) & (label != self.ignore_index)
            if outside.any():
                raise ValueError(
                    f'{path}: class ids {np.unique(label[outside]).tolist()}, but there are '
                    f'{num_classes} classes (0 to {num_classes - 1}; {self.ignore_index} is '
                    f'ignored). {self.label_remedy}')
        return data


def _pairs(data):
    """The (image, sample) pairs of a packed result; test-time augmentation packs lists of them."""
    if not data:
        return []
    images, samples = data['inputs'], data['data_samples']
    return zip(images, samples, strict=True) if isinstance(samples, list) else [(images, samples)]


@DATASETS.register_module()
class BaseSegDataset(ValidatedDataset, MMSegBaseSegDataset):
    """Folders of images and label maps, checked; drop-in for MMSegmentation's."""


@DATASETS.register_module()
class CityscapesDataset(ValidatedDataset, MMSegCityscapesDataset):
    """Cityscapes, checked; drop-in for MMSegmentation's."""

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
    """COCO-Stuff, checked; drop-in for MMSegmentation's."""

    remedy = (
        'Unpack cocostuff-10k-v1.1.zip (github.com/nightrome/cocostuff10k), then: '
        'mim run mmseg coco_stuff10k PATH_OF_IT -o data/coco_stuff10k')
