"""The proof of which version answered, in the example of a version's life, can fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
from live_traffic import Answer, Question, Version, attribute

QUESTION = Question("Is there a sauna?")
VERSIONS = {
    number: Version(f"acme/concierge@{number}", f"fp_{number}", {QUESTION: f"Answer {number}."}) for number in (1, 2)
}
FIRST = Answer(QUESTION, "acme/concierge@1", "acme/concierge@1", "fp_1", "Answer 1.")


def test_an_answer_is_of_the_version_that_everything_in_it_names():
    """Name, header, fingerprint and text: those of the version when it was asked alone."""
    second = Answer(QUESTION, "acme/concierge@2", "acme/concierge@2", "fp_2", "Answer 2.")

    assert [attribute(answer, VERSIONS) for answer in (FIRST, second)] == [1, 2]


@pytest.mark.parametrize(
    ("part", "of_the_other", "told"),
    [
        ("model", "acme/concierge@2", "concierge@2 answered with the header 'acme/concierge@1'"),
        ("model", "acme/concierge@3", "which is no version"),
        ("header", "acme/concierge@2", "the header 'acme/concierge@2'; alone it is 'acme/concierge@1'"),
        ("fingerprint", "fp_2", "the fingerprint 'fp_2'; alone it is 'fp_1'"),
        ("text", "Answer 2.", "the text 'Answer 2.'; alone it is 'Answer 1.'"),
    ],
)
def test_an_answer_with_one_part_of_another_version_is_of_none(part, of_the_other, told):
    """It is refused with what does not fit."""
    with pytest.raises(ValueError, match=told):
        attribute(replace(FIRST, **{part: of_the_other}), VERSIONS)
