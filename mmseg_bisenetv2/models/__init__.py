"""The network: backbone, head, loss, segmentor."""
from mmseg_bisenetv2.models.bisenetv2 import BiSeNetV2
from mmseg_bisenetv2.models.data_preprocessor import SegDataPreProcessor
from mmseg_bisenetv2.models.fcn_head import FCNHead
from mmseg_bisenetv2.models.losses import UpsampleCrossEntropy
from mmseg_bisenetv2.models.segmentor import EncoderDecoder

__all__ = ['BiSeNetV2', 'EncoderDecoder', 'FCNHead', 'SegDataPreProcessor', 'UpsampleCrossEntropy']
