"""ADE20K: 20,210 training images, 2,000 test images, 150 classes; label 0, "other", is ignored.

Pipeline: base 2048 x 512, ratio 0.5 to 2, crop 512 x 512. Source: WXinlong/mmsegmentation@32b0aff, configs.
"""

_base_ = ["loaders.py"]
layout = "ade20k"
data_root = "ade/ADEChallengeData2016"  # below --data-root
images = dict(train=20210, val=2000)  # other numbers are refused; None accepts any
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
        type="ADE20KDataset",
        data_root=data_root,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        reduce_zero_label=True,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type="ADE20KDataset",
        data_root=data_root,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        reduce_zero_label=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
