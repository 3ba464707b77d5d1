"""Every checkpoint format that can be read, as data. To add one, add an entry to FORMATS.

The wrappers' prefixes `module.` and `_orig_mod.` are removed from the keys before the patterns below are searched.
The facts are from the code of the repositories in `origin`.
"""

from dataclasses import dataclass, field

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Branch:
    """One of the encoders in a file."""

    prefix: str  # pattern at the start of its keys
    container: str | None = None  # path to its tensors where not one of the format's


@dataclass(frozen=True)
class Format:
    """The checkpoint format of one code base.

    Attributes:
        name: the value of --from.
        origin: the code base.
        branches: the encoders in a file, the default first.
        containers: dotted paths to the mapping of tensors, tried in this order; "" is the file itself.
        marks: patterns of keys that distinguish this format from others; each must be found.
        drop: what is left out on purpose, as it is no part of a backbone: its description and the pattern of its keys.
        names: (pattern, replacement) pairs, applied in order, from this format's names to torchvision's.
        entries: top-level entries that distinguish this format from others, with their value.
        cifar: the stem that a single 3×3 convolution means here.
        method: the pre-training method, where the format implies it.
        refuse: entries that show another network under the same names: dotted path, pattern of the value, and the
            reason, where {} stands for the match.
    """

    name: str
    origin: str
    branches: dict[str, Branch]
    containers: tuple[str, ...] = ("state_dict", "model", "")
    marks: tuple[str, ...] = ()
    drop: dict[str, str] = field(default_factory=dict)
    names: Rules = ()
    entries: dict[str, str] = field(default_factory=dict)
    cifar: str = "_cifar"
    method: str | None = None
    refuse: tuple[tuple[str, str, str], ...] = ()


# Names of the two encoders in different code bases; --branch takes any of them.
ROLES = ({"query", "student", "online", "base", "encoder"}, {"key", "teacher", "momentum", "target", "ema"})

QUEUES = {"queues": r"^((label_|index_)?queue(_ptr)?|queue2(_ptr)?|queue_\w+|\w+_queue)$"}
HEADS = {
    "heads": r"^((momentum|key|query|teacher|student|online)_)?"
    r"(projector|projection_head|predictor|prediction_head|classifier|head|prototypes|neck)(_\w+)?\d*(\.|$)"
}
MOCO_BRANCHES = {"query": Branch(r"^encoder_q\."), "key": Branch(r"^encoder_k\.")}
MOCO_HEADS = {"projection heads": r"^encoder_[qk]\.fc\."}

DETECTRON2_NAMES: Rules = (
    (r"^stem\.conv1\.norm\.", "bn1."), (r"^stem\.conv1\.", "conv1."), (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"^res2\.", "layer1."), (r"^res3\.", "layer2."), (r"^res4\.", "layer3."), (r"^res5\.", "layer4."),
    (r"\.shortcut\.norm\.", ".downsample.1."), (r"\.shortcut\.weight$", ".downsample.0.weight"),
)  # fmt: skip
DETECTRON2_ZOO = "detectron2's zoo trains most networks on BGR images with STRIDE_IN_1X1"
OPENMMLAB_NAMES: Rules = ((r"^stem\.([0-6])\.", r"conv1.\1."), (r"^stem\.7\.", "bn1."))
# Caffe-style ResNets of OpenMMLab: BGR images, stride in the first 1×1 convolution.
CAFFE = r"""style['"]?\s*[=:]\s*['"]caffe|(bgr_)?to_rgb['"]?\s*[=:]\s*False"""
# nn.Sequential(*list(resnet.children())[:-1]): conv1, bn1, relu, maxpool, layer1 … layer4, avgpool
SEQUENTIAL_NAMES: Rules = (
    (r"^0\.", "conv1."), (r"^1\.", "bn1."),
    (r"^4\.", "layer1."), (r"^5\.", "layer2."), (r"^6\.", "layer3."), (r"^7\.", "layer4."),
)  # fmt: skip

OWN = "unimoco-suite"
# The first entry whose marks and backbone are found is taken: specific formats before general ones.
FORMATS = (
    Format(
        OWN, "this suite's own checkpoints", MOCO_BRANCHES, containers=("state_dict",), drop=MOCO_HEADS | QUEUES,
        entries={"format": OWN},
    ),
    Format(
        "unimoco", "dddzg/unimoco", MOCO_BRANCHES, marks=(r"^label_queue$",), drop=MOCO_HEADS | QUEUES,
        method="unimoco",
    ),
    Format(
        "moco", "facebookresearch/moco v1 and v2", MOCO_BRANCHES, marks=(r"^encoder_q\.",), drop=MOCO_HEADS | QUEUES,
        method="moco",
    ),
    Format(
        "mocov3", "facebookresearch/moco-v3, ResNets",
        {"query": Branch(r"^base_encoder\."), "key": Branch(r"^momentum_encoder\.")},
        drop={"projection heads": r"^(base|momentum)_encoder\.fc\.", "predictor": r"^predictor\."}, method="mocov3",
    ),
    Format(
        "dino", "facebookresearch/dino, ResNets",
        {"teacher": Branch(r"^backbone\.", "teacher"), "student": Branch(r"^backbone\.", "student")},
        containers=("teacher", "student"), drop={"head": r"^head\.", "classifier": r"^backbone\.fc\."}, method="dino",
    ),
    Format(
        "swav", "facebookresearch/swav", {"encoder": Branch(r"^")}, marks=(r"^(projection_head|prototypes)\.",),
        drop={"head and prototypes": r"^(projection_head|prototypes)\."}, method="swav",
    ),
    Format(
        "vissl", "facebookresearch/vissl", {"encoder": Branch(r"^(base_model\.)?_feature_blocks\.")},
        containers=("classy_state_dict.base_model.model.trunk",), drop={"classifier": r"_feature_blocks\.fc\."},
    ),
    Format(
        "simsiam", "facebookresearch/simsiam", {"encoder": Branch(r"^encoder\.")},
        marks=(r"^encoder\.fc\.", r"^predictor\."),
        drop={"projection head": r"^encoder\.fc\.", "predictor": r"^predictor\."}, method="simsiam",
    ),
    Format(
        "supcontrast", "HobbitLong/SupContrast", {"encoder": Branch(r"^encoder\.(module\.)?")},
        marks=(r"^encoder\.(module\.)?layer\d\.0\.shortcut\.",), drop={"head": r"^(head|fc)\."},
        names=((r"\.shortcut\.", ".downsample."),),
    ),
    Format(
        "pixpro", "zdaxie/PixPro, hologerry/SoCo", {"query": Branch(r"^encoder\."), "key": Branch(r"^encoder_k\.")},
        marks=(r"^encoder_k\.",),
        drop=HEADS | {"classifier": r"^encoder(_k)?\.fc\.", "pixel propagation": r"^value_transform\."},
    ),
    Format(
        "pycontrast", "HobbitLong/PyContrast",
        {"query": Branch(r"^encoder\.", "model"), "ema": Branch(r"^encoder\.", "model_ema")}, containers=("model",),
        marks=(r"^head(_jig)?\.",), drop={"heads": r"^head(_jig)?\.", "classifier": r"^encoder\.fc\."},
    ),
    Format(
        "barlowtwins", "facebookresearch/barlowtwins, checkpoint.pth (its resnet50.pth is torchvision's format)",
        {"encoder": Branch(r"^backbone\.")}, containers=("model",), marks=(r"^projector\.", r"^bn\.running_mean$"),
        drop={"projector": r"^(projector|bn)\.", "classifier": r"^backbone\.fc\."}, method="barlowtwins",
    ),
    Format(
        "vicreg", "facebookresearch/vicreg, model.pth (its resnet50.pth is torchvision's format)",
        {"encoder": Branch(r"^backbone\.")}, containers=("model",), marks=(r"^projector\.",),
        drop={"projector": r"^projector\.", "classifier": r"^backbone\.fc\."}, method="vicreg",
    ),
    Format(
        "openselfsup", "OpenSelfSup, DenseCL, mmselfsup, mmpretrain self-supervision",
        {"query": Branch(r"^backbone\."), "key": Branch(r"^(encoder_k|target_net)\.(module\.)?0\.")},
        containers=("state_dict",),
        marks=(r"^(encoder_[qk]|online_net|target_net)\.(module\.)?[01]\.|^(neck|head)\.",),
        # encoder_q.0 and online_net.0 are the backbone under a second name.
        drop=HEADS | QUEUES | {
            "the backbone's second name": r"^(encoder_q|online_net)\.0\.",
            "necks": r"^(encoder_[qk]|online_net|target_net)\.(module\.)?[1-9]\.",
            "step of the moving average": r"^(encoder_k|target_net)\.steps$",
            "input statistics": r"^data_preprocessor\.",
        },
    ),
    Format(
        "lightly-sequential", "lightly tutorials and examples: nn.Sequential of the ResNet's children",
        {"online": Branch(r"^backbone\."), "momentum": Branch(r"^(backbone_momentum|key_backbone)\.")},
        marks=(r"^backbone\.4\.0\.conv1\.",), drop=HEADS | {"memory bank": r"^(criterion|memory_bank)\."},
        names=SEQUENTIAL_NAMES,
    ),
    Format(
        "lightly", "lightly benchmarks",
        {
            "online": Branch(r"^((query|student)_)?backbone\."),
            "momentum": Branch(r"^((key|teacher)_backbone|backbone_momentum)\."),
        },
        marks=(r"^\w*(projection|prediction)_head\w*\.",),
        drop=HEADS | {"memory bank": r"^(criterion|memory_bank)\.", "classifier": r"backbone\w*\.fc\."},
    ),
    Format(
        "solo-learn", "vturrisi/solo-learn: BYOL, MoCo v2+, SupCon, VICReg …",
        {"online": Branch(r"^(backbone|encoder)\."), "momentum": Branch(r"^momentum_(backbone|encoder)\.")},
        containers=("state_dict",),
        marks=(r"^(momentum_)?(projector|predictor|classifier)\.|^momentum_(backbone|encoder)\.",),
        drop=HEADS | QUEUES | {"classifier in the encoder": r"^(momentum_)?(backbone|encoder)\.fc\."},
        cifar="_cifar_pad2",
    ),
    Format(
        "detectron2", "detectron2 and this suite's .pkl",
        {"backbone": Branch(r"^(backbone\.(bottom_up\.)?|roi_heads\.(?=res5\.\d))?(?=stem\.|res\d\.)")},
        containers=("model", ""), marks=(r"(^|\.)stem\.conv1\.",),
        drop={
            "detection heads": r"^(proposal_generator|(sem_seg_)?head|roi_heads\.(box|mask|keypoint)_\w+)\.",
            "norm that MoCo's C4 head adds to res5": r"^roi_heads\.res5\.norm\.",
            "feature pyramid": r"^backbone\.(fpn_|top_block\.)",
            "input statistics": r"^(pixel_mean|pixel_std)$",
            "classifier": r"^(stem\.)?fc\.",
        },
        names=DETECTRON2_NAMES,
        refuse=(("__author__", "^Detectron2 Model Zoo$", DETECTRON2_ZOO),),
    ),
    Format(
        "openmmlab", "mmseg, mmdet, mmpretrain and this suite's OpenMMLab files",
        {"backbone": Branch(r"^(backbone\.|roi_head\.shared_head\.(?=layer4\.))")}, containers=("state_dict", ""),
        drop={
            "neck": r"^neck\.",
            "heads": r"^((decode_|auxiliary_|bbox_|rpn_|mask_)?head\.|roi_head\.(?!shared_head\.layer4))",
            "input statistics": r"^data_preprocessor\.",
        },
        names=OPENMMLAB_NAMES, refuse=(("meta.cfg", CAFFE, "its config says {}"),),
    ),
    Format(
        "openmmlab-bare", "OpenMMLab V1c and V1d backbones without a prefix", {"backbone": Branch(r"^")},
        containers=("state_dict", ""), marks=(r"^stem\.0\.weight$",), names=OPENMMLAB_NAMES,
        drop={"classifier": r"^fc\."},
    ),
    Format(
        "timm", "timm's deep-stem networks", {"encoder": Branch(r"^")},
        containers=("state_dict", "model", "state_dict_ema", ""), marks=(r"^conv1\.0\.weight$",),
        drop={"classifier": r"^fc\."},
    ),
    Format(
        "torchvision", "torchvision, timm, the ResNets that Barlow Twins, VICReg and DINO released, this suite's own",
        {"encoder": Branch(r"^")}, containers=("state_dict", "model", "state_dict_ema", ""),
        drop={"classifier": r"^fc\."},
    ),
)  # fmt: skip
BY_NAME = {entry.name: entry for entry in FORMATS}
