from datamodules.text_table import text_table


def test_numbers_stand_below_each_other_and_texts_begin_below_each_other():
    rows = [("kind", "count", "mean", "note"), ("video", "1,204", "-", "a"), ("OCR", "7", "+0.25", "long")]
    assert text_table(rows) == [
        "  kind   count   mean  note",
        "  video  1,204      -  a",
        "  OCR        7  +0.25  long",
    ]
