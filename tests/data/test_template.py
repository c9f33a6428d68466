import pytest

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.data.template import Template, clean

DEFAULT = "title: {title}, category: {category}"


@pytest.mark.parametrize(
    ("title", "category", "text"),
    [
        ("Toy Story", "Animation", "title: Toy Story, category: Animation"),
        ("Toy Story", "", "title: Toy Story"),
        ("", "Animation", "category: Animation"),
        ("", "", ""),
        ('Say "cheese" 🧀', "עברית", 'title: Say "cheese" 🧀, category: עברית'),
        ("tab\there\nand there", "", "title: tab here and there"),
    ],
)
def test_default_template(title: str, category: str, text: str) -> None:
    template = Template(DEFAULT, ["title", "category"])
    assert template({"title": title, "category": category}) == text


def test_words_after_the_last_field_stay() -> None:
    template = Template("<{title}>", ["title"])
    assert template({"title": "X"}) == "<X>"
    assert template({"title": " "}) == ""


def test_braces_in_a_value_are_text() -> None:
    assert Template("{title}", ["title"])({"title": "a {category} b"}) == "a {category} b"


@pytest.mark.parametrize("template", ["{brand}", "no field", "{title", "{}"])
def test_a_template_that_does_not_fit_is_refused(template: str) -> None:
    with pytest.raises(SettingError, match="item_template"):
        Template(template, ["title", "category"])


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("{'Puzzles', 'Toys & Games'}", "Puzzles, Toys & Games"),
        ('["one"]', "one"),
        ("('a', 'b',)", "a, b"),
        ("[]", ""),
        ("[[not a list", "[[not a list"),
        ("(500) Days of Summer (2009)", "(500) Days of Summer (2009)"),
        ("[Latest Edition] Mask (10pcs)", "[Latest Edition] Mask (10pcs)"),
        ("  a \u00a0 b ", "a b"),
    ],
)
def test_clean(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned
