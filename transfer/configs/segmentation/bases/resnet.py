"""ResNet-50 as in torchvision and in pre-training, in an EncoderDecoder. Each task sets its head.

mmseg's bases use ResNetV1c, whose three-convolution stem cannot hold conv1 and bn1 of such a checkpoint, and name their
own weights. Here: the 7x7 stem, stride in the 3x3 convolution, RGB with ImageNet's mean and standard deviation, nothing
frozen, batch norm trained, and synchronised between several processes. The weights come from --ckpt.
"""

norm_cfg = dict(type="SyncBN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
    ),
    pretrained=None,
    backbone=dict(
        type="ResNet",
        depth=50,
        strides=(1, 2, 2, 2),
        dilations=(1, 1, 1, 1),
        norm_cfg=norm_cfg,
        norm_eval=False,
        frozen_stages=-1,
        style="pytorch",
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
