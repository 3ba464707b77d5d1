"""mmseg's data set of a user's images and masks, which a list names in pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from common.files import text_lines
from transfer.own_data.segmentation import raw_labels

IGNORED = 255  # label of pixels that count nowhere


def settings(own: Any) -> dict[str, Any]:
    """Return the settings of both data sets, from `own` in the task (transfer/own_data/segmentation.py)."""
    metainfo = {"classes": tuple(own.classes)} | ({"palette": own.palette} if own.palette else {})
    return {
        "data_root": own.folder, "data_prefix": {"img_path": own.images, "seg_map_path": own.masks},
        "metainfo": metainfo, "ignore": own.ignore,
    }  # fmt: skip


@DATASETS.register_module()
class OwnDataset(BaseSegDataset):
    """Images and masks of any suffix, one `image<TAB>mask` a line of `ann_file`.

    Args:
        identity: of the data set, for the record; nothing is read from it.
        ignore: label of the masks that is ignored beside 255; the classes have the others.
        **options: of BaseSegDataset.
    """

    def __init__(self, identity: str = "", ignore: int = IGNORED, **options: Any) -> None:
        self.identity, self.ignore = identity, ignore
        super().__init__(**options)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return an entry for each pair."""
        images, masks = (Path(self.data_prefix[key]) for key in ("img_path", "seg_map_path"))
        labels = raw_labels(len(self.metainfo["classes"]), self.ignore)
        mapped = {label: index for index, label in enumerate(labels) if label != index} | {self.ignore: IGNORED}
        label_map = None if mapped == {IGNORED: IGNORED} else mapped
        pairs = [line.split("\t") for line in text_lines(Path(self.ann_file))]
        return [
            {
                "img_path": str(images / image), "seg_map_path": str(masks / mask), "label_map": label_map,
                "reduce_zero_label": False, "seg_fields": [],
            }
            for image, mask in pairs
        ]  # fmt: skip
