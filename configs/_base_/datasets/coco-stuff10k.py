# COCO-Stuff 10k: MMSegmentation's pipeline, 512x512 crops, batch 16 on one GPU, labels checked.
_base_ = 'mmseg::_base_/datasets/coco-stuff10k.py'
dataset_type = 'mmseg_bisenetv2.COCOStuffDataset'
train_dataloader = dict(batch_size=16, num_workers=8, dataset=dict(type=dataset_type))
val_dataloader = dict(dataset=dict(type=dataset_type))
test_dataloader = val_dataloader
