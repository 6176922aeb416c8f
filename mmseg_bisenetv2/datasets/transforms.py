"""MMSegmentation's training pipeline, faster, with equal results and errors that name the file.

    LoadImageFromFile, LoadAnnotations       refuse what is broken; read the decoded cache
    RandomResize, RandomCrop, RandomFlip  -> RandomResizeCrop: resizes what the crop keeps
    PhotoMetricDistortion                    through look-up tables
    PackSegInputs                            labels stay uint8

Under the same seed each draws the same numbers as MMSegmentation's and gives the same pixels,
bit for bit. Where an option or an input asks for what ours does not do, the original does it.
"""
from typing import Any

import cv2
import mmengine.fileio as fileio
import numpy as np
import torch
from mmcv.image.geometric import rescale_size
from mmcv.transforms import BaseTransform
from mmcv.transforms import LoadImageFromFile as MMCVLoadImageFromFile
from mmengine.structures import PixelData

from mmseg_bisenetv2.datasets.cache import map_pixels
from mmseg_bisenetv2.decoding import decode_image, decode_labels, read_exif_orientation
from mmseg_bisenetv2.registry import TRANSFORMS

from mmseg.datasets.transforms import LoadAnnotations as MMSegLoadAnnotations
from mmseg.datasets.transforms import PackSegInputs as MMSegPackSegInputs
from mmseg.datasets.transforms import PhotoMetricDistortion as MMSegPhotoMetricDistortion

Results = dict[str, Any]  # What a transform takes and gives, as MMCV defines it.
Crop = tuple[slice, slice]  # Rows and columns.

LEVELS = np.arange(256, dtype=np.uint8)


@TRANSFORMS.register_module()
class LoadImageFromFile(MMCVLoadImageFromFile):
    """Drop-in for MMCV's: loads uint8 BGR, from the decoded cache where the data set has one.

    Broken files are refused by name. With options that ask for anything else, it is MMCV's.
    """

    def transform(self, results: Results) -> Results | None:
        """Reads ``img_path``, adds ``img``, ``img_shape`` and ``ori_shape``.

        Raises:
            ValueError: See :func:`decode_image`.
        """
        if (self.to_float32 or self.ignore_empty or self.file_client_args is not None
                or (self.color_type, self.imdecode_backend) != ('color', 'cv2')):
            return super().transform(results)
        path = results['img_path']
        if 'img_cache' in results:
            image = map_pixels(*results['img_cache'])
        else:
            image = decode_image(fileio.get(path, backend_args=self.backend_args), path)
        results.update(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
        return results


@TRANSFORMS.register_module()
class LoadAnnotations(MMSegLoadAnnotations):
    """Drop-in for MMSegmentation's: loads uint8, from the decoded cache where there is one.

    Broken maps and maps of another size are refused by name. With an ``imdecode_backend`` other
    than Pillow, it is MMSegmentation's.
    """

    def transform(self, results: Results) -> Results:
        """Reads ``seg_map_path``, adds ``gt_seg_map``, as the data set renumbers its classes.

        Raises:
            ValueError: If the map is of another size than the image, or if the data set says
                otherwise of ``reduce_zero_label``; see also :func:`decode_labels`.
        """
        if self.imdecode_backend != 'pillow':
            return super().transform(results)
        path, reduce_zero_label = results['seg_map_path'], results['reduce_zero_label']
        if self.reduce_zero_label not in (None, reduce_zero_label):
            raise ValueError(f'LoadAnnotations has reduce_zero_label={self.reduce_zero_label}, its '
                             f'data set {reduce_zero_label}. Set it in the data set only')
        if 'seg_map_cache' in results:
            labels = map_pixels(*results['seg_map_cache'])
        else:
            labels = decode_labels(fileio.get(path, backend_args=self.backend_args), path)
        expected = results.get('ori_shape', labels.shape)
        if labels.shape != expected:
            raise ValueError(f'{path}: a map of {labels.shape} for an image of {expected}, '
                             f'{results.get("img_path")}. Expected the size of the image'
                             + self._explain_turned(results, labels.shape))
        ids = _renumbered(reduce_zero_label, results.get('label_map'))
        results['gt_seg_map'] = labels if ids is LEVELS else cv2.LUT(labels, ids)
        results['seg_fields'].append('gt_seg_map')
        return results

    def _explain_turned(self, results: Results, shape: tuple[int, ...]) -> str:
        """Says so if the camera marked the image as turned and the map was made without that."""
        path = results.get('img_path')
        if path is None or shape != tuple(results['ori_shape'])[::-1]:
            return ''
        orientation = read_exif_orientation(fileio.get(path, backend_args=self.backend_args))
        if orientation == 1:
            return ''
        return (f". The picture's EXIF orientation is {orientation}: it is shown turned, and the "
                'map is not. Turn the map, or remove the mark from the picture and let it lie')


def _renumbered(reduce_zero_label: bool, label_map: dict[int, int] | None) -> np.ndarray:
    """Returns the class id in place of each of the 256 levels; LEVELS itself if none changes."""
    ids = LEVELS
    if reduce_zero_label:
        ids = np.where(np.isin(ids, (0, 255)), 255, ids - 1).astype(np.uint8)
    if label_map:
        before, ids = ids, ids.copy()
        for old, new in label_map.items():
            ids[before == old] = new
    return ids


@TRANSFORMS.register_module()
class RandomResizeCrop(BaseTransform):
    """RandomResize with ``keep_ratio``, RandomCrop and RandomFlip in one.

    Scale, crop and flip are drawn first, as MMSegmentation and MMCV draw them; then only what the
    crop needs is resized. An image that is smaller than the crop stays so: the data preprocessor
    pads it.

    Args:
        scale: (width, height) that images are fitted into, times a ratio.
        crop_size: (height, width).
        ratio_range: The range that the ratio is drawn from.
        cat_max_ratio: A crop of which one class fills this share or more is drawn anew, up to ten
            times; the last is taken as it is. With 1 the first crop is taken.
        flip_prob: The probability of a horizontal flip.
        ignore_index: The label that does not count for ``cat_max_ratio``.
    """

    def __init__(self, scale: tuple[int, int], crop_size: tuple[int, int],
                 ratio_range: tuple[float, float] = (0.5, 2.0), cat_max_ratio: float = 1.0,
                 flip_prob: float = 0.5, ignore_index: int = 255) -> None:
        self.scale = scale
        self.crop_size = crop_size
        self.ratio_range = ratio_range
        self.cat_max_ratio = cat_max_ratio
        self.flip_prob = flip_prob
        self.ignore_index = ignore_index

    def transform(self, results: Results) -> Results:
        """Changes ``img`` and ``gt_seg_map``, adds what the three would."""
        height, width = results['img'].shape[:2]
        low, high = self.ratio_range
        ratio = np.random.random_sample() * (high - low) + low
        scale = int(self.scale[0] * ratio), int(self.scale[1] * ratio)
        new_width, new_height = rescale_size((width, height), scale)
        nearest = _nearest(height, new_height), _nearest(width, new_width)
        crop, labels = self._draw_crop(results['gt_seg_map'], nearest)
        flip = bool(np.random.random_sample() < self.flip_prob)
        image = _resize_crop(results['img'], (new_height, new_width), crop)
        if flip:
            image, labels = cv2.flip(image, 1), cv2.flip(labels, 1)
        results.update(
            img=image, gt_seg_map=labels, img_shape=image.shape[:2], scale=scale, keep_ratio=True,
            scale_factor=(new_width / width, new_height / height),
            flip=flip, flip_direction='horizontal' if flip else None)
        return results

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(scale={self.scale}, crop_size={self.crop_size}, '
                f'ratio_range={self.ratio_range}, cat_max_ratio={self.cat_max_ratio}, '
                f'flip_prob={self.flip_prob}, ignore_index={self.ignore_index})')

    def _draw_crop(self, labels: np.ndarray,
                   nearest: tuple[np.ndarray, np.ndarray]) -> tuple[Crop, np.ndarray]:
        """Draws rows and columns of the crop in the resized image, and resizes its labels."""
        redraws = 10 if self.cat_max_ratio < 1 else 0
        while True:
            offsets = [np.random.randint(0, max(len(positions) - side, 0) + 1)
                       for positions, side in zip(nearest, self.crop_size, strict=True)]
            rows, columns = (slice(offset, offset + side)
                             for offset, side in zip(offsets, self.crop_size, strict=True))
            picked = labels.take(nearest[0][rows], 0).take(nearest[1][columns], 1)
            if not redraws or self._is_mixed(picked):
                return (rows, columns), picked
            redraws -= 1

    def _is_mixed(self, labels: np.ndarray) -> bool:
        """Whether there is more than one class, and none fills too much."""
        # For 1024x1024 this takes 0.4 ms, np.unique 9 ms; PyTorch's bincount is slower too.
        counts = cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel()
        if 0 <= self.ignore_index <= 255:
            counts[self.ignore_index] = 0
        return bool(np.count_nonzero(counts) > 1
                    and counts.max() / counts.sum() < self.cat_max_ratio)


def _nearest(size_in: int, size_out: int) -> np.ndarray:
    """From which input each output of OpenCV's nearest-neighbour resize comes, (size_out,) int."""
    positions = np.arange(size_in, dtype=np.float32)[None]  # float32 is exact below 2^24.
    return cv2.resize(positions, (size_out, 1), interpolation=cv2.INTER_NEAREST)[0].astype(int)


def _resize_crop(image: np.ndarray, size: tuple[int, int], crop: Crop) -> np.ndarray:
    """``cv2.resize(image, size)[crop]``, bit for bit, without what lies right of and below it.

    What lies left of and above it is resized too: OpenCV's weights depend, through rounding, on
    the distance from where the resize starts.
    """
    factors = [new / old for new, old in zip(size, image.shape, strict=False)]
    # An output lies between two inputs. One more is kept, so that neither is taken for the border.
    ends = [int(min(part.stop, new) / factor) + 2
            for part, new, factor in zip(crop, size, factors, strict=True)]
    kept = image[:ends[0], :ends[1]]
    # OpenCV copies an image whose size does not change, as a small part's may not.
    if all(round(old * factor) == old
           for old, factor in zip(kept.shape, factors, strict=False)):
        kept = image
    resized = cv2.resize(kept, None, fx=factors[1], fy=factors[0], interpolation=cv2.INTER_LINEAR)
    return resized[crop]


@TRANSFORMS.register_module()
class PhotoMetricDistortion(MMSegPhotoMetricDistortion):
    """Drop-in for MMSegmentation's, through look-up tables: equal results, 2.5 times as fast.

    Each of its steps maps the 256 levels of one channel to others. So the steps are applied to the
    levels, and one look-up does two neighbouring steps. Saturation and hue each convert to HSV and
    back, as there: the way through 8-bit BGR between them loses levels. Images that are not uint8
    BGR are distorted by MMSegmentation's.
    """

    def transform(self, results: Results) -> Results:
        """Changes ``img``, BGR."""
        image = results['img']
        if not _is_picture(image):
            return super().transform(results)
        before = self.brightness(LEVELS)
        contrast_last = np.random.randint(2) == 0
        if not contrast_last:
            before = self.contrast(before)
        saturation = self._draw_saturation()
        hue = self._draw_hue()
        after = self.contrast(LEVELS) if contrast_last else LEVELS
        if saturation is None and hue is None:
            before, after = after[before], LEVELS
        image = _look_up(image, before)
        for channel, levels in ((1, saturation), (0, hue)):
            if levels is not None:
                hsv = list(cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV)))
                hsv[channel] = _look_up(hsv[channel], levels)
                image = cv2.cvtColor(cv2.merge(hsv), cv2.COLOR_HSV2BGR)
        results['img'] = _look_up(image, after)
        return results

    def _draw_saturation(self) -> np.ndarray | None:
        if not np.random.randint(2):
            return None
        return self.convert(
            LEVELS, alpha=np.random.uniform(self.saturation_lower, self.saturation_upper))

    def _draw_hue(self) -> np.ndarray | None:
        if not np.random.randint(2):
            return None
        shift = np.random.randint(-self.hue_delta, self.hue_delta)
        return ((LEVELS.astype(int) + shift) % 180).astype(np.uint8)


def _look_up(image: np.ndarray, levels: np.ndarray) -> np.ndarray:
    return image if np.array_equal(levels, LEVELS) else cv2.LUT(image, levels)


@TRANSFORMS.register_module()
class PackSegInputs(MMSegPackSegInputs):
    """Drop-in for MMSegmentation's, with labels in uint8 where it has int64.

    A 1024x1024 crop then takes 4 MB from the loading process to the training one, not 11. All of
    this package, the OHEM sampler and IoUMetric take either; PyTorch's cross-entropy, and with it
    MMSegmentation's CrossEntropyLoss, wants int64: with that loss use MMSegmentation's.
    Images that are not uint8 with 3 channels, and maps that are not uint8 (H, W), are packed by
    MMSegmentation's, maps then as int64.
    """

    def transform(self, results: Results) -> Results:
        """Packs ``img`` as ``inputs``, (C, H, W), and ``gt_seg_map`` as a data sample."""
        rest = dict(results)
        image = rest.pop('img') if _is_picture(results.get('img')) else None
        labels = rest.pop('gt_seg_map') if _is_map(results.get('gt_seg_map')) else None
        packed = super().transform(rest)
        if image is not None:
            packed['inputs'] = torch.from_numpy(np.stack(cv2.split(image)))
        if labels is not None:
            packed['data_samples'].gt_sem_seg = PixelData(
                data=torch.from_numpy(np.ascontiguousarray(labels)[None]))  # (1, H, W)
        return packed


def _is_picture(array: Any) -> bool:
    """Whether it is uint8, (H, W, 3), and not empty."""
    return (isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.ndim == 3
            and array.shape[2] == 3 and array.size > 0)


def _is_map(array: Any) -> bool:
    """Whether it is uint8, (H, W)."""
    return isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.ndim == 2
