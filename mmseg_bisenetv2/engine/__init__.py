"""What MMEngine's runner is given, so that a training cannot be lost: hooks, loop, AMP on a CPU."""
from mmseg_bisenetv2.engine.amp import CPUAmpOptimWrapper
from mmseg_bisenetv2.engine.checkpoint_hook import CheckpointHook
from mmseg_bisenetv2.engine.divergence_hook import DivergenceError, DivergenceHook
from mmseg_bisenetv2.engine.loop import IterBasedTrainLoop
from mmseg_bisenetv2.engine.results_hook import ResultsHook
from mmseg_bisenetv2.engine.resume import ResumeError
from mmseg_bisenetv2.engine.runtime_info_hook import RuntimeInfoHook
from mmseg_bisenetv2.engine.settings_hook import SettingsHook
from mmseg_bisenetv2.engine.work_dir_lock import WorkDirLockedError, WorkDirLockHook

__all__ = [
    'CPUAmpOptimWrapper', 'CheckpointHook', 'DivergenceError', 'DivergenceHook',
    'IterBasedTrainLoop', 'ResultsHook', 'ResumeError', 'RuntimeInfoHook', 'SettingsHook',
    'WorkDirLockHook', 'WorkDirLockedError']
