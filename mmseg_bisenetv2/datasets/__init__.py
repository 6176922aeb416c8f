"""Data sets."""
from mmseg_bisenetv2.datasets.camvid import CamVidDataset
from mmseg_bisenetv2.datasets.checked import BaseSegDataset, CityscapesDataset, COCOStuffDataset

__all__ = ['BaseSegDataset', 'COCOStuffDataset', 'CamVidDataset', 'CityscapesDataset']
