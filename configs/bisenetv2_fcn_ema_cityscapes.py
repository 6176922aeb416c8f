# FCN + BiSeNetV2 on Cityscapes with an exponential moving average (EMA) of the weights, by
# MMEngine's EMAHook. The average is validated, and the checkpoints hold it as their state dict, so
# that tests and exports use it; the weights that training goes on from stand beside it.
#
#   mim train mmseg configs/bisenetv2_fcn_ema_cityscapes.py
#
# Expected: no result is published for this network with EMA. It averages over some 5,000 iterations
# (1 / momentum). That smooths the validations on the way. At the end, where the poly schedule has
# made the steps very small, expect little difference.
# 186 iterations an epoch x 860 epochs = 159,960 iterations.
# Total batch 16: 16 x 1, 4 x 4 or 2 x 8 GPUs, lr 0.05; see bisenetv2_fcn_cityscapes.py.
_base_ = './bisenetv2_fcn_cityscapes.py'
custom_hooks = [
    # With update_buffers BatchNorm's statistics are averaged like the weights that they belong to.
    dict(type='EMAHook', momentum=2e-4, update_buffers=True),
]
