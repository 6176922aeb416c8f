"""MMSegmentation's data sets, checked: what is wrong is said with the file and the remedy."""
import os.path as osp

from mmseg_bisenetv2.registry import DATASETS

from mmseg.datasets import BaseSegDataset as MMSegBaseSegDataset
from mmseg.datasets import CityscapesDataset as MMSegCityscapesDataset
from mmseg.datasets import COCOStuffDataset as MMSegCOCOStuffDataset


class Checked:
    """Mixed into a data set of MMSegmentation: its folders exist and its labels are classes.

    A class id outside the classes would otherwise end as a loss of NaN, as an assertion on the
    GPU that names no file, or in a mIoU that silently leaves those pixels out.
    """

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
        if not data_list:
            raise FileNotFoundError(
                f'{type(self).__name__}: no image *{self.img_suffix} below '
                f'{osp.abspath(self.data_prefix["img_path"])}. {self.remedy}')
        return data_list

    def prepare_data(self, idx):
        """Loads and transforms image ``idx``, then checks the label map that came of it.

        Raises:
            ValueError: If the map holds an id that is neither a class nor ``ignore_index``.
        """
        data = super().prepare_data(idx)
        for sample in _samples(data):
            if 'gt_sem_seg' not in sample:
                continue
            label = sample.gt_sem_seg.data
            num_classes = len(self.metainfo['classes'])
            outside = label[(label >= num_classes) & (label != self.ignore_index)]
            if outside.numel():
                raise ValueError(
                    f'{sample.seg_map_path}: class ids {outside.unique().tolist()}, but there are '
                    f'{num_classes} classes (0 to {num_classes - 1}; {self.ignore_index} is '
                    f'ignored). {self.label_remedy}')
        return data


def _samples(data):
    """The data samples of one packed result; test-time augmentation packs a list of them."""
    samples = data['data_samples'] if data else []
    return samples if isinstance(samples, list) else [samples]


@DATASETS.register_module()
class BaseSegDataset(Checked, MMSegBaseSegDataset):
    """Folders of images and label maps, checked; drop-in for MMSegmentation's."""


@DATASETS.register_module()
class CityscapesDataset(Checked, MMSegCityscapesDataset):
    """Cityscapes, checked; drop-in for MMSegmentation's."""

    remedy = (
        'Unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of cityscapes-dataset.com '
        'into data/cityscapes, then make the label maps: pip install cityscapesscripts && mim run '
        'mmseg cityscapes data/cityscapes. For synthetic scenes in the same layout: '
        'python tools/make_toy_cityscapes.py data/cityscapes')
    label_remedy = (
        'Training needs *_gtFine_labelTrainIds.png (19 classes), not *_gtFine_labelIds.png (34). '
        'Make them: pip install cityscapesscripts && mim run mmseg cityscapes data/cityscapes')


@DATASETS.register_module()
class COCOStuffDataset(Checked, MMSegCOCOStuffDataset):
    """COCO-Stuff, checked; drop-in for MMSegmentation's."""

    remedy = (
        'Unpack cocostuff-10k-v1.1.zip (github.com/nightrome/cocostuff10k), then: '
        'mim run mmseg coco_stuff10k PATH_OF_IT -o data/coco_stuff10k')
