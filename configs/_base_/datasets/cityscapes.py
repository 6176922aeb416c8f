# Cityscapes: MMSegmentation's pipeline (scale 0.5-2, crop 1024x1024 with at most 75 % of one class,
# flip, photometric distortion), batch 16 on one GPU, labels checked.
_base_ = 'mmseg::_base_/datasets/cityscapes_1024x1024.py'
dataset_type = 'mmseg_bisenetv2.CityscapesDataset'
train_dataloader = dict(batch_size=16, num_workers=8, dataset=dict(type=dataset_type))
val_dataloader = dict(num_workers=4, dataset=dict(type=dataset_type))
test_dataloader = val_dataloader
