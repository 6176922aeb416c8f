"""MMSegmentation's EncoderDecoder, which loads any checkpoint, or says why it does not fit."""
from mmseg_bisenetv2.checkpoints import TrainingBegan, load_hook
from mmseg_bisenetv2.registry import MODELS

from mmseg.models.segmentors import EncoderDecoder as MMSegEncoderDecoder


@MODELS.register_module()
class EncoderDecoder(MMSegEncoderDecoder):
    """Drop-in for MMSegmentation's EncoderDecoder: same arguments, same state-dict keys.

    Checkpoints of SSSegmentation and CoinCheung/BiSeNet load like MMSegmentation's, and one that
    fits nothing is an error: see :func:`mmseg_bisenetv2.checkpoints.load_hook`.

    Args:
        *args: Those of ``mmseg.models.segmentors.EncoderDecoder``.
        **kwargs: Likewise.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.training_began = TrainingBegan()
        self.register_load_state_dict_pre_hook(load_hook)

    def init_weights(self):
        """Draws the initial weights, as MMEngine's runner asks for before a training."""
        self.training_began.is_set = True
        super().init_weights()
