"""CVAT for images 1.1, and invalid or malicious XML."""

import json
import xml.etree.ElementTree as ET

import pytest
from exchange_parts import line, make_images, predicted, sample, truth, write_manifest

from differad.data.exchange.registry import export_pairs, import_pairs
from differad.errors import ManifestError


@pytest.fixture
def manifest(tmp_path):
    return sample(tmp_path)


def read(manifest, xml, **options):
    path, out = manifest.with_name("annotations.xml"), manifest.with_name("out.jsonl")
    path.write_bytes(xml if isinstance(xml, bytes) else xml.encode())
    return import_pairs("cvat", path, manifest, out, **options), truth(out)


def document(inside, name="part #2 100%'&quot;.png", size='width="80" height="50"'):
    meta = "<meta><task><labels><label><name>defect</name></label></labels></task></meta>"
    image = f'<image id="0" name="{name}" {size}>{inside}</image>'
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{meta}{image}</annotations>'


def box(xtl="10", ytl="20", xbr="30", ybr="40", more='label="defect"'):
    return f'<box {more} occluded="0" xtl="{xtl}" ytl="{ytl}" xbr="{xbr}" ybr="{ybr}" z_order="0"></box>'


def test_the_published_layout(manifest, tmp_path):
    predictions = {"unseen": predicted([1, 2, 3.25, 4], scores=[0.5])}
    done = export_pairs("cvat", manifest, tmp_path / "sent", predictions=predictions)
    assert done["files"] == ["annotations.xml", "labels.json"]
    root = ET.parse(tmp_path / "sent" / "annotations.xml").getroot()
    assert (root.tag, root.findtext("version"), root.findtext("meta/task/mode")) == ("annotations", "1.1", "annotation")
    names = ["defect", "predicted", "normal", "abnormal"]
    assert [label.findtext("name") for label in root.iter("label")] == names
    assert [label["name"] for label in json.loads((tmp_path / "sent" / "labels.json").read_text())] == names
    labelled, normal, unseen = root.findall("image")
    name = "täst & <set>/part #0 100%'\".png"
    assert labelled.attrib == {"id": "0", "name": name, "width": "80", "height": "50"}
    assert [entry.tag for entry in labelled] == ["box", "box"]
    sides = {"xtl": "10.00", "ytl": "5.00", "xbr": "30.50", "ybr": "25.00"}
    assert labelled[0].attrib == {"label": "defect", "source": "manual", "occluded": "0", **sides, "z_order": "0"}
    assert [(entry.tag, entry.attrib) for entry in normal] == [("tag", {"label": "normal", "source": "manual"})]
    assert [(entry.get("label"), entry.get("source"), entry.get("xbr")) for entry in unseen] == [
        ("predicted", "auto", "3.25")
    ]
    assert [(entry.get("name"), entry.text) for entry in unseen.iter("attribute")] == [("score", "0.5000")]


def test_pairs_with_one_target_share_its_boxes(tmp_path):
    (target, *_) = make_images(tmp_path)
    lines = [line(target, "a", [[1, 2, 3, 4]]), line(target, "b", [[1, 2, 3, 4]])]
    export_pairs("cvat", write_manifest(tmp_path, lines), tmp_path / "sent")
    assert len(ET.parse(tmp_path / "sent" / "annotations.xml").findall("image")) == 1
    blank = write_manifest(tmp_path, [line(target, "a"), line(target, "b")], "blank.jsonl")
    assert read(blank, (tmp_path / "sent" / "annotations.xml").read_bytes())[1] == {
        "a": [[1, 2, 3, 4]],
        "b": [[1, 2, 3, 4]],
    }
    disagree = write_manifest(tmp_path, [lines[0], line(target, "b", [])])
    with pytest.raises(ManifestError, match=r"pairs 'a' and 'b' have one target.*different boxes"):
        export_pairs("cvat", disagree, tmp_path / "again")


def test_corrections_are_matched_by_the_end_of_a_name(manifest):
    inside = box() + box("0", "0", "5", "5", 'label="predicted"') + box("50", "30", "60", "40", 'label="scratch"')
    assert read(manifest, document(inside))[1]["unseen"] == [[10, 20, 30, 40], [50, 30, 60, 40]]


def test_the_tag_normal_means_normal(manifest):
    assert read(manifest, document('<tag label="normal" source="manual"></tag>'))[1]["unseen"] == []


def test_a_rotated_rectangle_becomes_the_axis_aligned_box_around_it(manifest):
    # 40 x 20 about (30, 25); by 90 degrees 20 x 40
    inside = box("10", "15", "50", "35", 'label="defect" rotation="90.00"')
    assert read(manifest, document(inside))[1]["unseen"] == [[20, 5, 40, 45]]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ('<polygon label="defect" points="10.5,20;30,20;30,41"/>', [10.5, 20, 30, 41]),
        ('<ellipse label="defect" cx="40" cy="25" rx="20" ry="10"/>', [20, 15, 60, 35]),
        ('<ellipse label="defect" cx="40" cy="25" rx="20" ry="10" rotation="90.0"/>', [30, 5, 50, 45]),
        # 4 x 3 pixels at (10, 20), along the rows: ....  .##.  .#..
        ('<mask label="defect" rle="5, 2, 2, 1, 2" left="10" top="20" width="4" height="3"/>', [11, 21, 13, 23]),
        ('<mask label="defect" rle="0, 12" left="76" top="47" width="4" height="3"/>', [76, 47, 80, 50]),
    ],
)
def test_shapes_are_imported_as_the_boxes_around_them(manifest, shape, expected):
    assert read(manifest, document(shape))[1]["unseen"] == [expected]


def test_texts_of_attributes_are_no_boxes(manifest):
    inside = box(more='label="(1,2),(3,4)"').replace(
        "></box>", '><attribute name="note">[0, 0, 9, 9]</attribute></box>'
    )
    assert read(manifest, document(inside))[1]["unseen"] == [[10, 20, 30, 40]]


def test_predictions_are_not_imported_as_truth(manifest):
    assert read(manifest, document('<points label="predicted" points="1,2"/>'))[1] == truth(manifest)


def test_boxes_past_the_edge_are_clipped_and_counted(manifest):
    done, back = read(manifest, document(box(xtl="-3", ybr="51")))
    assert back["unseen"] == [[0, 20, 30, 50]]
    assert done["cut_boxes"] == 1


BOMB = """<?xml version="1.0"?>
<!DOCTYPE annotations [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotations><version>&b;</version></annotations>"""
THIEF = """<?xml version="1.0"?>
<!DOCTYPE annotations [<!ENTITY file SYSTEM "file:///etc/hostname">]>
<annotations><image name="&file;"/></annotations>"""


@pytest.mark.parametrize(
    ("xml", "says"),
    [
        (BOMB, "declares a document type"),
        (THIEF, "declares a document type"),
        ('<!DOCTYPE annotations SYSTEM "http://nowhere.invalid/x.dtd"><annotations/>', "declares a document type"),
        ("", "not XML, or truncated"),
        (document(box())[:-20], "not XML, or truncated"),
        ("{}", "not XML, or truncated"),
        ('<?xml version="1.0" encoding="nonsense"?><annotations/>', "not XML, or truncated"),
        (b"<annotations>\xff</annotations>", "not XML, or truncated"),
        ("<html/>", "root element 'html'; expected 'annotations'"),
        ('<annotations><track id="0" label="defect"/></annotations>', "not for video"),
        ("<annotations>&undefined;</annotations>", "not XML, or truncated"),
    ],
)
def test_files_that_are_not_cvat_or_malicious(manifest, xml, says):
    with pytest.raises(ManifestError, match=says):
        read(manifest, xml, skip_bad=True)


def test_a_missing_file(manifest, tmp_path):
    with pytest.raises(ManifestError, match="no such file"):
        import_pairs("cvat", tmp_path / "nowhere.xml", manifest, tmp_path / "out.jsonl")
    with pytest.raises(ManifestError, match="cannot be read"):
        import_pairs("cvat", tmp_path, manifest, tmp_path / "out.jsonl")


WRONG = [
    (document("", name="nobody.png"), "image 0: image 'nobody.png' is the target of no pair"),
    (document("", name="../../good.png"), "is the target of no pair"),
    (document("", name=""), "'' is the target of no pair"),
    (document(box(), size='width="50" height="80"'), "labelled as 50x80 pixels, but the image is 80x50"),
    (document(box(), size='width="x" height="80"'), "width: 'x'; expected a finite number"),
    (document(box(xtl="x")), "xtl: 'x'; expected a finite number"),
    (document(box(xtl="nan")), "xtl: 'nan'"),
    (document(box(xbr="inf")), "xbr: 'inf'"),
    (document('<box label="defect" xtl="1"/>'), "ytl: None; expected a finite number"),
    (document(box(xtl="31")), "no area"),
    (document(box(xtl="90", xbr="95")), "no area inside the 80x50 image"),
    (document('<polygon label="defect" points="1,2;3,4"/>'), "a polygon of 2 points; expected three or more"),
    (document('<polyline label="defect" points="1,2;3,4;5,6"/>'), "holds a polyline; expected shapes with an area"),
    (document('<points label="defect" points="1,2;3,4;5,6"/>'), "holds a points"),
    (document('<skeleton label="defect"><points points="1,2"/></skeleton>'), "holds a skeleton"),
    (document('<polygon label="defect" points="1,2;3,x;5,6"/>'), "points: 'x'; expected a finite number"),
    (document('<polygon label="defect"/>'), "polygon: points"),
    (document('<ellipse label="defect" cx="40" cy="25" rx="0" ry="10"/>'), "both above 0"),
    (document('<mask label="defect" rle="5,2" left="1" top="1" width="4" height="3"/>'), "run lengths of 7 pixels"),
    (document('<mask label="defect" rle="12" left="1" top="1" width="4" height="3"/>'), "marks nothing"),
    (
        document('<mask label="defect" rle="0,1e18" left="0" top="0" width="1e9" height="1e9"/>'),
        "inside the 80x50 image",
    ),
    (document('<mask label="defect" rle="0,12.5" left="1" top="1" width="4" height="3"/>'), "expected a whole number"),
    (document('<tag label="normal"/><tag label="abnormal"/>'), "tags 'normal' and 'abnormal'"),
    (document(box() + '<tag label="normal"/>'), "has the tag 'normal' and 1 boxes; expected one or the other"),
]


@pytest.mark.parametrize(("xml", "says"), WRONG, ids=[says for _, says in WRONG])
def test_wrong_images_are_named_or_skipped(manifest, xml, says):
    with pytest.raises(ManifestError, match=says):
        read(manifest, xml)
    done, back = read(manifest, xml, skip_bad=True)
    assert done["skipped"] == 1
    assert back == truth(manifest)


def test_an_image_that_occurs_twice(manifest):
    twice = document(box()).replace("</annotations>", "") + document(box()).split("</meta>")[1]
    with pytest.raises(ManifestError, match="id 'unseen' occurs twice"):
        read(manifest, twice)


@pytest.mark.parametrize("letter", ["\x01", "\n"])
def test_names_that_xml_cannot_hold(tmp_path, letter):
    (target, *_) = make_images(tmp_path)
    (tmp_path / target).rename(tmp_path / f"a{letter}b.png")
    manifest = write_manifest(tmp_path, [line(f"a{letter}b.png", "a")])
    with pytest.raises(ManifestError, match="holds a character that cannot be written; rename it"):
        export_pairs("cvat", manifest, tmp_path / "sent")
