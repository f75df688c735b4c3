"""Specs, splits, loading and identity; and a data set added by one file."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regrow.core.registry import load_file
from regrow.core.seeds import seeded
from regrow.data import DATASETS, Dataset, DataSpec, MemoryImages, fingerprint, load, register_data
from regrow.data.base import Raw, Split
from regrow.data.splits import draw, seeded_subset, split
from regrow.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REGROW_DATA", str(tmp_path / "data-root"))
    return tmp_path / "data-root"


@pytest.fixture
def registered() -> Iterator[dict[str, Raw]]:
    """Register one data set, `under-test`, whose content a test sets."""
    raws: dict[str, Raw] = {}

    @register_data("under-test")
    def under_test(spec: DataSpec) -> Raw:
        return raws["raw"]

    yield raws
    del DATASETS._values["under-test"]


def pixels(num: int, *, channels: int = 3, size: int = 8) -> torch.Tensor:
    shape = (num, channels, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded(0, "pixels"))


def halves(**changes: object) -> Raw:
    values: dict[str, object] = {
        "classes": ("a", "b"),
        "train": Split(images=pixels(20), labels=torch.arange(20) % 2),
        "test": Split(images=pixels(10), labels=torch.arange(10) % 2),
    }
    return Raw(**(values | changes))  # type: ignore[arg-type]


def test_spec_survives_json_and_shows_only_what_differs() -> None:
    spec = DataSpec("Digits", subset=100, mean=(0.5,), std=(0.25,), validation=0.1)
    assert spec.to_json() == {
        "name": "digits",
        "subset": 100,
        "validation": 0.1,
        "mean": [0.5],
        "std": [0.25],
    }
    assert DataSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert DataSpec.from_json("fashion_mnist") == DataSpec("fashion-mnist")
    assert DataSpec("hf:Some/Path_1").name == "hf:Some/Path_1"
    assert hash(spec) == hash(DataSpec.from_json(spec.to_json()))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "digit"}, "Unknown data set 'digit'. Did you mean 'digits'"),
        ({"name": "digits", "subsett": 5}, "Unknown option 'subsett'. Did you mean 'subset'"),
        ({"subset": 5}, "needs a 'name'"),
        (5, "must be a name or a mapping"),
        ({"name": 5}, "must be a text"),
        ({"name": "folder:"}, "needs a path after the colon"),
        ({"name": "digits", "validation": 1.0}, r"'validation' must be a share in \[0, 1\). Got"),
        ({"name": "digits", "validation": -0.1}, r"'validation' must be a share in \[0, 1\)"),
        ({"name": "digits", "subset": 0}, "'subset' must be an int of at least 1. Got 0"),
        ({"name": "digits", "subset": "all"}, "'subset' must be an int of at least 1. Got 'all'"),
        ({"name": "digits", "size": True}, "'size' must be an int"),
        ({"name": "digits", "seed": -1}, "'seed' must be an int of at least 0"),
        ({"name": "digits", "image_column": 3}, "'image_column' must be a text"),
        ({"name": "digits", "mean": [0.5]}, "'mean' and 'std' together"),
        ({"name": "digits", "mean": [0.5], "std": [0]}, "'std' must be a list of numbers above 0"),
        ({"name": "digits", "mean": "x", "std": [1]}, "'mean' must be a list of numbers"),
        (
            {"name": "digits", "mean": [0.5], "std": [1], "normalisation": "sfp"},
            "contradict each other",
        ),
    ],
)
def test_spec_refuses_what_cannot_be_meant(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataSpec.from_json(value)  # type: ignore[arg-type]


@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=8),
    share=st.floats(0, 1),
    seed=st.integers(0, 5),
)
@settings(deadline=None, max_examples=60)
def test_draw_is_exact_and_stratified(counts: list[int], share: float, seed: int) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=seeded(seed, "order"))]
    num = max(len(counts), round(share * len(labels)))
    drawn = draw(labels, num, seeded(seed, "draw"))
    assert int(drawn.sum()) == num
    taken = torch.bincount(labels[drawn], minlength=len(counts))
    ideal = torch.tensor(counts) * num / len(labels)
    assert (taken >= 1).all()
    if (ideal >= 1).all():  # where no class needs its one image guaranteed
        assert ((taken - ideal).abs() < 1).all()
    again = draw(labels, num, seeded(seed, "draw"))
    assert torch.equal(drawn, again)


def test_split_never_takes_all_of_a_class() -> None:
    labels = torch.tensor([0] * 50 + [1] * 2 + [2])
    held_out = split(labels, 0.9, seeded(0, "x"))
    assert set(labels[~held_out].tolist()) == {0, 1, 2}


def test_larger_subset_contains_smaller_one() -> None:
    labels = torch.arange(100) % 10
    small, large = (
        set(seeded_subset(labels, num, seed=3, option="subset").tolist()) for num in (20, 50)
    )
    assert len(small) == 20
    assert small < large
    assert small != set(seeded_subset(labels, 20, seed=4, option="subset").tolist())


def test_digits_are_split_by_the_seed_of_the_data() -> None:
    dataset = load(DataSpec("digits"))
    assert isinstance(dataset.train, MemoryImages)
    assert (len(dataset.train), len(dataset.test), dataset.validation) == (1438, 359, None)
    assert (dataset.channels, dataset.size, len(dataset.classes)) == (1, 8, 10)
    every = torch.cat([dataset.train.pixels, dataset.test.batch(torch.arange(359))])
    assert int(every.max()) == 255
    scaled = every.double() / 255
    assert dataset.mean == pytest.approx((float(scaled.mean()),), abs=5e-5)
    assert dataset.std == pytest.approx((float(scaled.std(correction=0)),), abs=5e-5)
    again, other = load(DataSpec("digits")), load(DataSpec("digits", seed=1))
    assert torch.equal(again.train.labels, dataset.train.labels)
    assert not torch.equal(other.train.labels, dataset.train.labels)


def test_digits_are_read_without_scikit_learns_code(monkeypatch: pytest.MonkeyPatch) -> None:
    # To import it takes as long as to import PyTorch, in each worker.
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert len(load(DataSpec("digits")).classes) == 10


@pytest.mark.parametrize("content", [b"1,2,3", b"\x1f\x8b\x08\x00cut"])
def test_digits_that_cannot_be_read_are_told(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "datasets" / "data"
    folder.mkdir(parents=True)
    (folder / "digits.csv.gz").write_bytes(content)
    found = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("regrow.data.digits.find_spec", lambda name: found)
    with pytest.raises(DataError, match=r"digits .*cannot be read: .*Reinstall scikit-learn"):
        load(DataSpec("digits"))


def test_digits_of_another_content_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regrow.data.digits.SHA256", "0" * 64)
    with pytest.raises(DataError, match=r"checksum .*Reinstall scikit-learn"):
        load(DataSpec("digits"))


def test_validation_is_a_share_of_the_subset_and_apart_from_it() -> None:
    whole = load(DataSpec("digits", subset=200))
    parted = load(DataSpec("digits", subset=200, validation=0.25, test_subset=50))
    assert parted.validation is not None
    assert (len(parted.train), len(parted.validation), len(parted.test)) == (150, 50, 50)
    assert sorted(rows(parted, "train") + rows(parted, "validation")) == sorted(
        rows(whole, "train")
    )
    # In proportion: 20 of each class or so, a quarter of them held out.
    assert (torch.bincount(parted.validation.labels) >= 4).all()


def rows(dataset: Dataset, part: str) -> list[bytes]:
    images = getattr(dataset, part)
    return [p.numpy().tobytes() for p in images.batch(torch.arange(len(images)))]


@pytest.mark.parametrize("option", ["subset", "test_subset"])
@pytest.mark.parametrize("num", [9, 5000])
def test_subset_that_cannot_be_drawn_is_refused(option: str, num: int) -> None:
    with pytest.raises(ConfigError, match=rf"'{option}' must be between 10 .* Got {num}"):
        load(DataSpec.from_json({"name": "digits", option: num}))


def test_size_resizes_and_crops_the_centre(registered: dict[str, Raw]) -> None:
    wide = torch.zeros(4, 3, 8, 16, dtype=torch.uint8)
    wide[:, :, :, 4:12] = 255  # what the centre crop keeps
    wide[0] = 0
    registered["raw"] = halves(
        train=Split(images=wide, labels=torch.tensor([0, 1, 0, 1])),
        test=Split(images=wide, labels=torch.tensor([0, 1, 0, 1])),
    )
    dataset = load(DataSpec("under-test", size=8))
    assert dataset.size == 8
    assert (dataset.train.batch(torch.tensor([1, 2, 3])) == 255).all()
    assert load(DataSpec("under-test", size=4)).train.batch(torch.tensor([0])).shape[2:] == (4, 4)
    with pytest.raises(DataError, match=r"must be squares of one size, got 16x8. Give `size`"):
        load(DataSpec("under-test"))


def test_a_size_without_room_is_refused_before_it_is_made(registered: dict[str, Raw]) -> None:
    registered["raw"] = halves()
    with pytest.raises(ConfigError, match=r"with 'size' 4096 its images need 1.5 GB, and 'mem"):
        load(DataSpec("under-test", size=4096, memory_limit_bytes=10**9))


def test_normalisation_by_name_by_value_and_computed(registered: dict[str, Raw]) -> None:
    raw = registered["raw"] = halves()
    scaled = raw.train.images.double() / 255  # type: ignore[union-attr]
    found = load(DataSpec("under-test"))
    assert found.mean == pytest.approx(scaled.mean(dim=(0, 2, 3)).tolist(), abs=1e-4)
    assert found.std == pytest.approx(scaled.std(dim=(0, 2, 3), correction=0).tolist(), abs=1e-4)
    named = load(DataSpec("under-test", normalisation="imagenet"))
    assert named.mean == (0.485, 0.456, 0.406)
    given = load(DataSpec("under-test", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
    assert given.std == (1.0, 1.0, 1.0)
    with pytest.raises(ConfigError, match=r"Unknown normalisation 'imagenett'. Did you mean"):
        load(DataSpec("under-test", normalisation="imagenett"))
    with pytest.raises(ConfigError, match=r"'mean' must have 3 value\(s\).* Got 1"):
        load(DataSpec("under-test", mean=(0.0,), std=(1.0,)))


def test_known_class_names_bring_published_normalisations(registered: dict[str, Raw]) -> None:
    from regrow.data.normalisation import CIFAR, CIFAR10_CLASSES, CIFAR10_SFP, recognised

    part = Split(images=pixels(20, size=32), labels=torch.arange(20) % 10)
    registered["raw"] = halves(classes=CIFAR10_CLASSES, train=part, test=part)
    assert load(DataSpec("under-test")).mean == CIFAR.mean
    assert load(DataSpec("under-test", normalisation="sfp")).std == CIFAR10_SFP.std
    assert load(DataSpec("under-test", size=16)).mean != CIFAR.mean
    hundred = ("aquarium_fish", "pickup_truck", "sweet_pepper", "willow_tree", *map(str, range(96)))
    assert set(recognised(hundred, 32)) == {"cifar", "sfp"}
    assert set(recognised(("n01440764 tench", "n01443537"), 64)) == {"imagenet"}
    assert recognised(("cats", "dogs"), 64) == {}


def test_images_of_one_colour_cannot_be_normalised(registered: dict[str, Raw]) -> None:
    black = Split(images=torch.zeros(4, 1, 8, 8, dtype=torch.uint8), labels=torch.arange(4) % 2)
    registered["raw"] = halves(train=black, test=black)
    with pytest.raises(DataError, match="channel has the same value in all training images"):
        load(DataSpec("under-test"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": Split(images=pixels(4), labels=torch.tensor([0, 1, 2, 1]))},
            r"image 2: the label 2 is outside the 2 classes \(0 to 1\) of the train split",
        ),
        (
            {"test": Split(images=pixels(2), labels=torch.tensor([0, -1]))},
            "image 1: the label -1 is outside",
        ),
        (
            {"train": Split(images=pixels(4), labels=torch.tensor([1, 1, 1, 1]))},
            "the class 'a' has no training image",
        ),
        (
            {"train": Split(images=pixels(4), labels=torch.tensor([0, 1, 1]))},
            r"expected one int64 label for each of its 4 images.* Got torch.int64 \[3\]",
        ),
        (
            {"train": Split(images=pixels(2).float(), labels=torch.tensor([0, 1]))},
            r"expected images as uint8 \[N, 1 or 3, H, W\]. Got torch.float32",
        ),
        (
            {"train": Split(images=None, labels=torch.tensor([0, 1]))},  # type: ignore[arg-type]
            "expected images as a tensor or Encoded",
        ),
        ({"classes": ("a",)}, "at least 2 classes, got 1"),
        (
            {"test": Split(images=pixels(2, size=9), labels=torch.tensor([0, 1]))},
            "squares of one size, got 8x8 and 9x9",
        ),
    ],
)
def test_what_a_data_set_hands_over_is_checked(
    registered: dict[str, Raw], changes: dict[str, object], message: str
) -> None:
    registered["raw"] = halves(**changes)
    with pytest.raises(DataError, match=message):
        load(DataSpec("under-test"))


def test_fingerprint_changes_with_content_options_only() -> None:
    plain = fingerprint(DataSpec("digits"))
    assert plain == fingerprint(DataSpec("digits", root="elsewhere"))
    others = [
        DataSpec("digits", subset=100),
        DataSpec("digits", seed=1),
        DataSpec("digits", validation=0.1),
        DataSpec("digits", mean=(0.0,), std=(1.0,)),
    ]
    assert len({plain, *map(fingerprint, others)}) == 5


def test_fingerprint_of_digits_is_pinned() -> None:
    # Results are kept under it: a change here means that all of them are lost.
    assert fingerprint(DataSpec("digits")) == "6bbac49aef84d80d692fea8502a1ad9c"


OWN_FILE = """
import torch
from regrow.data import DataSpec, Raw, Split, register_data

@register_data("two-greys")
def two_greys(spec: DataSpec) -> Raw:
    labels = torch.arange(100) % 2
    images = (labels * 255).to(torch.uint8).view(100, 1, 1, 1).expand(100, 1, 8, 8)
    return Raw(classes=("black", "white"), train=Split(images=images, labels=labels))
"""


def test_data_set_is_added_by_one_file(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN_FILE)
    load_file(file)
    spec = DataSpec("two-greys")
    dataset = load(spec)
    assert (len(dataset.train), len(dataset.test)) == (80, 20)
    assert dataset.classes == ("black", "white")
    assert dataset.augmentation == "shift"
    before = fingerprint(spec)
    file.write_text(OWN_FILE + "\n# edited\n")
    load_file(file)
    assert fingerprint(spec) != before


def test_data_that_are_read_in_another_way_have_another_fingerprint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = fingerprint(DataSpec("digits"))
    monkeypatch.setitem(DATASETS._revisions, "digits", 2)
    assert fingerprint(DataSpec("digits")) != before
