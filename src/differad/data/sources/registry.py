"""Every readable data set by its name in `differad build`: what it is, its terms, where to get it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from differad.data.sources.aitex import read_aitex
from differad.data.sources.coco import read_coco
from differad.data.sources.dagm import read_dagm
from differad.data.sources.deeppcb import read_deeppcb
from differad.data.sources.folders import read_folder, read_neg_defective, read_pos_defective
from differad.data.sources.mvtec import read_3cad, read_btad, read_mpdd, read_mvtec, read_mvtec2, read_mvtec_loco
from differad.data.sources.real_iad import read_real_iad
from differad.data.sources.sample import Problems, Sample, refuse
from differad.data.sources.surfaces import read_kolektor, read_kolektor2, read_magnetic_tile
from differad.data.sources.visa import read_visa
from differad.data.sources.yolo import read_yolo
from differad.data.sources.zju_leaper import read_zju_leaper
from differad.errors import OptionError


class Reader(Protocol):
    """Reads a data set: checks the layout immediately, then yields samples in a fixed order."""

    def __call__(self, root: Path, problems: Problems = refuse) -> Iterator[Sample]:
        """Samples below `root`; problems of single samples go to `problems`. Raises ManifestError."""


@dataclass(frozen=True)
class Source:
    """A data set: its reader, a one-line description, its licence, where to get it, and the layout below its root.

    `read_unmasked` reads defects without a mask as defects at an unknown place, in layouts that allow them.
    """

    read: Reader
    title: str
    licence: str
    url: str
    layout: str
    read_unmasked: Reader | None = None


_NC_SA = "CC BY-NC-SA 4.0"
_OWN = "your own data"

SOURCES: dict[str, Source] = {
    "mvtec": Source(
        read_mvtec,
        "MVTec AD: 15 objects and textures",
        _NC_SA,
        "https://www.mvtec.com/company/research/datasets/mvtec-ad",
        "CATEGORY/{train/good,test/KIND,ground_truth/KIND/NNN_mask.png}",
    ),
    "mvtec2": Source(
        read_mvtec2,
        "MVTec AD 2: 8 objects under changing light; public test set only",
        _NC_SA,
        "https://www.mvtec.com/company/research/datasets/mvtec-ad-2",
        "CATEGORY/{train/good,validation/good,test_public/{good,bad,ground_truth/bad}}/NNN_LIGHT.png",
    ),
    "mvtec_loco": Source(
        read_mvtec_loco,
        "MVTec LOCO AD: 5 products with structural and logical anomalies",
        _NC_SA,
        "https://www.mvtec.com/company/research/datasets/mvtec-loco",
        "CATEGORY/{train/good,validation/good,test/KIND,ground_truth/KIND/NNN/MMM.png}",
    ),
    "visa": Source(
        read_visa,
        "VisA: 12 objects, boards and food among them",
        "CC BY 4.0",
        "https://github.com/amazon-science/spot-diff",
        "split_csv/1cls.csv, OBJECT/{image_anno.csv,Data/Images/{Normal,Anomaly},Data/Masks/Anomaly}",
    ),
    "real_iad": Source(
        read_real_iad,
        "Real-IAD: 30 objects, five cameras",
        _NC_SA,
        "https://realiad4ad.github.io/Real-IAD",
        "realiad_1024/OBJECT/{OK,NG/KIND}/SNNNN, realiad_jsons/OBJECT.json",
    ),
    "btad": Source(
        read_btad,
        "BTAD: 3 industrial products",
        "CC BY-NC-SA 4.0 according to anomalib",
        "https://avires.dimi.uniud.it/papers/btad/btad.zip",
        "{01,02,03}/{train/ok,test/{ok,ko},ground_truth/ko}",
    ),
    "mpdd": Source(
        read_mpdd,
        "MPDD: 6 painted or bare metal parts",
        _NC_SA,
        "https://github.com/stepanje/MPDD",
        "CATEGORY/{train/good,test/KIND,ground_truth/KIND/NNN_mask.png}",
    ),
    "3cad": Source(
        read_3cad,
        "3CAD: 8 parts of computers, phones and cameras",
        "none stated; ask the authors",
        "https://github.com/EnquanYang2022/3CAD",
        "CATEGORY/{train/good,test/KIND,ground_truth/KIND/NAME.png}",
    ),
    "dagm": Source(
        read_dagm,
        "DAGM 2007: 10 synthetic textures",
        "CC BY 4.0",
        "https://zenodo.org/records/12750201",
        "ClassN/{Train,Test}/{NNNN.PNG,Label/NNNN_label.PNG}, or ClassN and ClassN_def/labels.txt",
    ),
    "aitex": Source(
        read_aitex,
        "AITEX: 7 fabrics as strips, read as tiles of 256 pixels",
        "see the page",
        "https://www.aitex.es/afid/",
        "Defect_images/nnnn_ddd_ff.png, Mask_images/nnnn_ddd_ff_mask.png, NODefect_images/ROLL/nnnn_000_ff.png",
    ),
    "zju_leaper": Source(
        read_zju_leaper,
        "ZJU-Leaper: 19 fabric patterns in 5 groups",
        "see the page",
        "http://www.qaas.zju.edu.cn/zju-leaper",
        "Images/ID.jpg, Annotations/{masks/ID.png,xmls/ID.xml}, ImageSets/{Patterns,Groups}/*.json",
    ),
    "deeppcb": Source(
        read_deeppcb,
        "DeepPCB: circuit boards, each with its template",
        "research only",
        "https://github.com/tangsanli5201/DeepPCB",
        "PCBData/groupNNNNN/{NNNNN/*_test.jpg,NNNNN/*_temp.jpg,NNNNN_not/*.txt}",
    ),
    "kolektor": Source(
        read_kolektor,
        "KolektorSDD: plastic of electrical commutators",
        _NC_SA,
        "https://www.vicos.si/resources/kolektorsdd/",
        "kosNN/{PartM.jpg,PartM_label.bmp}",
    ),
    "kolektor2": Source(
        read_kolektor2,
        "KolektorSDD2: surfaces of one product in colour",
        _NC_SA,
        "https://www.vicos.si/resources/kolektorsdd2/",
        "{train,test}/{ID.png,ID_GT.png}",
    ),
    "magnetic_tile": Source(
        read_magnetic_tile,
        "Magnetic tiles: 5 kinds of defects",
        "none stated; cite, do not redistribute",
        "https://github.com/abin24/Magnetic-tile-defect-datasets.",
        "MT_KIND/Imgs/{NAME.jpg,NAME.png}",
    ),
    "pos_defective": Source(
        read_pos_defective,
        "A factory's own folders, defects in pos/",
        _OWN,
        "docs/sources.md",
        "[PRODUCT/]{pos,neg}/NAME.jpg, pos/NAME_mask.png",
        partial(read_pos_defective, unmasked=True),
    ),
    "neg_defective": Source(
        read_neg_defective,
        "A factory's own folders, defects in neg/",
        _OWN,
        "docs/sources.md",
        "[PRODUCT/]{pos,neg}/NAME.jpg, neg/NAME_mask.png",
        partial(read_neg_defective, unmasked=True),
    ),
    "folder": Source(
        read_folder,
        "Anomalib's Folder: good parts, defects and, where there are any, masks in folders",
        _OWN,
        "docs/sources.md",
        "good/NAME.png, KIND/NAME.png, ground_truth/[KIND/]NAME.png (or no masks at all)",
        partial(read_folder, unmasked=True),
    ),
    "coco": Source(
        read_coco,
        "COCO detection labels; images without boxes are good",
        _OWN,
        "https://cocodataset.org/#format-data",
        "annotations/*.json, images/NAME.jpg",
    ),
    "yolo": Source(
        read_yolo,
        "YOLO labels; images without labels are good",
        _OWN,
        "https://docs.ultralytics.com/datasets/detect/",
        "images/[SPLIT/]NAME.jpg, labels/[SPLIT/]NAME.txt, data.yaml",
    ),
}


def find_source(name: str) -> Source:
    """The source of that name. Raises OptionError."""
    if name not in SOURCES:
        raise OptionError(f"source {name!r} is not known; expected one of {', '.join(sorted(SOURCES))}")
    return SOURCES[name]
