"""FCN-16s of the MoCo paper: output stride 16, conv5 dilated by 2, two 3x3 convolutions of 256 channels dilated by 6.

Source: arXiv 1911.05722, appendix A.5. The paper leaves open, and we chose: dropout 0; align_corners, as its odd
crops of 513 and 769 suggest; every 3x3 convolution of conv5 dilated, the first included; the loss is the mean over the
labelled pixels of a batch (avg_non_ignore), so ignored ones, such as the padding of crops, do not dilute it.
"""

_base_ = ["resnet.py"]
norm_cfg = dict(type="SyncBN", requires_grad=True)
model = dict(
    backbone=dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), contract_dilation=False),
    decode_head=dict(
        type="FCNHead",
        in_channels=2048,
        in_index=3,
        channels=256,
        num_convs=2,
        dilation=6,
        concat_input=False,
        dropout_ratio=0,
        num_classes=0,  # set by each task
        norm_cfg=norm_cfg,
        align_corners=True,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0, avg_non_ignore=True),
    ),
)
