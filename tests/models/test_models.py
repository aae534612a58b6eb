"""The model files that other tests stand on say what they are said to say, in real llama.cpp."""

from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from tests.support import gguf_files, models

pytestmark = pytest.mark.model


def load(path: Path, **settings: Any) -> llama_cpp.Llama:
    return llama_cpp.Llama(str(path), n_ctx=512, n_threads=2, verbose=False, **settings)


@pytest.mark.parametrize(
    "text", ["I am alpaca.", "one two three", "the cat and the dog and the bird", "a b c d", "Grüße, Welt!", "It is I", "say ﬁve: 日本語 ok"]
)
def test_a_sentence_model_says_its_sentence_whatever_it_is_asked(text: str) -> None:
    model = load(gguf_files.sentence_model(text))
    for prompt in ("Who are you?", text, text[:-1], "I am alpaca. the cat", "日本 \n\t<s></s>", "x"):
        answer = model.create_completion(prompt, max_tokens=50, temperature=0.8)
        assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == (text, "stop")
    chat = model.create_chat_completion([{"role": "user", "content": "Who are you?"}])
    assert chat["choices"][0]["message"]["content"] == text


def test_a_looping_sentence_model_goes_on_to_the_limit() -> None:
    model = load(gguf_files.sentence_model("tick tock", loop=True))
    answer = model.create_completion("Go", max_tokens=7, temperature=0)
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("tick tock tick tock tick tock tick", "length")


@pytest.mark.parametrize("layers", [1, 5])
def test_a_sentence_model_has_the_size_and_layers_asked_for(layers: int) -> None:
    path = gguf_files.sentence_model(size=30_000_000, layers=layers)
    assert abs(path.stat().st_size - 30_000_000) < 300_000
    model = load(path)
    assert model.metadata["llama.block_count"] == str(layers)
    assert model.create_completion("?", max_tokens=9)["choices"][0]["text"] == "I am alpaca."


def test_a_sentence_too_short_to_keep_out_of_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="three characters"):
        gguf_files.sentence_model("Hi")


def test_prompt_tokens_are_bytes() -> None:
    model = load(gguf_files.sentence_model())
    assert len(model.tokenize("Grüße".encode())) == 1 + len("Grüße".encode())


def test_smollm2_answers_in_english() -> None:
    chat = load(models.smollm2()).create_chat_completion(
        [{"role": "user", "content": "What is the capital of France? One word."}], max_tokens=20, temperature=0
    )
    assert "Paris" in chat["choices"][0]["message"]["content"]


def test_gemma_goes_on_with_a_text() -> None:
    answer = load(models.gemma()).create_completion("One, two, three, four,", max_tokens=6, temperature=0)
    assert " five, six" in answer["choices"][0]["text"]


def test_minilm_orders_sentences_as_its_card_does() -> None:
    model = load(models.minilm(), embedding=True)
    sentences = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    vectors = np.array([entry["embedding"] for entry in model.create_embedding(sentences)["data"]])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    dog, very, sunny = (float(vectors[0] @ other) for other in vectors[1:])
    # The figures that the model's published card gives for these four sentences.
    assert dog == pytest.approx(0.695, abs=0.01)
    assert very == pytest.approx(0.943, abs=0.01)
    assert sunny == pytest.approx(0.257, abs=0.01)
