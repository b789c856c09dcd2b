from datamodules.text_table import text_table


def test_what_a_terminal_would_obey_is_escaped():
    rows = [("kind", "n"), ("\x1b[2J\u202eRCO\n", "1")]
    assert text_table(rows) == ["  kind                n", r"  \x1b[2J\u202eRCO\n  1"]


def test_numbers_stand_below_each_other_and_texts_begin_below_each_other():
    rows = [("kind", "count", "mean", "note"), ("video", "1,204", "-", "a"), ("OCR", "7", "+0.25", "long")]
    assert text_table(rows) == [
        "  kind   count   mean  note",
        "  video  1,204      -  a",
        "  OCR        7  +0.25  long",
    ]
