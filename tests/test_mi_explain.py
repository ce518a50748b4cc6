"""Explanations by mutual information: the formulas, tiles, vocabularies, and what is refused."""

import math

import pytest
import torch
from small_sae import make_sae
from tiny_model import N_FEATURES, WIDTH, WORDS, write_model, write_sae
from transformers import AutoModelForCausalLM, AutoTokenizer

import sparsesteer as ss
from sparsesteer.logit_lens import final_norm
from sparsesteer.methods.mi import explaining, vocabulary
from sparsesteer.methods.mi.bias import frequency_bias
from sparsesteer.methods.mi.scores import SCORES

pytestmark = pytest.mark.usefixtures("one_thread")
V, D, F = 90, 48, 200


def by_hand(score, v, e, alpha, beta):
    """[F][W], written out from the paper's formulas in fp64, one pair at a time."""
    s = [[float(torch.dot(c, w)) for w in e] for c in v]
    n_features, n_words = len(s), len(s[0])
    over_words = [sum(math.exp(x / alpha) for x in row) for row in s]
    over_features = [sum(math.exp(s[c][w] / beta) for c in range(n_features)) for w in range(n_words)]
    found = []
    for c in range(n_features):
        row = []
        for w in range(n_words):
            p_word, p_feature = math.exp(s[c][w] / alpha) / over_words[c], math.exp(s[c][w] / beta) / over_features[w]
            row.append(
                {
                    "literal": p_word * math.log(p_feature),
                    "information": p_word * math.log(p_feature * n_features),
                    "pointwise": math.log(p_feature * n_features),
                    "product": math.log(p_word * p_feature),
                    "logit": math.log(p_word),
                }[score]
            )
        found.append(row)
    return torch.tensor(found, dtype=torch.float64)


class Norm(torch.nn.Module):
    """RMSNorm with a gain."""

    def __init__(self, width=D):
        super().__init__()
        self.gain = torch.linspace(0.5, 1.5, width)

    def forward(self, x):
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * self.gain.to(x)


def setting(seed=0, n_words=40):
    g = torch.Generator().manual_seed(seed)
    unembedding = torch.randn(V, D, generator=g) / 3
    lengths = torch.randint(1, 4, (n_words,), generator=g).tolist()
    words = {f"w{i}": torch.randint(0, V, (n,), generator=g).tolist() for i, n in enumerate(lengths)}
    return make_sae(), unembedding, words


@pytest.mark.parametrize("vectors", ["encoder", "decoder"])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("alpha, beta", [(1.0, 1.0), (2.0, 0.7)])
def test_scores_are_the_formulas(score, vectors, alpha, beta, monkeypatch):
    monkeypatch.setattr(explaining, "_FEATURES_A_TILE", 64)
    sae, unembedding, words = setting()
    norm = Norm()
    rows = (sae.W_enc.T if vectors == "encoder" else sae.W_dec).double()
    e = torch.stack([unembedding[ids].double().mean(0) for ids in words.values()])
    wanted = by_hand(score, norm(rows), e, alpha, beta)
    got = ss.explain(sae, unembedding, norm, words, score, count=len(words), vectors=vectors, alpha=alpha, beta=beta)
    assert got.vocabulary == tuple(words) and len(got) == F
    dense = torch.empty(F, len(words)).scatter_(1, got.words.view(F, -1), got.scores.view(F, -1))
    torch.testing.assert_close(dense.double(), wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("score", SCORES)
def test_tiles_change_nothing(score):
    g = torch.Generator().manual_seed(3)
    v, e = torch.randn(37, D, generator=g), torch.randn(23, D, generator=g)
    whole = explaining.best_words(lambda: iter([v]), 37, e, score, 5, tile=100)
    for rows, columns in ((1, 1), (5, 4), (37, 7), (10, 23)):
        places, scores = explaining.best_words(lambda rows=rows: iter(v.split(rows)), 37, e, score, 5, tile=columns)
        torch.testing.assert_close(scores, whole[1])
        assert torch.equal(places, whole[0])


def test_the_literal_score_favours_irrelevant_words():
    """The released formula ranks by nearness to 0, which a word of no probability reaches too."""
    e = torch.eye(4, 8) * 6
    v = torch.eye(4, 8) * 6
    places = {s: explaining.best_words(lambda: iter([v]), 4, e, s, 1)[0][:, 0].tolist() for s in SCORES}
    assert all(places[s] == [0, 1, 2, 3] for s in SCORES if s != "literal")
    v = v.clone()
    v[1] = v[0]  # two features share the word: p(c|w) is a half, its score -0.69, that of all others about 0
    assert explaining.best_words(lambda: iter([v]), 4, e, "literal", 1)[0][0, 0] != 0
    assert explaining.best_words(lambda: iter([v]), 4, e, "pointwise", 1)[0][0, 0] == 0


def test_words_may_go_without_names():
    sae, unembedding, words = setting()
    named, bare = (ss.explain(sae, unembedding, Norm(), w) for w in (words, list(words.values())))
    assert bare.vocabulary == tuple(map(str, range(len(words)))) and torch.equal(named.words, bare.words)
    assert named.details["score"] == "product" and "product" in named.method and len(named[0]) == 15


def test_a_bf16_product_finds_nearly_the_same():
    sae, unembedding, words = setting()
    exact, rough = (
        ss.explain(sae, unembedding, Norm(), words, count=5, dtype=d) for d in (torch.float32, torch.bfloat16)
    )
    same = (exact.words.view(F, 5)[:, :, None] == rough.words.view(F, 5)[:, None]).any(-1).float().mean()
    assert same > 0.9


def test_a_stored_sae_is_read_in_tiles(tmp_path, monkeypatch):
    monkeypatch.setattr(explaining, "_FEATURES_A_TILE", 7)
    write_sae(tmp_path)
    unembedding = torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(2))
    stored = ss.SAE.load_from_disk(tmp_path)
    whole = ss.SAE(W_enc=stored.W_enc.load(), W_dec=stored.W_dec.load(), activation=ss.ReLU())
    for vectors in explaining.VECTORS:
        one, two = (
            ss.explain(sae, unembedding, Norm(WIDTH), [[i] for i in range(30)], vectors=vectors)
            for sae in (stored, whole)
        )
        torch.testing.assert_close(one.scores, two.scores)


WRONG = [
    (
        {"score": "best"},
        ValueError,
        "score should be one of literal, information, pointwise, product, logit, got 'best'",
    ),
    ({"vectors": "both"}, ValueError, "vectors should be one of encoder, decoder"),
    ({"count": 0}, ValueError, "count should be a positive number of words, got 0"),
    ({"alpha": 0}, ValueError, "alpha should be a positive number, got 0"),
    ({"beta": float("nan")}, ValueError, "beta should be a positive number"),
    ({"word_tokens": {}}, ValueError, "the vocabulary is empty"),
    ({"word_tokens": {"fine": [1], "none": []}}, ValueError, "the word 'none' has no tokens; leave it out"),
    (
        {"word_tokens": {"far": [V]}},
        ValueError,
        f"'far' has tokens \\[{V}\\], but the unembedding has rows 0 to {V - 1}",
    ),
    ({"word_tokens": {"two\nlines": [1]}}, ValueError, "a word should be text on one line"),
    ({"unembedding": torch.ones(V, D + 1)}, ValueError, f"rows have width {D}, the unembedding {D + 1}.*another model"),
    ({"unembedding": torch.ones(V)}, TypeError, "unembedding should be a floating point matrix"),
    ({"sae": "an SAE"}, TypeError, "sae should be an SAE, got str"),
    ({"final_norm": lambda x: x / 0}, ValueError, "the scores of feature 0 are not finite"),
]


@pytest.mark.parametrize("given, kind, message", WRONG)
def test_what_is_refused(given, kind, message):
    sae, unembedding, words = setting()
    arguments = {"sae": sae, "unembedding": unembedding, "final_norm": Norm(), "word_tokens": words} | given
    with pytest.raises(kind, match=message):
        ss.explain(**arguments)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_model(folder)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_vocabularies(tiny):
    _, tokenizer = tiny
    own = vocabulary.of_tokenizer(tokenizer)
    assert list(own) == WORDS and own["ships"] == tokenizer.encode("ships", add_special_tokens=False)
    assert list(vocabulary.of_tokenizer(tokenizer, 2)) == WORDS[:2]
    texts = ["Cold river, cold stars.", "the river wait"] * 3
    assert list(vocabulary.of_texts(texts, tokenizer)) == ["cold", "river"]
    assert list(vocabulary.of_texts(texts, tokenizer, count=1)) == ["cold"]
    with pytest.raises(ValueError, match="no word stands 50 times in the texts"):
        vocabulary.of_texts(texts, tokenizer, least_frequency=50)
    with pytest.raises(ValueError, match="no tokens for ''"):
        vocabulary.of_words(["ships", ""], lambda text, **_: {"input_ids": [1] if text.strip() else []})


def test_a_models_own_parts_fit(tiny, tmp_path):
    model, tokenizer = tiny
    write_sae(tmp_path)
    sae = ss.SAE.load_from_disk(tmp_path)
    found = ss.explain(
        sae, model.get_output_embeddings().weight, final_norm(model), vocabulary.of_tokenizer(tokenizer), count=4
    )
    assert len(found) == N_FEATURES and found.model == "tiny" and all(len(found[f]) == 4 for f in range(N_FEATURES))
    sae.explanations = ss.Explanations.load(found.save(tmp_path / "explanations.safetensors"))
    assert sae.explanations[3] == found[3]


def test_frequency_bias():
    words = {f"word{i}" if i != 300 else "of": [i % V] for i in range(500)}
    sae, unembedding, _ = setting()
    found = ss.explain(sae, unembedding, Norm(), words, count=2)
    bias = frequency_bias(found)
    assert bias["expected"] == 251 / 500
    used = found.words.tolist()
    assert bias["superficial"] == sum(w < 250 or w == 300 for w in used) / len(used)
    assert bias["diversity"] == len({w for w in used if w >= 250 and w != 300}) / 249
    assert bias["dominance"] == max(used.count(w) for w in used) / F
    with pytest.raises(ValueError, match="no feature has words"):
        frequency_bias(ss.Explanations.of([[], []], method="m", method_version="1"))
