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
    second = Answer(QUESTION, "acme/concierge@2", "acme/concierge@2", "fp_2", "Answer 2.")

    assert [attribute(answer, VERSIONS) for answer in (FIRST, second)] == [1, 2]


@pytest.mark.parametrize(
    ("part", "of_the_other"),
    [
        ("model", "acme/concierge@2"),
        ("model", "acme/concierge@3"),
        ("header", "acme/concierge@2"),
        ("fingerprint", "fp_2"),
        ("text", "Answer 2."),
    ],
)
def test_an_answer_with_one_part_of_another_version_is_of_none(part, of_the_other):
    with pytest.raises(ValueError, match="answered"):
        attribute(replace(FIRST, **{part: of_the_other}), VERSIONS)
