"""Data sets and the transforms of their training pipelines."""
from mmseg_bisenetv2.datasets.camvid import CamVidDataset
from mmseg_bisenetv2.datasets.transforms import (
    LoadAnnotations,
    LoadImageFromFile,
    PackSegInputs,
    PhotoMetricDistortion,
    RandomResizeCrop,
)
from mmseg_bisenetv2.datasets.validated import BaseSegDataset, CityscapesDataset, COCOStuffDataset

__all__ = [
    'BaseSegDataset', 'COCOStuffDataset', 'CamVidDataset', 'CityscapesDataset', 'LoadAnnotations',
    'LoadImageFromFile', 'PackSegInputs', 'PhotoMetricDistortion', 'RandomResizeCrop',
]
