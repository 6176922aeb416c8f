"""Trains a config of this package, given by its name: MMSegmentation's own script.

mim train mmseg_bisenetv2 bisenetv2_fcn_cityscapes.py
"""
from mmseg_bisenetv2.tool_runner import MMSEG_TOOLS, run_script

if __name__ == '__main__':
    run_script(MMSEG_TOOLS / 'train.py')
