from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex.adapters.errors import InvalidName
from loraplex.adapters.names import (
    MAX_MODEL_NAME_LENGTH,
    ModelName,
    check_alias,
    check_base_name,
    check_slug,
    parse_adapter_name,
    parse_model_name,
    version_number,
    without_base,
)

slugs = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True)
aliases = st.from_regex(r"[a-z][a-z0-9._-]{0,62}", fullmatch=True)
numbers = st.integers(1, 999_999_999).map(str)


@given(st.builds(ModelName, st.none() | slugs, slugs, st.none() | aliases | numbers))
def test_names_read_back_as_they_are_written(name: ModelName):
    """Every name that can be built is parsed into the parts it was built from."""
    assert parse_model_name(str(name)) == name


bases = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}", fullmatch=True)


@given(bases, st.builds(ModelName, st.none() | slugs, slugs, st.none() | aliases | numbers))
def test_a_base_before_a_colon_is_told_from_every_name(base: str, name: ModelName):
    """It is taken off once, and only where it is the base that was asked for; no name is mistaken for one with it."""
    assert without_base(f"{base}:{name}", base) == str(name)
    assert without_base(str(name), base) == str(name)
    for other in (f"{base}:{base}:{name}", f"x{base}:{name}", f"{base}:"):
        with pytest.raises(InvalidName):
            parse_model_name(without_base(other, base))


def test_an_adapters_name_has_no_version():
    """What cannot be loaded or deleted by name alone is refused, with the field that held it."""
    assert parse_adapter_name("acme/bot", "lora_name") == ModelName("acme", "bot", None)
    for name in ("bot@7", "bot@prod", "a/b/c", ""):
        with pytest.raises(InvalidName, match=r"^lora_name: "):
            parse_adapter_name(name, "lora_name")


@given(st.text(max_size=MAX_MODEL_NAME_LENGTH + 20))
def test_any_text_is_parsed_or_refused(text: str):
    """Text from outside is a name that reads back as it came, or InvalidName: nothing else happens."""
    try:
        parsed = parse_model_name(text)
    except InvalidName:
        return
    assert str(parsed) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "@",
        "acme/",
        "/bot",
        "bot@",
        "a/b/c",
        "bot@prod@prod",
        "../bot",
        "acme/..",
        "Bot",
        "böt",
        "bot\n",
        "bot ",
        "bot\x00",
        "-bot",
        "bot@0",
        "bot@007",
        "bot@1234567890",
        "bot@7up",
        "b" * 64,
        "b" * 10_000,
    ],
)
def test_malformed_names_are_refused(text: str):
    """Paths, control characters, capitals, empty parts, zero-padded and oversized names are no names."""
    with pytest.raises(InvalidName) as refused:
        parse_model_name(text)

    assert len(str(refused.value)) < 400


def test_the_refusal_names_the_field():
    """The error says which field broke which rule."""
    with pytest.raises(InvalidName, match="slug: 'A B' is not a valid name: use 1 to 63 characters"):
        check_slug("A B", "slug")


@given(numbers)
def test_digits_are_a_version_and_never_an_alias(number: str):
    """No text is both the number of a version and an alias."""
    assert version_number(number) == int(number)
    with pytest.raises(InvalidName):
        check_alias(number)


def test_base_models_have_no_slash():
    """A base model keeps its capitals, but what stands before a slash is a tenant."""
    assert check_base_name("SmolLM2-135M-Instruct") == "SmolLM2-135M-Instruct"
    with pytest.raises(InvalidName):
        check_base_name("org/model")
