"""MoCo's FCN-16s on PASCAL VOC 2012 with SBD's masks, 30k iterations, crop 513 (arXiv 1911.05722, appendix A.5).

python transfer/segment.py --ckpt X --task voc12aug-fcn16s-30k --data-root DATA

Cost: 480,000 crops of 513 x 513; time not measured.
Published, single scale, ResNet-50:
    supervised mIoU 74.4, MoCo v1 72.5 (arXiv 1911.05722, from a transcription); means of 5 trials
No code was published. The paper leaves open, and we chose: momentum 0.9, and what bases/fcn_16s.py lists.
"""

_base_ = ["bases/runtime.py", "bases/fcn_16s.py", "bases/voc12aug.py"]
reference_processes = 8  # with 2 images each: batch of 16
model = dict(
    data_preprocessor=dict(size=(513, 513)),
    decode_head=dict(num_classes=21),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(
        type="RandomResize", scale=(500, 500), ratio_range=(0.5, 2.0), keep_ratio=True
    ),  # relative to VOC's image size
    dict(type="RandomCrop", crop_size=(513, 513)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        datasets=[
            dict(
                type="PascalVOCDataset",
                data_root="VOCdevkit/VOC2012",
                data_prefix=dict(img_path="JPEGImages", seg_map_path=masks),
                ann_file=f"ImageSets/Segmentation/{names}.txt",
                pipeline=train_pipeline,
            )
            for names, masks in (("train", "SegmentationClass"), ("aug", "SegmentationClassAug"))
        ],
    ),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="SGD", lr=0.003, momentum=0.9, weight_decay=1e-4), clip_grad=None
)
param_scheduler = [dict(type="MultiStepLR", milestones=[21000, 27000], gamma=0.1, by_epoch=False)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=30000, val_interval=3000)
