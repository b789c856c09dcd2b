import pytest

from rewards.normalize import parse_number, written_number


@pytest.mark.parametrize(
    ("text", "number"),
    [("42", 42.0), ("-2", -2.0), ("1,200", 1200.0), ("1,234,567.5", 1234567.5), ("1e3", 1000.0), (".5", 0.5)],
)
def test_numbers_are_read(text, number):
    assert parse_number(text) == number


@pytest.mark.parametrize("text", ["", "five", "5 apples", "5%", "1/2", "1.2.3", "12:30", "nan", "inf", "-inf", "1e999"])
def test_anything_else_is_none(text):
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,200", 1200.0),
        ("-1,234,567.5", -1234567.5),
        ("1200", 1200.0),
        ("**5**", 5.0),
        ("`5`", 5.0),
        ("5.", 5.0),
        ("0.3.", 0.3),
        ("1,200.50.", 1200.5),
        ("**0.3**.", 0.3),
        ("5.e3", 5000.0),
        (".5", 0.5),
        ("+2", 2.0),
        (" 1e3 ", 1000.0),
    ],
)
def test_written_numbers_are_read(text, number):
    assert written_number(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1,5",
        "5..",
        "0.3..",
        "12,00",
        "1,2000",
        ",5",
        "5 apples",
        "5 m",
        "5%",
        "$5",
        "1/2",
        "1-2",
        "2*3*4",
        "*3* 4",
        "five",
        "1_000",
        "nan",
        "inf",
        "1e999",
        "1 200",
        "x = 5",
        "5, 6",
    ],
)
def test_numbers_with_anything_else_are_none(text):
    assert written_number(text) is None
