"""Child registries of MMSegmentation's, under the scope ``mmseg_bisenetv2``.

``type='mmseg_bisenetv2.BiSeNetV2'`` finds ours from any MMSegmentation config; the bare
``BiSeNetV2`` stays MMSegmentation's own, so that no other config changes.
"""
from mmengine.registry import Registry

from mmseg.registry import DATASETS as MMSEG_DATASETS
from mmseg.registry import HOOKS as MMSEG_HOOKS
from mmseg.registry import LOOPS as MMSEG_LOOPS
from mmseg.registry import METRICS as MMSEG_METRICS
from mmseg.registry import MODELS as MMSEG_MODELS
from mmseg.registry import OPTIM_WRAPPERS as MMSEG_OPTIM_WRAPPERS
from mmseg.registry import TRANSFORMS as MMSEG_TRANSFORMS

SCOPE = 'mmseg_bisenetv2'

MODELS = Registry(
    'model', parent=MMSEG_MODELS, scope=SCOPE, locations=['mmseg_bisenetv2.models'])
DATASETS = Registry(
    'dataset', parent=MMSEG_DATASETS, scope=SCOPE, locations=['mmseg_bisenetv2.datasets'])
METRICS = Registry(
    'metric', parent=MMSEG_METRICS, scope=SCOPE, locations=['mmseg_bisenetv2.metrics'])
TRANSFORMS = Registry(
    'transform', parent=MMSEG_TRANSFORMS, scope=SCOPE, locations=['mmseg_bisenetv2.datasets'])
HOOKS = Registry(
    'hook', parent=MMSEG_HOOKS, scope=SCOPE, locations=['mmseg_bisenetv2.engine'])
LOOPS = Registry(
    'loop', parent=MMSEG_LOOPS, scope=SCOPE, locations=['mmseg_bisenetv2.engine'])
OPTIM_WRAPPERS = Registry(
    'optim_wrapper', parent=MMSEG_OPTIM_WRAPPERS, scope=SCOPE,
    locations=['mmseg_bisenetv2.engine'])
