# FCN + BiSeNetV2 on Cityscapes with a decode head of 128 channels in place of 1024: two thirds of
# the multiply-accumulates (16.0 in place of 24.6 GMAC at 1024x512) and of the parameters.
#
#   mim train mmseg configs/bisenetv2_fcn_head128_cityscapes.py
#
# Expected: no result is published for exactly this recipe. Two others with such a head have 73.19 %
# (PaddleSeg) and 73.73 % mIoU on val (zh320), one to two points less than most with 1024 channels.
# The auxiliary heads, which only training uses, keep their widths.
# 186 iterations an epoch x 860 epochs = 159,960 iterations.
# Total batch 16: 16 x 1, 4 x 4 or 2 x 8 GPUs, lr 0.05; see bisenetv2_fcn_cityscapes.py.
_base_ = './bisenetv2_fcn_cityscapes.py'
model = dict(decode_head=dict(channels=128))
