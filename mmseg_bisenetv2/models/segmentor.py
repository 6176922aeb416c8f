"""MMSegmentation's EncoderDecoder, which refuses a checkpoint that fits nothing."""
from mmseg.models.segmentors import EncoderDecoder as MMSegEncoderDecoder

from mmseg_bisenetv2.registry import MODELS


@MODELS.register_module()
class EncoderDecoder(MMSegEncoderDecoder):
    """Drop-in for MMSegmentation's EncoderDecoder: same arguments, same state-dict keys.

    Args:
        *args: Those of ``mmseg.models.segmentors.EncoderDecoder``.
        **kwargs: Likewise.
    """
