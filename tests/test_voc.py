"""VOC folders: what is read from them, and what their mistakes say."""

import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from regrow.data import Dataset, DataSpec, fingerprint, load
from regrow.data.boxed_images import BoxedImageFiles, BoxedImages, Truth, fitted
from regrow.data.shapes import shapes
from regrow.errors import ConfigError, DataError
from regrow.tasks import check_task

BCCD = Path(__file__).parents[2] / "shared" / "data" / "bccd-voc"
SIDES = (32, 64)
BOX = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>
<xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""
HEAD = "<annotation><size><width>{0}</width><height>{1}</height></size>"


def box(*corners: float, name: str = "cat", difficult: int = 0) -> str:
    return BOX.format(*corners, name=name, difficult=difficult)


def annotation(*boxes: str, size: tuple[float, float] = (48, 40)) -> str:
    return HEAD.format(*size) + "".join(boxes) + "</annotation>"


def folder(root: Path, annotations: dict[str, str], **splits: str) -> Path:
    """Write a VOC folder of images of 48x40 pixels."""
    inner = root / "VOC2007"
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (inner / part).mkdir(parents=True)
    for number, (name, text) in enumerate(annotations.items()):
        (inner / "Annotations" / f"{name}.xml").write_text(text)
        pixels = np.full((40, 48, 3), 20 * number, np.uint8)
        Image.fromarray(pixels).save(inner / "JPEGImages" / f"{name}.jpg")
    for split, names in splits.items():
        (inner / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names.split()) + "\n")
    return root


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A folder of two classes: three images to train on, one to test on."""
    whole = box(1, 1, 48, 40)
    return folder(
        tmp_path / "data",
        {
            "a": annotation(whole, box(5, 5, 20, 30, name="dog", difficult=1)),
            "b": annotation(box(0, 0, 10, 10)),
            "c": annotation(),
            "d": annotation(whole),
        },
        trainval="a b c",
        test="d",
    )


@dataclass(frozen=True)
class Read:
    """A data set, and its images at ``SIDES``."""

    data: Dataset
    train: BoxedImages
    test: BoxedImages

    @property
    def names(self) -> list[str]:
        """The names of the files that are trained on."""
        files: Any = self.data.train
        assert isinstance(files, BoxedImageFiles)
        return [path.stem for path in files.files.paths]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGROW_DATA", str(tmp_path / "cache"))


def read(root: Path, sides: tuple[int, int] = SIDES, **options: Any) -> Read:
    return read_spec(DataSpec(f"voc:{root}", **options), sides)


def read_spec(spec: DataSpec, sides: tuple[int, int] = SIDES) -> Read:
    data = load(spec)
    boxed: list[Any] = [data.train, data.test]
    train, test = (part.fitted(*sides) for part in boxed)
    return Read(data, train, test)


def rewrite(root: Path, name: str, text: str) -> None:
    (root / "VOC2007" / "Annotations" / f"{name}.xml").write_text(text)


def test_boxes_are_scaled_with_their_images(voc: Path) -> None:
    data = read(voc)
    assert data.data.classes == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (3, 1)
    pixels, truth = data.train.pixels(0), data.train.truths[0]
    assert pixels.shape == (3, 32, 38)
    assert pixels.dtype == torch.uint8
    scale = torch.tensor([38 / 48, 32 / 40]).repeat(2)
    # Written from 1 to the last pixel, read from edge to edge.
    expected = torch.tensor([[0.0, 0, 48, 40], [4, 4, 20, 30]]) * scale
    torch.testing.assert_close(truth.boxes, expected)
    assert truth.labels.tolist() == [1, 2]
    assert truth.difficult.tolist() == [False, True]


def test_boxes_counted_from_zero_lose_their_first_row(voc: Path) -> None:
    assert read(voc).train.truths[1].boxes[0, :2].tolist() == [0, 0]


def test_an_image_without_objects_stays(voc: Path) -> None:
    assert read(voc).train.truths[2].boxes.shape == (0, 4)


def test_mirroring_twice_is_the_same() -> None:
    truth = Truth(
        boxes=torch.tensor([[1.0, 2, 5, 9]]),
        labels=torch.tensor([1]),
        difficult=torch.tensor([False]),
    )
    assert truth.flipped(20).boxes.tolist() == [[15, 2, 19, 9]]
    assert torch.equal(truth.flipped(20).flipped(20).boxes, truth.boxes)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "8fbfd41d390526493edb091e2d9fc477"),
        ({"on_error": "skip"}, "27f9947d4b3fd38e3e6abf65d28397d0"),
        ({"subset": 2, "test_subset": 1, "seed": 3}, "7d1b2f280db7fe8047e443592bc88eef"),
        ({"classes": ("cat", "dog")}, "8009a8f3f232ae06a74bd326a5110cc8"),
        ({"memory_limit_bytes": 0}, "8fbfd41d390526493edb091e2d9fc477"),
    ],
)
def test_the_identity_of_a_folder_is_pinned(
    voc: Path, options: dict[str, Any], expected: str
) -> None:
    for image in (voc / "VOC2007" / "JPEGImages").iterdir():
        image.write_bytes(17 * b"x")  # encoders differ
    assert fingerprint(DataSpec(f"voc:{voc}", **options)) == expected


def test_the_identity_of_drawn_pictures_is_pinned() -> None:
    few = DataSpec("voc-shapes", subset=6, test_subset=3)
    assert fingerprint(few) == "6b7d0f17da57eab99aa3b4df508fb3ce"
    assert fingerprint(DataSpec("voc-shapes")) == "3ed846fa12e87283105749bf0b02301d"


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (500, 100), (37, 1000), (600, 600)])
def test_fitted_sides_are_exact_where_they_bind(size: tuple[int, int]) -> None:
    width, height = fitted(size, 600, 1000)
    assert max(width, height) == 1000 or min(width, height) == 600
    assert max(width, height) <= 1000


def test_validation_images_are_tested_on_without_a_test_list(tmp_path: Path) -> None:
    names = {name: annotation(box(1, 1, 9, 9)) for name in "abc"}
    data = read(folder(tmp_path / "x", names, train="a b", val="c"))
    assert (len(data.train), len(data.test)) == (2, 1)


def test_train_and_val_are_trained_on_where_there_is_a_test(tmp_path: Path) -> None:
    names = {name: annotation(box(1, 1, 9, 9)) for name in "abc"}
    data = read(folder(tmp_path / "x", names, train="a", val="b", test="c"))
    assert (len(data.train), len(data.test)) == (2, 1)


def test_larger_subsets_contain_smaller_ones(tmp_path: Path) -> None:
    names = {name: annotation(box(1, 1, 9, 9)) for name in "abcdefgh"}
    root = folder(tmp_path / "x", names, train="a b c d e f g", test="h")
    draws = [set(read(root, subset=num).names) for num in range(1, 8)]
    assert [len(draw) for draw in draws] == list(range(1, 8))
    assert all(small < large for small, large in pairwise(draws))


def test_pictures_decoded_ahead_are_those_in_memory(voc: Path) -> None:
    kept, streamed = read(voc).train, read(voc, memory_limit_bytes=0).train
    streamed.announce([1, 0, 2])
    for index in range(3):
        assert torch.equal(kept.pixels(index), streamed.pixels(index))


def test_identity_is_content_not_place(voc: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(voc, tmp_path / "elsewhere")
    spec = DataSpec(f"voc:{voc}")
    assert fingerprint(DataSpec(f"voc:{copy}")) == fingerprint(spec)
    assert fingerprint(DataSpec(f"voc:{voc}", on_error="skip")) != fingerprint(spec)
    rewrite(copy, "b", annotation(box(1, 1, 11, 11)))
    assert fingerprint(DataSpec(f"voc:{copy}")) != fingerprint(spec)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", r"b\.xml: the annotation is not valid XML"),
        (annotation(size=(0, 0)), r"b\.xml: the size of the image is unknown \(got 0x0\)"),
        ("<annotation/>", r"b\.xml: expected a number in <size/width>, got None"),
        (annotation(size=(40, 48)), r"b\.xml: it gives the size 40x48, its image has 48x40"),
        (
            annotation(box(9, 9, 9, 9)),
            r"b\.xml: the box of object 1 \(cat\) has no area: it is",
        ),
        (annotation(size=(48.5, 40)), r"it gives the size 48\.5x40, its image has 48x40"),
        (annotation(box(0, 9, 0, 20)), r"has no area: it ends at 0"),
        (annotation(box(9, 9, 5, 20)), r"ends before it begins \(got 9, 9, 5, 20\)"),
        (annotation(box(9, 20, 12, 9)), r"ends before it begins"),
        (annotation(box(0.1, 0.2, 0.5, 0.9)), r"is given in shares of the image, not in pixels"),
        (annotation(box(0, 0, 1, 1)), r"is given in shares of the image"),
        (annotation(box(float("nan"), 1, 9, 9)), r"expected a number in <bndbox/xmin>, got 'nan'"),
        (annotation(box(1, 1, 9, float("inf"))), r"expected a number in <bndbox/ymax>"),
        (annotation(size=(48, 40)).replace("40<", "<"), r"expected a number in <size/height>"),
        (
            annotation(
                box(1, 1, 5, 5).replace("</object>", "<bndbox><xmin>1</xmin></bndbox></object>")
            ),
            r"object 1 \(cat\) must have one box, got 2",
        ),
        (annotation("<object><name>cat</name><polygon/></object>"), r"must have one box, got 0"),
        (
            '<?xml version="1.0" encoding="gb2312"?>' + annotation(),
            r"the annotation is not valid XML",
        ),
        (
            '<?xml version="1.0" encoding="martian"?>' + annotation(),
            r"the annotation is not valid XML",
        ),
        (annotation(box(1, 1, 49, 9)), r"b\.xml: the box of object 1 \(cat\) leaves the image"),
        (annotation(box(-1, 1, 9, 9)), r"leaves the image of 48x40 \(got -1, 1, 9, 9\)"),
        (annotation(box(1, 1, 9, 9, name="")), r"b\.xml: object 1 has no name"),
        (
            annotation(box(1, 1, 9, 9)).replace("<difficult>0", "<difficult>True"),
            r"b\.xml: expected <difficult> of object 1 as 0 or 1, got 'True'",
        ),
        (
            annotation(box(1, 1, 9, 9)).replace("<xmin>1</xmin>", ""),
            r"b\.xml: expected a number in <bndbox/xmin>, got None",
        ),
    ],
)
def test_a_broken_annotation_is_named_or_left_out(voc: Path, text: str, message: str) -> None:
    rewrite(voc, "b", text)
    with pytest.raises(DataError, match=message):
        read(voc)
    data = read(voc, on_error="skip")
    assert data.names == ["a", "c"]
    notice = data.data.notices[0]
    assert "1 of 4 images are left out" in notice
    assert "b.xml" in notice


@pytest.mark.parametrize(
    ("corners", "read_as"),
    [
        ((7, 3, 7, 9), [6, 2, 7, 9]),
        ((3, 7, 9, 7), [2, 6, 9, 7]),
        ((0, 0, 1, 5), [0, 0, 1, 5]),
        ((48, 1, 48, 40), [47, 0, 48, 40]),
    ],
)
def test_a_box_of_one_row_of_pixels_is_read(
    voc: Path, corners: tuple[float, ...], read_as: list[float]
) -> None:
    rewrite(voc, "b", annotation(box(*corners)))
    boxes = read(voc, (40, 48)).train.truths[1].boxes
    assert boxes.tolist() == [read_as]


def test_a_split_of_which_nothing_is_left_says_why(voc: Path) -> None:
    (voc / "VOC2007" / "ImageSets" / "Main" / "trainval.txt").write_text("a.jpg\nb.jpg\n")
    with pytest.raises(DataError, match=r"no image of a split is left\. .*a\.jpg\.xml: the annot"):
        read(voc, on_error="skip")


def test_a_link_that_leads_nowhere_is_left_out(voc: Path) -> None:
    file = voc / "VOC2007" / "JPEGImages" / "b.jpg"
    file.unlink()
    file.symlink_to(voc / "nowhere")
    assert len(read(voc, on_error="skip").train) == 2
    assert fingerprint(DataSpec(f"voc:{voc}", on_error="skip"))


def test_parts_of_an_object_have_boxes_of_their_own(voc: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
    rewrite(voc, "b", annotation(box(1, 1, 9, 9).replace("</object>", part)))
    assert len(read(voc).train.truths[1].boxes) == 1


def test_lists_may_have_flags_names_with_spaces_and_a_mark_of_bytes(tmp_path: Path) -> None:
    names = {name: annotation(box(1, 1, 9, 9)) for name in ("a", "my b 1", "c", "d")}
    root = folder(tmp_path / "x", names, trainval="a", test="d")
    lists = root / "VOC2007" / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text("\ufeffa  1\nmy b 1 -1\nc -1\n", encoding="utf-8")
    assert read(root).names == ["a", "my b 1", "c"]
    (lists / "trainval.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"trainval\.txt: the list is not in UTF-8"):
        read(root)


def test_a_test_list_without_annotations_is_left_out(tmp_path: Path) -> None:
    names = {name: annotation(box(1, 1, 9, 9)) for name in "abc"}
    root = folder(tmp_path / "x", names, train="a b", val="c", test="e f")
    data = read(root)
    assert (len(data.train), len(data.test)) == (2, 1)
    (notice,) = data.data.notices
    assert "the test list is left out, for none of its 2 images is annotated" in notice


def test_a_turned_picture_is_refused_because_its_boxes_may_not_be_turned(voc: Path) -> None:
    file = voc / "VOC2007" / "JPEGImages" / "b.jpg"
    exif = Image.Exif()
    exif[274] = 3
    Image.new("RGB", (48, 40)).save(file, exif=exif)
    with pytest.raises(DataError, match=r"b\.jpg: by its EXIF the image is stored rotated"):
        read(voc)
    assert len(read(voc, on_error="skip").train) == 2


def test_two_images_of_one_name_are_refused(voc: Path) -> None:
    Image.new("RGB", (48, 40)).save(voc / "VOC2007" / "JPEGImages" / "b.png")
    with pytest.raises(DataError, match=r"b\.png: it has the same name as b\.jpg"):
        read(voc)


def test_a_missing_annotation_is_named(voc: Path) -> None:
    (voc / "VOC2007" / "Annotations" / "b.xml").unlink()
    with pytest.raises(DataError, match=r"b\.xml: the annotation cannot be read"):
        read(voc)
    assert len(read(voc, on_error="skip").train) == 2


def test_a_missing_image_is_named(voc: Path) -> None:
    (voc / "VOC2007" / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"b\.xml: expected its image .*b\.jpg, got none"):
        read(voc)


@pytest.mark.parametrize("kept", [0, 400])  # no header; a header and half of the pixels
def test_an_unreadable_image_is_named_or_left_out(voc: Path, kept: int) -> None:
    file = voc / "VOC2007" / "JPEGImages" / "b.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (40, 48, 3), np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[: kept * 2])
    with pytest.raises(DataError, match=r"b\.jpg: the image cannot be read"):
        read(voc)
    data = read(voc, on_error="skip")
    assert data.names == ["a", "c"]
    assert len(data.train.truths) == 2
    assert "b.jpg" in data.data.notices[0]


def test_an_unreadable_image_is_left_out_before_it_is_streamed(voc: Path) -> None:
    file = voc / "VOC2007" / "JPEGImages" / "b.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (40, 48, 3), np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:800])  # its size can still be read
    with pytest.raises(DataError, match=r"b\.jpg: the image cannot be read"):
        load(DataSpec(f"voc:{voc}", memory_limit_bytes=0))
    data = read(voc, memory_limit_bytes=0, on_error="skip")
    assert data.names == ["a", "c"]
    assert "b.jpg" in data.data.notices[0]


def test_an_unreadable_image_is_named_when_streamed(voc: Path) -> None:
    data = read(voc, memory_limit_bytes=0)
    (voc / "VOC2007" / "JPEGImages" / "b.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"b\.jpg: the image cannot be read"):
        data.train.pixels(1)


def test_a_class_that_is_not_expected_is_named(voc: Path) -> None:
    with pytest.raises(DataError, match=r"a\.xml: Unknown class 'dog'.*Known: cat"):
        read(voc, classes=("cat",))


def test_a_class_without_a_training_box_is_refused(voc: Path) -> None:
    with pytest.raises(DataError, match="no training image has a box of the class 'cow'"):
        read(voc, classes=("cat", "dog", "cow"))


def test_classes_that_the_test_images_lack_are_said(voc: Path) -> None:
    (notice,) = read(voc).data.notices
    assert "no test image has an object of 1 of the 2 classes ('dog')" in notice
    rewrite(voc, "d", annotation(box(1, 1, 9, 9), box(1, 1, 9, 9, name="dog", difficult=1)))
    assert read(voc).data.notices == (notice,)
    rewrite(voc, "d", annotation(box(1, 1, 9, 9), box(1, 1, 9, 9, name="dog")))
    assert not read(voc).data.notices


def test_test_images_without_an_object_to_find_are_refused(voc: Path) -> None:
    for text in (annotation(), annotation(box(1, 1, 9, 9, difficult=1))):
        rewrite(voc, "d", text)
        with pytest.raises(DataError, match="every detector would score 0"):
            read(voc)


def test_a_folder_in_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected Annotations, ImageSets/Main and JPEGImages"):
        read(tmp_path)
    with pytest.raises(DataError, match="there is no folder"):
        read(tmp_path / "nowhere")


def test_two_data_sets_in_one_folder_are_refused(voc: Path) -> None:
    shutil.copytree(voc / "VOC2007", voc / "VOC2012")
    with pytest.raises(DataError, match="holds 2 data sets"):
        read(voc)


def test_trainval_without_val_is_trained_on_where_no_other_list_is_there(voc: Path) -> None:
    lists = voc / "VOC2007" / "ImageSets" / "Main"
    (lists / "test.txt").unlink()
    (lists / "val.txt").write_text("b\n")
    found = read(voc)
    assert sorted(found.names) == ["a", "c"]
    assert len(found.data.test) == 1


def test_a_folder_without_lists_is_refused(voc: Path) -> None:
    (voc / "VOC2007" / "ImageSets" / "Main" / "test.txt").unlink()
    with pytest.raises(DataError, match=r"to test on \(test.txt or val.txt\). Got trainval.txt"):
        read(voc)


def test_an_image_in_both_lists_is_refused(voc: Path) -> None:
    (voc / "VOC2007" / "ImageSets" / "Main" / "test.txt").write_text("d\na\n")
    with pytest.raises(DataError, match="1 images are in the training and in the test list"):
        read(voc)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "voc:"}, "'voc:' needs a path after the colon"),
        ({"name": "voc:x", "on_error": "go on"}, "Unknown on_error 'go on'"),
        ({"name": "voc:x", "subset": 0}, "the 'subset' must be an int of at least 1. Got 0"),
        ({"name": "voc:x", "classes": ("a", "a")}, "'classes' must be a list of different names"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataSpec(**options)


@pytest.mark.parametrize(
    "options",
    [{"size": 32}, {"validation": 0.1}, {"normalisation": "imagenet"}, {"target": "x"}],
)
def test_options_of_other_data_are_refused(options: dict[str, Any]) -> None:
    (option,) = options
    with pytest.raises(ConfigError, match=f"its images have boxes, so it takes no '{option}'"):
        load(DataSpec("voc-shapes", **options))


def test_boxes_are_learnt_by_detection_alone() -> None:
    check_task(load(DataSpec("voc-shapes", task="detection")))
    with pytest.raises(ConfigError, match=r"has boxes, of images\. Tasks for it: detection"):
        check_task(load(DataSpec("voc-shapes", task="regression")))
    with pytest.raises(
        ConfigError, match=r"'detection' predicts boxes, from images\. .* has a class"
    ):
        check_task(load(DataSpec("digits", task="detection")))


def test_other_data_take_no_classes() -> None:
    with pytest.raises(ConfigError, match="its examples are images, so it takes no 'classes'"):
        load(DataSpec("digits", classes=("1", "2")))


def test_unknown_options_offer_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"Unknown option 'on_eror'\. Did you mean 'on_error'"):
        DataSpec.from_json({"name": "voc:x", "on_eror": "skip"})
    assert DataSpec.from_json("voc:x") == DataSpec("voc:x")


def test_shapes_are_drawn_alike_and_boxes_hold_their_paint() -> None:
    data, again = (read_spec(DataSpec("voc-shapes", subset=num, test_subset=2)) for num in (6, 4))
    assert data.data.classes == ("circle", "square", "triangle")
    assert (len(data.train), len(data.test), len(again.train)) == (6, 2, 4)
    for index in range(4):
        assert torch.equal(data.train.pixels(index), again.train.pixels(index))
    assert not torch.equal(data.train.pixels(0), data.test.pixels(0))
    for index in range(6):
        pixels, truth = data.train.pixels(index), data.train.truths[index]
        bright = (pixels > 90).all(dim=0).nonzero().flip(1).float() + 0.5  # x, y of paint
        assert len(bright)
        low, high = truth.boxes[:, None, :2], truth.boxes[:, None, 2:]
        inside = ((bright >= low) & (bright <= high)).all(dim=2)
        assert inside.any(dim=0).all()
        x, y = truth.boxes[:, 2:].amax(dim=0).tolist()
        assert x <= pixels.shape[2] + 1e-3
        assert y <= pixels.shape[1] + 1e-3


def test_images_of_shapes_are_the_same_each_time_and_equally_many_of_each() -> None:
    first, second = shapes(DataSpec("shapes")), shapes(DataSpec("shapes"))
    assert isinstance(first.train.images, torch.Tensor)
    assert isinstance(second.train.images, torch.Tensor)
    assert torch.equal(first.train.images, second.train.images)
    assert first.train.images.shape == (1200, 3, 32, 32)
    assert first.train.labels.bincount().tolist() == [400, 400, 400]
    assert first.test is not None
    assert first.test.labels.bincount().tolist() == [100, 100, 100]
    # A circle covers about pi / 4 of its box, a triangle half of it, a square all.
    paint = (first.train.images > 90).all(dim=1).flatten(1).sum(dim=1).float()
    circle, square, triangle = (paint[first.train.labels == k].mean() for k in range(3))
    assert circle / square == pytest.approx(torch.pi / 4, rel=0.1)
    assert triangle / square == pytest.approx(1 / 2, rel=0.1)


def test_more_shapes_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="there are 32 images to train on"):
        load(DataSpec("voc-shapes", subset=33))


def test_shapes_are_known_by_what_draws_them() -> None:
    spec = DataSpec("voc-shapes", subset=4)
    assert fingerprint(spec) == fingerprint(DataSpec("voc-shapes", subset=4))
    assert fingerprint(spec) != fingerprint(DataSpec("voc-shapes", subset=5))


def test_more_images_than_there_are_is_refused(voc: Path) -> None:
    with pytest.raises(ConfigError, match=r"'subset' must be at most 3, all there are\. Got 4"):
        read(voc, subset=4)


@pytest.mark.skipif(not BCCD.is_dir(), reason="the blood cells are not at ../shared/data/bccd-voc")
def test_the_two_broken_annotations_of_the_blood_cells_are_named() -> None:
    with pytest.raises(DataError, match=r"BloodImage_00338\.xml.*has no area"):
        read(BCCD)
    data = read(BCCD, on_error="skip")
    assert data.data.classes == ("Platelets", "RBC", "WBC")
    assert len(data.train) + len(data.test) == 362
    assert "2 of 364 images are left out" in data.data.notices[0]
