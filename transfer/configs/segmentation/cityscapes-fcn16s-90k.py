"""MoCo's FCN-16s on Cityscapes, 90k iterations, crop 769 (arXiv 1911.05722, appendix A.5).

python transfer/segment.py --ckpt X --task cityscapes-fcn16s-90k --data-root DATA

Cost: 1,440,000 crops of 769 x 769; time not measured.
Published, single scale, ResNet-50:
    random initialisation mIoU 65.3, supervised 74.6, MoCo v1 75.3 (arXiv 1911.05722, from a transcription); means of
    5 trials
No code was published; one user reports about 67 for a re-implementation (facebookresearch/moco, thread 55). The paper
leaves open, and we chose: momentum 0.9, and what bases/fcn_16s.py lists.
"""

_base_ = ["bases/runtime.py", "bases/fcn_16s.py", "bases/cityscapes.py"]
reference_processes = 8  # with 2 images each: batch of 16
model = dict(
    data_preprocessor=dict(size=(769, 769)),
    decode_head=dict(num_classes=19),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(2048, 1024), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(769, 769)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=1e-4), clip_grad=None
)
param_scheduler = [dict(type="MultiStepLR", milestones=[63000, 81000], gamma=0.1, by_epoch=False)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=90000, val_interval=9000)
