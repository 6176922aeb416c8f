# FCN + BiSeNetV2 on Cityscapes under AMP in FP16, with a dynamic loss scale. Needs a GPU.
#
#   mim train mmseg configs/bisenetv2_fcn_fp16_cityscapes.py
#
# Expected: 74.17 % mIoU on val (SSSegmentation model zoo).
# 186 iterations an epoch x 860 epochs = 159,960 iterations.
# Total batch 16: 16 x 1, 4 x 4 or 2 x 8 GPUs, lr 0.05; see bisenetv2_fcn_cityscapes.py.
_base_ = './bisenetv2_fcn_cityscapes.py'
optim_wrapper = dict(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')
