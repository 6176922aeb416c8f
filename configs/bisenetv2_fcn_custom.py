# Your own data set, here of two classes. Copy this file, and change the names, the colours and
# data_root; everything else follows from len(classes).
#
#   data/my_dataset/img_dir/{train,val}/NAME.jpg
#   data/my_dataset/ann_dir/{train,val}/NAME.png   8-bit class ids 0, 1, ...; 255 is ignored
#
#   mim train mmseg configs/bisenetv2_fcn_custom.py
#
# Expected: depends on your data. To start from Cityscapes weights: --cfg-options load_from=FILE
# 40,000 iterations whatever the number of images: one epoch is ceil(images / 16) of them.
# Total batch 16: 16 x 1, 4 x 4 or 2 x 8 GPUs (train_dataloader.batch_size); lr 0.05 belongs to 16
# and follows another total in proportion with auto_scale_lr.enable=True.
_base_ = [
    './_base_/models/fcn_bisenetv2.py',
    './_base_/datasets/folders.py',
    './_base_/schedules/schedule_40k.py',
    'mmseg::_base_/default_runtime.py',
]
data_root = 'data/my_dataset'
metainfo = dict(
    classes=('background', 'drivable'),
    palette=[[0, 0, 0], [128, 64, 128]])
num_classes = len(metainfo['classes'])
train_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo))
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo))
test_dataloader = val_dataloader
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(num_classes=num_classes),
    auxiliary_head=[
        dict(head, num_classes=num_classes) for head in _base_.model.auxiliary_head
    ])
