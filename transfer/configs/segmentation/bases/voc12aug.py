"""PASCAL VOC 2012 with SBD's masks: 1,464 + 9,118 training images, 1,449 test images, 21 classes.

Pipeline: base 2048 x 512, ratio 0.5 to 2, crop 512 x 512. Source: WXinlong/mmsegmentation@32b0aff, configs/densecl.
"""

_base_ = ["loaders.py"]
layout = "voc12aug"
data_root = "VOCdevkit/VOC2012"  # below --data-root
images = dict(train=10582, val=1449)  # other numbers are refused; None accepts any
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, 512), keep_ratio=True),
    dict(type="LoadAnnotations"),  # after Resize: the prediction is compared at the image's own size
    dict(type="PackSegInputs"),
]
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        type="ConcatDataset",
        datasets=[
            dict(
                type="PascalVOCDataset",
                data_root=data_root,
                data_prefix=dict(img_path="JPEGImages", seg_map_path=masks),
                ann_file=f"ImageSets/Segmentation/{names}.txt",
                pipeline=train_pipeline,
            )
            for names, masks in (("train", "SegmentationClass"), ("aug", "SegmentationClassAug"))
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        type="PascalVOCDataset",
        data_root=data_root,
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
        ann_file="ImageSets/Segmentation/val.txt",
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
