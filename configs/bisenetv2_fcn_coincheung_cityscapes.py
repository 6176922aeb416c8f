# FCN + BiSeNetV2 as CoinCheung/BiSeNet builds it, so that its published weights give its outputs:
# nearest-neighbour upsampling and no bias in the aggregation, and its normalisation.
#
#   mim test mmseg configs/bisenetv2_fcn_coincheung_cityscapes.py --checkpoint \
#       https://github.com/CoinCheung/BiSeNet/releases/download/0.0.0/model_final_v2_city.pth
#   mim train mmseg configs/bisenetv2_fcn_coincheung_cityscapes.py
#
# Expected: 74.95 % mIoU on val from its weights (2048x1024, single scale; its README). No result
# is published for this network with the recipe below, which is bisenetv2_fcn_cityscapes.py's.
# Its auxiliary heads are of another design: a training with load_from draws ours anew.
# Its logits are upsampled with align_corners=False like ours; the align_corners=True in its
# evaluation resizes an image that has its size already.
# 186 iterations an epoch x 860 epochs = 159,960 iterations.
# Total batch 16: 16 x 1, 4 x 4 or 2 x 8 GPUs, lr 0.05; see bisenetv2_fcn_cityscapes.py.
_base_ = './bisenetv2_fcn_cityscapes.py'
data_preprocessor = dict(
    mean=[83.0535, 94.095, 82.1865],  # RGB: (.3257, .3690, .3223) x 255
    std=[53.856, 54.774, 53.9325])  # (.2112, .2148, .2115) x 255
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(bga_upsample='nearest', bga_bias=False))
