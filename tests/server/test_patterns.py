"""Patterns and formats of strings: a grammar takes the texts that the pattern takes, as JSON writes them, and nothing that is not JSON."""

import itertools
import json
import re
from collections.abc import Callable

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.test_schema_counts import held

from corral_server.pattern_rules import pattern_rule
from corral_server.patterns import PatternError
from corral_server.schemas import UnusableSchemaError, schema_rules
from corral_server.string_formats import PATTERNS

SAMPLES = [
    "", "^$", "a", "^a", "a$", "^a|b$", "(^a|b)c$", "^(a|(b|c$))", "^(a$|b)", "^(?:^a|b$)$", "(^|x)a(b|$)", "x(a|b)*", "^", "$", "(^|a)",
    "a.c", "^.*$", r"^\d{3}-\d{4}$", r"^[\w.-]+@[\w-]+\.\w+$", r"^\S+$",
    "^(?:ab|c)+$", "^(?P<name>a)b?$", r"^a\/b\.c$", "^[^x]*$", r"^[^\s@]+@[^\s@]+$", '^"[a-c]"$', r"^\\[ntx]$", r"^[\\\]^-]+$", r"^\u00e9\x41\t$",
    "^[a-]$", "^{}$", "^a{,2}$", "^a{2,}$", "^(ab{0,2}){1,2}$", "^a{0}b$", "^(|a)b$", r"^[\n\"x]{2}$", r"^\D\W$", "^[à-ü]+$",
    r"^(\+|-)?[0-9]+(\.[0-9]+)?$",
]  # fmt: skip


def ecma(pattern: str) -> re.Pattern[str]:
    """What Python takes for the same: `$` and the classes mean in it what they mean in JSON schemas."""
    python = pattern.replace("$", r"\Z").replace("^{}", r"^\{\}")
    return re.compile(python.replace("{,2}", r"\{,2\}"), re.ASCII)


def as_python(expression: str) -> re.Pattern[str]:
    """A grammar's expression without names as a regular expression: classes are written alike, spaces say nothing."""
    pieces = re.findall(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|[^\s"\[]+', expression)
    return re.compile("".join(re.escape(re.sub(r"\\(.)", r"\1", piece[1:-1])) if piece[0] == '"' else piece for piece in pieces), re.ASCII)


LETTERS = 'abcx1-.@ \n\t"\\é'
TEXTS = ["".join(letters) for size in range(4) for letters in itertools.product(LETTERS, repeat=size)]


@pytest.mark.parametrize("pattern", SAMPLES)
def test_a_grammar_takes_what_a_pattern_takes(pattern: str) -> None:
    grammar, wanted = as_python(pattern_rule(pattern)), ecma(pattern)
    for text in TEXTS:
        assert bool(grammar.fullmatch(json.dumps(text, ensure_ascii=False))) == bool(wanted.search(text)), text
        if grammar.fullmatch(f'"{text}"'):  # as it stands: much of it is no JSON
            assert wanted.search(json.loads(f'"{text}"')), text

    @settings(max_examples=20, deadline=None)
    @given(st.from_regex(wanted, alphabet=LETTERS + "0123456789AB_+w/{},"))
    def check(text: str) -> None:
        assert grammar.fullmatch(json.dumps(text, ensure_ascii=False))

    check()


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"^\p{L}+$", ["aÄжß語"], ["a1", "a b", "_"]), (r"^\p{Lu}\p{Lowercase_Letter}*$", ["Über"], ["über", "ÜBER"]),
        (r"^[\p{N}_]+$", ["1²_"], ["a"]),
        (r"^\P{L}$", ["1", "-"], ["a", "ж"]), (r"^\u{1F600}\ud83d\ude00$", ["😀😀"], ["😀"]),
        (r"^(?i:aß)b$", ["Aßb", "aßb"], ["AßB"]), (r"^(?s:.).$", ["\nx"], ["x\n"]),
    ],
)  # fmt: skip
def test_what_python_says_otherwise(pattern: str, good: list[str], bad: list[str]) -> None:
    grammar = as_python(pattern_rule(pattern))
    assert [text for text in [*good, *bad] if grammar.fullmatch(json.dumps(text, ensure_ascii=False))] == good


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("(", "not closed"), (")", "never opened"), ("[a", "not closed"), ("*a", "nothing to repeat"), ("a**", "repeated"), ("a{3,2}", "{3,2}"),
        ("(?=a)b", "look around"), ("(?<!a)b", "look around"), ("(?i)a", "flags"), (r"(a)\1", r"\1"), (r"\ba", "border"), ("a^b", "^ and $"),
        ("(^a)*", "^ and $"), (r"[b-a]", "range"), ("\\", "backslash"), (r"\xg1", "hexadecimal"), (r"\p{Script=Greek}", r"\p"),
        ("a{100001}", "100000"),
        ("[]a", "nothing that it may be"),
        (r"^[\ud800-\udbff]$", "nothing that it may be"), ("^" + "(" * 5000 + ")" * 5000, "nests too deeply"),
    ],
)  # fmt: skip
def test_a_pattern_that_cannot_be_held_is_refused_by_what_is_wrong(pattern: str, says: str) -> None:
    with pytest.raises(PatternError, match=re.escape(says)):
        pattern_rule(pattern)
    with pytest.raises(UnusableSchemaError, match=r"^properties\.a of the schema: .*" + re.escape(says)):
        schema_rules({"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}, "")


def test_a_pattern_that_cannot_be_held_may_be_left_out() -> None:
    odd = {"type": "string", "pattern": r"^(?!x)\w+$", "maxLength": 3}
    assert schema_rules(odd, "", loose=True) == schema_rules({"type": "string", "maxLength": 3}, "")
    assert schema_rules({"pattern": r"\bx"}, "", loose=True) == schema_rules({"type": "string"}, "")


BOUNDED = [
    "^[a-c]+$", "^[a-c][a-c1-]*$", "^(ab|c)$", "^(x1*|[a-c]{1,9})$", "^a{2,}$", "^(a*b?)*c?$", "^[ab]+(-[ab]+)*$", "^a([a-c1-]*a)?$", "a.b", "b$", "",
    "^(a|bc|-{2,3}){2}x?$", "^(a?b?c?){3}$",
]  # fmt: skip


@pytest.mark.parametrize("pattern", BOUNDED)
@pytest.mark.parametrize("bounds", [(0, 3), (2, 2), (3, None), (2, 4), (1, 0), (0, 0), (5, 5)])
def test_lengths_hold_beside_a_pattern(pattern: str, bounds: tuple[int, int | None]) -> None:
    rules: dict[str, str] = {}
    wanted = ecma(pattern)
    texts = ["".join(letters) for size in range(6) for letters in itertools.product("abc1-x" if size < 5 else "abc-", repeat=size)]
    right = [text for text in texts if wanted.search(text) and bounds[0] <= len(text) and (bounds[1] is None or len(text) <= bounds[1])]
    if not right:
        with pytest.raises(PatternError, match="no text of the pattern"):
            pattern_rule(pattern, *bounds, rules.__setitem__)
        return
    taken = reader(pattern_rule(pattern, *bounds, rules.__setitem__), rules)
    assert [text for text in texts if taken(json.dumps(text))] == right


def reader(expression: str, rules: dict[str, str]) -> Callable[[str], bool]:
    """Whether the expression takes a text: what its rules say is a choice of one character and a rule behind it, or the end."""
    begin = next((name for name in rules if name in expression.split()), None)
    if begin is None:
        grammar = as_python(expression)
        return lambda text: grammar.fullmatch(text) is not None
    ways = {
        name: [(as_python(one), then) for one, then in re.findall(r"(.+?) (length-\d+-\d+)(?: \| |$)", rule)] for name, rule in rules.items()
    }  # fmt: skip

    def taken(text: str) -> bool:
        states = {begin}
        for character in json.loads(text):
            said = json.dumps(character, ensure_ascii=False)[1:-1]
            states = {then for name in states for one, then in ways[name] if one.fullmatch(said)}
        return any(rules[name].endswith('""') for name in states)

    return taken


def test_counting_that_takes_too_many_rules_is_left_out() -> None:
    rules: dict[str, str] = {}
    assert pattern_rule("^(a|b*c)*$", 0, 5000, rules.__setitem__) == pattern_rule("^(a|b*c)*$")
    assert not rules


def test_a_length_that_no_text_of_the_pattern_has_is_refused() -> None:
    with pytest.raises(PatternError, match="no text of the pattern has 5 to 9"):
        pattern_rule("^[a-z]{1,3}$", 5, 9)


FORMATS = {
    "date": (["2024-02-29", "2000-02-29", "1999-12-31"], ["2023-02-29", "1900-02-29", "2024-04-31", "0000-01-01", "24-1-1"]),
    "time": (["10:30:00Z", "23:59:59.25+01:00"], ["24:00:00Z", "10:30:00", "1:00:00Z"]),
    "date-time": (["2024-02-29T10:30:00Z"], ["2024-02-29 10:30:00Z", "2024-02-30T10:30:00Z"]),
    "duration": (["P1Y2M3DT4H5M6S", "PT30M", "P2W", "P1D"], ["P", "1D", "PT", "P1W2D"]),
    "email": (["a.b+c@example.org"], ["a@b", "a..b@c.de", "a b@c.de", "@c.de"]),
    "hostname": (["localhost", "a-b.example.org"], ["-a.de", "a_b", "a..b", ""]),
    "ipv4": (["127.0.0.1", "255.255.255.255"], ["256.0.0.1", "1.2.3", "01.2.3.4"]),
    "ipv6": (["::", "::1", "fe80::1", "1:2:3:4:5:6:7:8", "1::8", "1:2::7:8"], ["1:2:3", ":::", "1::2::3", "12345::", "1:2:3:4:5:6:7:8:9"]),
    "uri": (["https://example.org/a?b=c#d", "mailto:a@b.de", "urn:isbn:1"], ["//a", "a b:c", "http://a b", "1a:b", "http://%zz"]),
    "uuid": (["123e4567-e89b-12d3-a456-426614174000"], ["123e4567e89b12d3a456426614174000", "123e4567-e89b-12d3-a456-42661417400g"]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_takes_its_texts_and_no_others(name: str) -> None:
    assert FORMATS.keys() == PATTERNS.keys()
    grammar = as_python(pattern_rule(PATTERNS[name]))
    good, bad = FORMATS[name]
    assert [text for text in [*good, *bad] if grammar.fullmatch(json.dumps(text))] == good
    checker = jsonschema_rs.validator_for({"format": name}, validate_formats=True)

    @settings(max_examples=60, deadline=None)
    @given(st.from_regex(grammar, fullmatch=True))
    def check(said: str) -> None:
        checker.validate(json.loads(said))

    check()


@pytest.mark.model
@pytest.mark.parametrize("pattern", [*SAMPLES[:-20], *PATTERNS.values(), "^[a-z]{0,1000}$", r"^\p{L}+$"])
def test_llama_cpp_reads_the_rules(pattern: str) -> None:
    held({"type": "string", "pattern": pattern}, '"x"')
