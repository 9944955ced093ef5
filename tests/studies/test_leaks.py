"""The rule that no held-out text is trained on."""

import pytest

from inhibidistilbert.support.errors import UserError
from studies.distillation.leaks import check_no_leaks, normalized

TEST = {"test": ["A fine film, it is.", "Rock &amp; roll is here to stay", "12 monkeys"]}


@pytest.mark.parametrize(
    "copy",
    ["A fine film, it is.", "a fine film -- it is !", "“A fine film, it is”", "rock & roll is here to stay.", "12  Monkeys"],
)
def test_a_held_out_text_in_other_dress_is_a_leak(copy):
    with pytest.raises(UserError) as caught:
        check_no_leaks({"clean": ["another text"], "train": ["one text", copy, copy]}, TEST)
    for part in ("train ", "2 of its texts", "test", repr(copy)):
        assert part in str(caught.value)


@pytest.mark.parametrize("other", ["A fine film, is it.", "A fine film, it is. Or not.", "rock roll is here", "13 monkeys"])
def test_other_texts_are_none(other):
    check_no_leaks({"train": [other]}, TEST)


def test_texts_without_letters_are_passed_over():
    assert normalized("... !") == ""
    check_no_leaks({"train": ["...", ""]}, {"test": ["!", "?"]})
