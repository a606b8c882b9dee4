"""Where `safelight generate` writes."""

from __future__ import annotations

import pytest
from PIL import Image

from safelight import InputError
from safelight.cli.destination import Destination, slug
from safelight.images import save_png

PICTURES = [("T-shirt/top", 3), ("Ankle boot", 4)]


def shown(destination: Destination, folder) -> list[str]:
    paths = [destination.picture(k, {}) for k in range(2)] + [destination.film(".gif")]
    return [path.relative_to(folder).as_posix() for path in paths]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("out.png", ["out-1.png", "out-2.png", "out-film.gif"]),
        ("pictures", ["pictures/t-shirt-top-3.png", "pictures/ankle-boot-4.png", "pictures/film.gif"]),
        ("v1.5", ["v1.5/t-shirt-top-3.png", "v1.5/ankle-boot-4.png", "v1.5/film.gif"]),
        ("a/{seed:03d}.png", ["a/003.png", "a/004.png", "a/film.gif"]),
        ("{prompt}/{index}", ["t-shirt-top/1.png", "ankle-boot/2.png", "t-shirt-top/film.gif"]),
    ],
)
def test_names(tmp_path, output, expected):
    assert shown(Destination(str(tmp_path / output), PICTURES), tmp_path) == expected


def test_one_picture_has_the_name_it_was_given(tmp_path):
    destination = Destination(str(tmp_path / "cat.png"), PICTURES[:1])
    assert destination.picture(0, {}) == tmp_path / "cat.png"
    assert destination.film(".png") == tmp_path / "cat-film.png"


def test_in_a_folder_only_the_same_picture_is_overwritten(tmp_path):
    destination = Destination(str(tmp_path), PICTURES)
    first = destination.picture(0, {"steps": 10})
    save_png(Image.new("L", (2, 2)), first, {"steps": 10})
    assert destination.picture(0, {"steps": 10}) == first
    other = destination.picture(0, {"steps": 20})
    assert other.name == "t-shirt-top-3-2.png"
    other.write_text("no picture of ours")
    assert destination.picture(0, {"steps": 20}).name == "t-shirt-top-3-3.png"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("cat.jpg", r"'cat.jpg'.*\.png"),
        ("{seeds}.png", "'seeds'; did you mean 'seed'"),
        ("{}.png", "valid names: index, prompt, seed"),
        ("{seed.png", "no pattern"),
        ("same-{prompt[0]}.png", r"prompt\[0\]"),
        ("{seed:zz}-{index}.png", "no pattern"),
    ],
)
def test_outputs_that_make_no_sense(output, message):
    with pytest.raises(InputError, match=message):
        Destination(output, PICTURES)


def test_a_pattern_must_tell_pictures_apart():
    with pytest.raises(InputError, match="gives two pictures one name"):
        Destination("{prompt}.png", [("cat", 1), ("cat", 2)])


def test_slugs():
    assert slug("A photo of a cat, 4k!") == "a-photo-of-a-cat-4k"
    assert slug("우주를 나는 고양이") == "우주를-나는-고양이"
    assert slug("../../etc") == "etc"
    assert slug("?!") == "picture"
    assert len(slug("word " * 50)) <= 60
    assert slug(7) == "7"
