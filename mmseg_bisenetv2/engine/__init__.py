"""What MMEngine's runner is given: hooks."""
from mmseg_bisenetv2.engine.runtime_info_hook import RuntimeInfoHook
from mmseg_bisenetv2.engine.settings_hook import SettingsHook

__all__ = ['RuntimeInfoHook', 'SettingsHook']
