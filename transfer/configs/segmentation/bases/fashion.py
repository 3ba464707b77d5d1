"""Fashion Scenes (transfer/scenes.py): 2,000 training scenes of 128 x 128, 500 test scenes, 11 classes."""

_base_ = ["loaders.py"]
data_root = "scenes"  # made below --data-root if missing
# Folder, classes and colours are set by transfer/segmentation/data.py.
scenes = dict(train=2000, val=500, size=128, seed=0)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(128, 128), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(96, 96)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(
        type="BaseSegDataset",
        img_suffix=".png",
        data_root=data_root,
        data_prefix=dict(img_path="images/train", seg_map_path="masks/train"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=10,
    num_workers=0,
    dataset=dict(
        type="BaseSegDataset",
        img_suffix=".png",
        data_root=data_root,
        data_prefix=dict(img_path="images/val", seg_map_path="masks/val"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
