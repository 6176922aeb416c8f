# FCN + BiSeNetV2 on Cityscapes under AMP in BF16. Needs a GPU that has it (Ampere or later); on a
# CPU, add --cfg-options optim_wrapper.type=mmseg_bisenetv2.CPUAmpOptimWrapper.
#
#   mim train mmseg configs/bisenetv2_fcn_bf16_cityscapes.py
#
# Expected: no result is published; FP32 gives 74.62 and FP16 74.17 % mIoU (SSSegmentation).
# 186 iterations an epoch x 860 epochs = 159,960 iterations.
# Total batch 16: 16 x 1, 4 x 4 or 2 x 8 GPUs, lr 0.05; see bisenetv2_fcn_cityscapes.py.
_base_ = './bisenetv2_fcn_cityscapes.py'
# BF16 has the range of FP32, so that nothing needs scaling
optim_wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=1.0)
