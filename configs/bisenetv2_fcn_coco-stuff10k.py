# FCN + BiSeNetV2 on COCO-Stuff 10k, 171 classes, 512x512 crops.
#
#   mim train mmseg configs/bisenetv2_fcn_coco-stuff10k.py
#
# Expected: no result is published for this recipe.
# 40,000 iterations at 563 an epoch (ceil(9000 / 16)): 71 epochs.
# Total batch 16: 16 x 1, 4 x 4 or 2 x 8 GPUs (train_dataloader.batch_size); lr 0.05 belongs to 16
# and follows another total in proportion with auto_scale_lr.enable=True.
_base_ = [
    './_base_/models/fcn_bisenetv2.py',
    './_base_/datasets/coco-stuff10k.py',
    './_base_/schedules/schedule_40k.py',
    'mmseg::_base_/default_runtime.py',
]
data_preprocessor = dict(size=(512, 512))
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=171),
    auxiliary_head=[dict(head, num_classes=171) for head in _base_.model.auxiliary_head])
