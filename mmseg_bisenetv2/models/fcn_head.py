"""MMSegmentation's FCNHead, able to start from PyTorch's default initialisation."""
from mmseg_bisenetv2.models.bisenetv2 import reset_parameters
from mmseg_bisenetv2.registry import MODELS

from mmseg.models.decode_heads import FCNHead as MMSegFCNHead


@MODELS.register_module()
class FCNHead(MMSegFCNHead):
    """Drop-in for MMSegmentation's FCNHead: same arguments, parameters and state-dict keys.

    With ``init_cfg=None`` every layer keeps PyTorch's default initialisation, from which the
    reference trains. MMSegmentation's head draws its convolutions from Kaiming normal whatever
    ``init_cfg`` says, and ``conv_seg`` from N(0, 0.01) unless told otherwise.

    Args:
        **kwargs: Those of ``mmseg.models.decode_heads.FCNHead``.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        if self.init_cfg is None:
            reset_parameters(self)

    def init_weights(self):
        """Applies ``init_cfg``; without one, keeps what the constructor drew."""
        if self.init_cfg is not None:
            super().init_weights()
