# Your own data set, here of two classes. Copy this file and change what stands between the lines,
# or let tools/new_config.py write the copy.
#
#   data/my_dataset/img_dir/{train,val}/NAME.jpg
#   data/my_dataset/ann_dir/{train,val}/NAME.png   8-bit class ids 0, 1, ...; 255 is ignored
#
#   mim train mmseg configs/bisenetv2_fcn_custom.py
#
# Expected: depends on your data. To start from Cityscapes weights: --cfg-options load_from=FILE
# 40,000 iterations whatever the number of images (an epoch is ceil(images / 16) of them); the
# schedule, validation and checkpoints follow max_iters below.
# Total batch 16: 16 x 1, 4 x 4 or 2 x 8 GPUs (train_dataloader.batch_size); lr 0.05 belongs to 16
# and follows another total in proportion with auto_scale_lr.enable=True.
_base_ = [
    './_base_/models/fcn_bisenetv2.py',
    './_base_/datasets/folders.py',
    './_base_/schedules/schedule_40k.py',
    'mmseg::_base_/default_runtime.py',
]
# ------------------------------------------------------------------------------------------------
classes = ('background', 'drivable')  # or the path of a text file with a name in each line
palette = [[0, 0, 0], [128, 64, 128]]  # RGB
scale = (1280, 720)  # (width, height) of your images; training scales by 0.5 to 2 around it
crop_size = (512, 512)  # (height, width) of the training crops
max_iters = 40000
# Where label maps hold other ids: {7: 0, 26: 1} makes class 0 of their id 7 and class 1 of their id
# 26, and ignores all others. Empty: they hold 0, 1, ... as above.
label_map = {}
data = dict(data_root='data/my_dataset', img_suffix='.jpg', seg_map_suffix='.png')
# ------------------------------------------------------------------------------------------------
if isinstance(classes, str):
    classes = tuple(open(classes, encoding='utf-8').read().splitlines())
dataset = dict(data, metainfo=dict(classes=classes, palette=palette))
if label_map:
    dataset.update(label_map=label_map)
train_pipeline = _base_.train_pipeline
train_pipeline[2].update(scale=scale, crop_size=crop_size)  # RandomResizeCrop
train_dataloader = dict(dataset=dict(dataset, pipeline=train_pipeline))
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
param_scheduler = _base_.param_scheduler
tenth = max(1, max_iters // 10)
param_scheduler[0].end = min(1000, tenth) + 1  # warm-up
param_scheduler[1].end = max_iters + 1  # poly
train_cfg = dict(max_iters=max_iters, val_interval=tenth)
default_hooks = dict(
    logger=dict(interval=min(50, tenth)),  # A short run, too, has a curve.
    checkpoint=dict(interval=tenth),
    # The settings above can be changed in the file only; --cfg-options would come too late.
    settings=dict(type='mmseg_bisenetv2.SettingsHook', settings=dict(
        classes=classes, palette=palette, scale=scale, crop_size=crop_size, max_iters=max_iters,
        label_map=label_map, data=data)))
# Of two classes, too, each has its channel. MMSegmentation would advise out_channels=1 then, with a
# sigmoid and a threshold. But the loss of these configs is a softmax, which learns nothing from a
# single channel, and exported networks take the argmax. Stating the number silences the advice.
channels = dict(num_classes=len(classes), out_channels=len(classes))
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=channels,
    auxiliary_head=[dict(head, **channels) for head in _base_.model.auxiliary_head])
