"""What MMEngine's runner is given: hooks."""
from mmseg_bisenetv2.engine.runtime_info_hook import RuntimeInfoHook

__all__ = ['RuntimeInfoHook']
