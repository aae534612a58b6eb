"""Who owns a served name."""

from hypothesis import given
from hypothesis import strategies as st

from corral.control.naming import Names


def names_of(*models) -> Names:
    """(key, created, names, held)"""
    names = Names()
    for key, created, wanted, held in models:
        names.put(key, created, wanted, held)
    names.resolve()
    return names


def test_the_oldest_has_the_bare_name_and_the_other_its_full_one():
    names = names_of(("b/chat", 1.0, ["chat"], []), ("a/chat", 2.0, ["chat"], []))
    assert names.served("b/chat") == ("b/chat", "chat")
    assert names.served("a/chat") == ("a/chat",)
    assert names.taken("a/chat") == {"chat": "b/chat"}


def test_ties_are_settled_by_the_full_name():
    names = names_of(("b/chat", 1.0, ["chat"], []), ("a/chat", 1.0, ["chat"], []))
    assert names.served("a/chat") == ("a/chat", "chat")


def test_who_holds_a_name_in_its_status_keeps_it_against_an_older_one():
    names = names_of(("a/old", 1.0, ["old", "gpt"], []), ("a/new", 2.0, ["new", "gpt"], ["a/new", "new", "gpt"]))
    assert names.served("a/new") == ("a/new", "new", "gpt")
    assert names.taken("a/old") == {"gpt": "a/new"}


def test_a_name_passes_on_when_its_owner_goes_or_lets_it_go():
    names = names_of(("a/x", 1.0, ["x", "gpt"], []), ("a/y", 2.0, ["y", "gpt"], []))
    names.put("a/x", 1.0, ["x"], ["a/x", "x", "gpt"])
    assert names.resolve() >= {"a/x", "a/y"}
    assert names.served("a/y") == ("a/y", "y", "gpt")
    assert names.taken("a/y") == {}
    names.put("a/x", 1.0, ["x", "gpt"], ["a/x", "x"])
    names.resolve()
    assert names.served("a/y") == ("a/y", "y", "gpt"), "whoever has it keeps it"
    names.remove("a/y")
    assert names.resolve() == {"a/x"}
    assert names.served("a/x") == ("a/x", "x", "gpt")


def test_an_alias_that_is_another_models_full_name_is_never_given():
    names = names_of(("a/x", 1.0, ["x", "b/y"], []), ("b/y", 2.0, ["y"], []))
    assert names.served("a/x") == ("a/x", "x")
    assert names.taken("a/x") == {"b/y": "b/y"}
    names.remove("b/y")
    names.resolve()
    assert names.served("a/x") == ("a/x", "x", "b/y")


KEYS = ("a/m", "b/m", "a/n")
CHANGE = st.tuples(st.sampled_from(KEYS), st.booleans(), st.integers(0, 2), st.lists(st.sampled_from(["m", "n", "gpt", "b/m"]), unique=True))


@given(st.lists(CHANGE, max_size=12))
def test_every_name_has_one_owner_whatever_happens(changes):
    names, there = Names(), {}
    for key, present, created, wanted in changes:
        if present:
            names.put(key, float(created), wanted, [])
            there[key] = wanted
        else:
            names.remove(key)
            there.pop(key, None)
        names.resolve()
        served = [name for it in there for name in names.served(it)]
        assert len(served) == len(set(served))
        for name in {name for wanted in there.values() for name in wanted}:
            assert name in served
