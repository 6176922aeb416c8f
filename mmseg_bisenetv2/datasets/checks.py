"""What can be wrong with the files of a data set, each in a sentence that names file and remedy.

:mod:`validated` looks for it when a run starts, :mod:`inspection` for ``tools/check_dataset.py``.
"""
import os.path as osp
from collections import Counter
from collections.abc import Container, Sequence

import mmengine.fileio as fileio
from mmcv.transforms import LoadAnnotations, LoadImageFromFile

from mmseg_bisenetv2.datasets.class_names import CLASSES_FILE, read_class_names

from mmseg.datasets import BaseSegDataset

LOSSLESS = ('.png', '.bmp', '.gif', '.tif', '.tiff', '.webp')  # Suffixes of label maps.
CONVERT = 'python tools/convert_labels.py'
ONLY_0_AND_255 = ('the label maps hold only 0 and 255, and 255 is ignored. If 255 marks a class, '
                  f'write 1 in its place: {CONVERT}')
ABSENT_IN_MIOU = 'mIoU leaves them out, or counts 0 as soon as they are predicted'


def load_pair(dataset: BaseSegDataset, info: dict, with_picture: bool = True) -> dict:
    """Applies only the loaders of the pipeline, and nothing random, to what ``info`` names."""
    loaders = (LoadImageFromFile, LoadAnnotations) if with_picture else LoadAnnotations
    results = info
    try:
        for transform in dataset.pipeline.transforms:
            if isinstance(transform, loaders):
                results = transform(results)
    except Exception as error:
        error.add_note(describe_pair(info))
        raise
    return results


def describe_pair(info: dict) -> str:
    """Names the files of a picture, for the note of an error."""
    return f'Image {info["img_path"]}, label map {info.get("seg_map_path")}'


def is_local(dataset: BaseSegDataset, path: str) -> bool:
    """Whether the data set's storage looks for a path on a disk of this machine."""
    return isinstance(fileio.get_file_backend(path, backend_args=dataset.backend_args),
                      fileio.LocalBackend)


def list_local(dataset: BaseSegDataset, key: str) -> list[str]:
    """Lists a folder of the data set and those below it; empty if it is not on this machine."""
    folder = dataset.data_prefix.get(key) or ''
    if not is_local(dataset, folder) or not osp.isdir(folder):
        return []
    files = fileio.list_dir_or_file(folder, list_dir=False, recursive=True)
    return [osp.join(folder, file) for file in files]


def find_missing_maps(dataset: BaseSegDataset, infos: Sequence[dict]) -> list[dict]:
    """Returns the pictures without label map, if the pipeline loads label maps from a disk."""
    if not is_local(dataset, dataset.data_prefix.get('seg_map_path') or '') or not any(
            isinstance(transform, LoadAnnotations) for transform in dataset.pipeline.transforms):
        return []
    listed = set(list_local(dataset, 'seg_map_path'))  # Faster than a question for each file.
    return [info for info in infos if 'seg_map_path' in info and info['seg_map_path'] not in listed
            and not osp.isfile(info['seg_map_path'])]


def explain_missing_maps(dataset: BaseSegDataset, missing: Sequence[dict], total: int) -> str:
    """Says how many label maps are missing, names the first, and what is there in its place."""
    picture, path = (osp.abspath(missing[0][key]) for key in ('img_path', 'seg_map_path'))
    text = f'{len(missing)} of {total} pictures have no label map: {picture} needs {path}'
    if type(dataset).METAINFO.get('classes'):  # A published data set, which has a way of its own.
        return f'{text}. {getattr(dataset, "remedy", "")}'
    stem = osp.basename(path).removesuffix(dataset.seg_map_suffix)
    files = list_local(dataset, 'seg_map_path')
    for name in map(osp.basename, files):
        rest = name.removeprefix(stem)  # Such as '_mask.png'.
        if name.startswith(stem) and not rest[:1].isalnum() and rest.lower().endswith(LOSSLESS):
            return f'{text}. There is {name}: seg_map_suffix={rest!r}?'
    return text + suggest_conversion(files + list_local(dataset, 'img_path'))


def suggest_conversion(files: Sequence[str]) -> str:
    """Ends a sentence with how to make label maps of JSON files; empty if there are none."""
    found = next((file for file in files if file.endswith('.json')), None)
    return f'. There is {osp.abspath(found)}: LabelMe or COCO? {CONVERT}' if found else ''


def describe_left_out(dataset: BaseSegDataset, infos: Sequence[dict]) -> str:
    """Says how many files of the image folder are no images to the data set; empty if all are."""
    if dataset.ann_file:
        return ''
    maps = {info.get('seg_map_path') for info in infos}
    found = Counter(osp.splitext(file)[1] or 'without' for file in list_local(dataset, 'img_path')
                    if not file.endswith(dataset.img_suffix) and file not in maps)
    listed = ', '.join(f'{number} {suffix}' for suffix, number in found.most_common())
    return listed and f'files with other suffixes than {dataset.img_suffix} are left out: {listed}'


def describe_other_classes(dataset: BaseSegDataset) -> str:
    """Says that ``classes.txt`` beside the label maps has other classes; empty if it has not.

    Nothing is compared with a ``label_map``, which names the ids itself, nor for a published data
    set, whose class says what they are.
    """
    if type(dataset).METAINFO.get('classes'):
        return ''
    classes = list(dataset.metainfo.get('classes') or ())
    file = osp.abspath(osp.join(dataset.data_root or '', CLASSES_FILE))
    if not classes or not dataset.data_root or dataset.label_map or not osp.isfile(file):
        return ''
    written = read_class_names(file)
    if dataset.reduce_zero_label:  # The id 0 is ignored, and 1 becomes the first class.
        del written[:1]
    if classes == written:
        return ''
    return (f'the config has the classes {classes}, but the label maps have {written} in the order '
            f'of their ids, says {file}. Write these into the config (python tools/new_config.py '
            'makes a new one), or, to rename a class, change that file')


def is_binary_mask(ids: set[int], *datasets: BaseSegDataset) -> bool:
    """Whether label maps look like masks of 0 and 255, of which 255 would be ignored.

    A network that predicts class 0 everywhere then has a mIoU of 100.
    """
    return 255 in ids and ids <= {0, 255} and all(
        dataset.ignore_index == 255 and len(dataset.metainfo.get('classes') or ()) > 1
        and not dataset.reduce_zero_label and not dataset.label_map for dataset in datasets)


def describe_absent(classes: Sequence[str], ids: Container[int]) -> str:
    """Says which classes are not among the ids that label maps hold; empty if all are."""
    absent = [name for i, name in enumerate(classes) if i not in ids]
    return (f'no pixel of {len(absent)} of {len(classes)} classes: {", ".join(absent)}'
            if absent else '')
