"""What a grammar allows, found by asking about few tokens: the same as by asking about all of them."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.server.harness import ROOT
from tests.support.models import gemma, smollm2

from corral_server.engine.grammar import Grammar
from corral_server.engine.library import Log
from corral_server.engine.model import load_model
from corral_server.engine.vocabulary import Vocabulary
from corral_server.schemas import schema_rules

pytestmark = pytest.mark.model

SCHEMA = {
    "type": "object", "required": ["name", "tags"], "additionalProperties": False,
    "properties": {"name": {"type": "string"}, "tags": {"type": "array", "items": {"enum": ["red", "grün", "青"]}}, "age": {"type": "integer"}},
}  # fmt: skip
GRAMMARS = {
    "schema": (schema_rules(SCHEMA, ""), json.dumps({"name": "Ann \\u00e4 日本", "tags": ["red", "青"]}, ensure_ascii=False)),
    "words": ('root ::= ("yes" | "no" | "né" | "日本" [。、]) " "? [a-z<>]*', "日本。 abc"),
    "tokens": ('root ::= <[1]> "x"+ | [a-c]+', "abc"),
    "any": ("root ::= .*", "all ♥"),
}


@functools.cache
def vocabulary(name: str) -> Vocabulary:
    path: Path = {"smollm2": smollm2, "gemma": gemma}[name]()
    model: Any = load_model(str(path), Log(), vocab_only=True)
    return Vocabulary(model)


@pytest.mark.parametrize("model", ["smollm2", "gemma"])
@pytest.mark.parametrize("kind", GRAMMARS)
def test_a_search_finds_what_a_grammar_allows(model: str, kind: str):
    words = vocabulary(model)
    text, said = GRAMMARS[kind]
    grammar = Grammar(words, text)
    row = np.random.default_rng(7).normal(size=words.size).astype(np.float32)
    for token in words.tokenize(said, add_special=False, parse_special=False):
        exact = grammar.masked(row)
        # Every token one by one takes a while.
        step = 13 if model == "smollm2" else 97
        allowed = np.array([grammar.allows(t) for t in range(0, words.size, step)])
        np.testing.assert_array_equal(np.isfinite(exact[::step]), allowed)
        np.testing.assert_array_equal(exact[np.isfinite(exact)], row[np.isfinite(exact)])
        for enough in (1, 40):
            best = np.sort(exact[np.isfinite(exact)])[::-1][:enough]
            found = grammar.masked(row, enough)
            np.testing.assert_array_equal(np.sort(found)[::-1][: len(best)], best)
        assert grammar.allows(token)
        grammar.accept(token)
    grammar.close()


def test_a_log_that_everybody_has_forgotten_is_still_written_to():
    """A file that cannot be loaded makes llama.cpp write to it, from C."""
    told = """
import gc
from corral_server.engine.library import L, Log
for _ in range(3):
    Log()
    gc.collect()
    assert not L.llama_model_load_from_file(b"/nowhere.gguf", L.llama_model_default_params())
print("alive")
"""
    where = {**os.environ, "PYTHONPATH": str(ROOT / "server_image")}
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=False, env=where)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr[-500:]
