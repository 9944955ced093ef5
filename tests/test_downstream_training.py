"""Three users of the shipped encoder: sentence embeddings, tags of words, and spans that answer questions.

Each trains for a few steps on plain English, written for this file, and must fit it: the loss falls and the metric on the
same texts rises. What it says of other texts is not asked here.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    pipeline,
)

from inhibidistilbert.prediction import default_checkpoint

# Few words in common, so that meaning must be learned.
PARAPHRASES = [
    ("The train to the coast leaves at seven.", "An early railway service runs down to the sea."),
    ("Her brother repairs old bicycles.", "He is good at fixing bikes that others throw away."),
    ("It rained all night and the cellar flooded.", "Water filled our basement after a storm."),
    ("The museum is closed on Mondays.", "You cannot visit this gallery every day."),
    ("He forgot his keys at the office.", "What opens our door is still lying at work."),
    ("We planted tomatoes behind the house.", "There are vegetables growing in my garden."),
    ("The doctor told her to rest for a week.", "Stay in bed, a physician advised."),
    ("Prices of bread have doubled since spring.", "A loaf now costs twice what it did in April."),
    ("The children built a castle out of sand.", "On a beach some kids made this fortress."),
    ("A new bridge will cross the river next year.", "Soon one can walk over that water."),
    ("The old library smells of dust and paper.", "Books in an ancient reading room have their own odour."),
    ("Our neighbour plays the violin every evening.", "Each night we hear music from next door."),
]

# Words that name a person or a place carry their tag.
TAGGED = """
Anna/PERSON moved from Lisbon/PLACE to Berlin/PLACE last winter .
The letter that Thomas/PERSON wrote never reached Paris/PLACE .
In Chicago/PLACE the wind was cold and Maria/PERSON lost her hat .
My uncle Robert/PERSON sells apples at the market .
Trains from London/PLACE to Edinburgh/PLACE were late on Friday .
Yesterday Helen/PERSON and David/PERSON cooked soup for everyone .
The river that runs through Vienna/PLACE froze in January .
Nobody knew why Peter/PERSON had left Madrid/PLACE so early .
A boat carried the tourists from Naples/PLACE to the island .
When Julia/PERSON was ten she broke her arm .
Every summer the festival brings musicians to Dublin/PLACE .
The report by Martin/PERSON describes schools in Kenya/PLACE and Brazil/PLACE .
""".strip().splitlines()
TAGS = ["O", "PERSON", "PLACE"]

# Passage, question, answer: words of the passage.
QUESTIONS = [
    ("The lighthouse was built in 1862 by a crew of forty men.", "When was the lighthouse built?", "1862"),
    ("The lighthouse was built in 1862 by a crew of forty men.", "Who built the lighthouse?", "a crew of forty men"),
    ("Bees sleep in the hive at night and leave it at dawn.", "Where do bees sleep?", "in the hive"),
    ("Bees sleep in the hive at night and leave it at dawn.", "When do bees leave?", "at dawn"),
    ("The recipe needs two eggs, a cup of milk and some flour.", "How many eggs are needed?", "two"),
    ("The recipe needs two eggs, a cup of milk and some flour.", "How much milk is needed?", "a cup"),
    ("After the storm the farmer found his boat in an apple tree.", "What did the farmer find?", "his boat"),
    ("After the storm the farmer found his boat in an apple tree.", "Where was the boat?", "in an apple tree"),
    ("Mount Elbrus is 5642 metres high and lies in the Caucasus.", "How high is the mountain?", "5642 metres"),
    ("Mount Elbrus is 5642 metres high and lies in the Caucasus.", "Where does the mountain lie?", "in the Caucasus"),
    ("The tailor charged nine dollars because the coat was torn.", "What did the tailor charge?", "nine dollars"),
    ("The tailor charged nine dollars because the coat was torn.", "What was torn?", "the coat"),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(default_checkpoint())


def train(model: nn.Module, loss: Callable[[], Tensor], steps: int) -> tuple[float, float]:
    """The loss without dropout before and after `steps` steps of AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with torch.no_grad():
        before = loss().item()
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        return before, loss().item()


# Sentence embeddings


def mean_pooled(hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
    """`(B, L, dim)` -> `(B, dim)` of length 1: the mean over each row's real tokens."""
    weights = attention_mask[:, :, None].to(hidden_states.dtype)
    return F.normalize((hidden_states * weights).sum(1) / weights.sum(1), dim=-1)


def found_share(first: Tensor, second: Tensor) -> float:
    """How many of the first sentences have their paraphrase as the nearest of the second."""
    return ((first @ second.T).argmax(-1) == torch.arange(len(first))).double().mean().item()


def pipeline_embeddings(folder: Path, sentences: list[str]) -> Tensor:
    """What a user gets from the pipeline, one sentence at a time and so without padding."""
    extract = pipeline("feature-extraction", model=str(folder), tokenizer=str(folder))
    states = [extract(sentence, return_tensors=True) for sentence in sentences]
    return torch.cat([mean_pooled(state, torch.ones(state.shape[:2])) for state in states])


def test_sentence_embeddings(tokenizer, tmp_path):
    model = AutoModel.from_pretrained(default_checkpoint())
    batches = [tokenizer(list(side), padding=True, return_tensors="pt") for side in zip(*PARAPHRASES, strict=True)]

    def embeddings() -> list[Tensor]:
        return [mean_pooled(model(**batch).last_hidden_state, batch["attention_mask"]) for batch in batches]

    def contrastive_loss() -> Tensor:
        first, second = embeddings()
        return F.cross_entropy(first @ second.T / 0.1, torch.arange(len(PARAPHRASES)))

    with torch.no_grad():
        at_start = found_share(*embeddings())
    before, after = train(model, contrastive_loss, steps=20)
    assert after < before / 3
    assert at_start < 0.8
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    first, second = (pipeline_embeddings(tmp_path, list(side)) for side in zip(*PARAPHRASES, strict=True))
    assert found_share(first, second) == 1
    with torch.no_grad():
        padded = embeddings()
    torch.testing.assert_close(padded, [first, second], rtol=0, atol=1e-5)


# Tags of words


def tagged_words(sentence: str) -> tuple[list[str], list[str]]:
    """`"Anna/PERSON slept ."` -> `(["Anna", "slept", "."], ["PERSON", "O", "O"])`."""
    pairs = [word.partition("/") for word in sentence.split()]
    return [word for word, _, _ in pairs], [tag or "O" for _, _, tag in pairs]


def word_labels(encoded, tags: list[list[str]]) -> Tensor:
    """`(B, L)`: the tag's number at each word's first token, -100 elsewhere."""
    labels = torch.full(encoded["input_ids"].shape, -100)
    for row, row_tags in enumerate(tags):
        words = encoded.word_ids(row)
        for position, word in enumerate(words):
            if word is not None and word != words[position - 1]:
                labels[row, position] = TAGS.index(row_tags[word])
    return labels


def f1_of_names(logits: Tensor, labels: Tensor) -> float:
    """F1 of the words that are no "O"."""
    predicted, labels = logits.argmax(-1)[labels >= 0], labels[labels >= 0]
    right = ((predicted == labels) & (labels > 0)).sum()
    return (2 * right / ((predicted > 0).sum() + (labels > 0).sum())).item()


def test_tags_of_words(tokenizer):
    names = {"id2label": dict(enumerate(TAGS)), "label2id": {tag: i for i, tag in enumerate(TAGS)}}
    model = AutoModelForTokenClassification.from_pretrained(
        default_checkpoint(), num_labels=len(TAGS), ignore_mismatched_sizes=True, **names
    )
    words, tags = zip(*map(tagged_words, TAGGED), strict=True)
    encoded = tokenizer(list(words), is_split_into_words=True, padding=True, return_tensors="pt")
    labels = word_labels(encoded, list(tags))
    with torch.no_grad():
        at_start = f1_of_names(model(**encoded).logits, labels)
    before, after = train(model, lambda: model(**encoded, labels=labels).loss, steps=30)
    assert after < before / 5
    with torch.no_grad():
        at_end = f1_of_names(model(**encoded).logits, labels)
    assert at_end > 0.9 > 0.5 > at_start

    tagger = pipeline("token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="first")
    sentence = "Anna moved from Lisbon to Berlin last winter ."
    found = {(sentence[entity["start"] : entity["end"]], entity["entity_group"]) for entity in tagger(sentence)}
    assert {pair for pair in found if pair[1] != "O"} == {("Anna", "PERSON"), ("Lisbon", "PLACE"), ("Berlin", "PLACE")}


# Spans that answer questions


def answer_positions(encoded, row: int, passage: str, answer: str) -> tuple[int, int]:
    """First and last token of `answer`, the second text of this row being `passage`."""
    start = passage.index(answer)
    first, last = (encoded.char_to_token(row, char, sequence_index=1) for char in (start, start + len(answer) - 1))
    return first, last


def best_spans(outputs, encoded) -> list[str]:
    """The text of each row's best span: it lies in the passage and does not end before it starts."""
    spans = []
    for row, (passage, _, _) in enumerate(QUESTIONS):
        outside = torch.tensor([sequence != 1 for sequence in encoded.sequence_ids(row)])
        start, end = (logits[row].masked_fill(outside, -torch.inf) for logits in (outputs.start_logits, outputs.end_logits))
        scores = (start[:, None] + end[None, :]).masked_fill(torch.ones(len(start), len(end)).tril(-1).bool(), -torch.inf)
        first, last = divmod(scores.argmax().item(), len(end))
        spans.append(passage[encoded.token_to_chars(row, first).start : encoded.token_to_chars(row, last).end])
    return spans


def exact_matches(outputs, encoded) -> float:
    """The share of questions whose best span is the answer, letter by letter."""
    spans = best_spans(outputs, encoded)
    return sum(span == answer for span, (_, _, answer) in zip(spans, QUESTIONS, strict=True)) / len(spans)


@pytest.mark.slow  # embeddings and tags stay
def test_spans_that_answer_questions(tokenizer):
    model = AutoModelForQuestionAnswering.from_pretrained(default_checkpoint())
    passages, questions, answers = map(list, zip(*QUESTIONS, strict=True))
    encoded = tokenizer(questions, passages, padding=True, return_tensors="pt")
    rows = [answer_positions(encoded, row, passages[row], answer) for row, answer in enumerate(answers)]
    starts, ends = torch.tensor(rows).T
    with torch.no_grad():
        at_start = exact_matches(model(**encoded), encoded)
    before, after = train(model, lambda: model(**encoded, start_positions=starts, end_positions=ends).loss, steps=80)
    assert after < before / 5
    with torch.no_grad():
        at_end = exact_matches(model(**encoded), encoded)
    assert at_end > 0.8 > 0.3 > at_start
