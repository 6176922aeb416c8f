# FCN + BiSeNetV2 on Cityscapes, begun from a backbone that CoinCheung trained on ImageNet.
#
#   mim train mmseg configs/bisenetv2_fcn_imagenet_cityscapes.py
#
# Expected: no result is published for exactly this recipe. CoinCheung's own has 74.95 % mIoU on val
# with this backbone, and 72.96 to 74.39 in five runs from scratch.
# These weights belong to CoinCheung's network, see bisenetv2_fcn_coincheung_cityscapes.py.
# The file is downloaded when the training begins; a path may stand in place of the address:
#   --cfg-options model.backbone.init_cfg.checkpoint=backbone_v2.pth
# 186 iterations an epoch x 860 epochs = 159,960 iterations.
# Total batch 16: 16 x 1, 4 x 4 or 2 x 8 GPUs, lr 0.05; see bisenetv2_fcn_cityscapes.py.
_base_ = './bisenetv2_fcn_coincheung_cityscapes.py'
model = dict(backbone=dict(init_cfg=dict(
    type='Pretrained', prefix='backbone.',
    checkpoint='https://github.com/CoinCheung/BiSeNet/releases/download/0.0.0/backbone_v2.pth')))
