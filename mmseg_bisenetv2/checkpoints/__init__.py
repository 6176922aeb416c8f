"""Loading, checking and converting BiSeNetV2 checkpoints of every published layout."""
from mmseg_bisenetv2.checkpoints import downloads  # noqa: F401, registers its addresses
from mmseg_bisenetv2.checkpoints.files import (
    convert_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from mmseg_bisenetv2.checkpoints.layouts import LAYOUTS, CheckpointError, convert_state_dict
from mmseg_bisenetv2.checkpoints.load_hook import TrainingBegan, load_hook

__all__ = [
    'LAYOUTS', 'CheckpointError', 'TrainingBegan', 'convert_checkpoint', 'convert_state_dict',
    'load_hook', 'read_checkpoint', 'write_checkpoint']
