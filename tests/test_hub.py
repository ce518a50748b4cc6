"""Plans on the Hugging Face Hub: what is written, what comes back, and what the errors say. No network."""

import huggingface_hub
import pytest
import torch
from fake_hub import COMMIT, READ_ONLY, TOKEN, FakeHub
from huggingface_hub import constants
from huggingface_hub.utils._http import default_client_factory
from small_sae import hidden, make_sae
from test_plans import assert_same

import sparsesteer as ss
from sparsesteer import Edit, Site, SteeringPlan

EDIT = Edit.set({3: 2.5}) | Edit.cap({0: 1}, when_active=True) | Edit.add({7: 0.1, 9: -4})
REPO = "someone/polite"
SITE = Site("google/gemma-2-2b", "blocks.3.hook_resid_post", None, "release/sae", "gemma-2-2b/3-res")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The Hub in memory, with an empty cache and nobody logged in."""
    fake = FakeHub()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "no tokens"))
    huggingface_hub.set_client_factory(fake.client)
    yield fake
    huggingface_hub.set_client_factory(default_client_factory)


def plan(**options):
    return make_sae(site=SITE, **options).plan(EDIT)


def test_pushed_and_pulled_to_the_bit(hub):
    url = plan().push_to_hub(REPO, token=TOKEN)
    assert url == f"https://huggingface.co/{REPO}/commit/{COMMIT}"
    assert set(hub.repositories[REPO]) == {"plan.safetensors", "README.md"}
    assert_same(SteeringPlan.from_pretrained(REPO), plan())


def test_pushing_again_replaces(hub):
    plan().push_to_hub(REPO, token=TOKEN)
    other = make_sae(site=SITE).plan(Edit.set({1: 1}))
    other.push_to_hub(REPO, token=TOKEN)
    assert_same(SteeringPlan.from_pretrained(REPO, revision=COMMIT), other)


def test_a_plan_that_needs_its_sae_gets_it(hub):
    sae = make_sae(ss.TopK(7), site=SITE)
    sae.plan(EDIT).push_to_hub(REPO, token=TOKEN)
    pulled = SteeringPlan.from_pretrained(REPO, sae=sae)
    assert torch.equal(ss.ops.steer(hidden(), pulled), ss.ops.steer(hidden(), sae.plan(EDIT)))
    with pytest.raises(ValueError, match="made from another SAE"):
        SteeringPlan.from_pretrained(REPO, sae=make_sae(ss.TopK(8)))


def test_a_private_repository_needs_the_token_again(hub):
    plan().push_to_hub(REPO, token=TOKEN, private=True)
    assert hub.private == {REPO}
    with pytest.raises(FileNotFoundError, match="no repository someone/polite, or it is private: log in with"):
        SteeringPlan.from_pretrained(REPO)
    assert_same(SteeringPlan.from_pretrained(REPO, token=READ_ONLY), plan())


def test_the_cache_serves_without_the_hub(hub, tmp_path):
    plan().push_to_hub(REPO, token=TOKEN)
    with pytest.raises(FileNotFoundError, match="not in the cache, and the Hub was not reached"):
        SteeringPlan.from_pretrained(REPO, local_files_only=True, cache_dir=tmp_path / "mine")
    SteeringPlan.from_pretrained(REPO, cache_dir=tmp_path / "mine")
    asked = len(hub.requests)
    assert_same(SteeringPlan.from_pretrained(REPO, cache_dir=tmp_path / "mine", local_files_only=True), plan())
    assert len(hub.requests) == asked
    hub.unreachable = True
    assert_same(SteeringPlan.from_pretrained(REPO, cache_dir=tmp_path / "mine"), plan())


def test_folders_and_files_are_read_without_the_hub(hub, tmp_path):
    path = plan().save(tmp_path / "folder" / "plan.safetensors")
    assert_same(SteeringPlan.from_pretrained(path), plan())
    assert_same(SteeringPlan.from_pretrained(str(path.parent)), plan())
    with pytest.raises(FileNotFoundError, match="has no plan.safetensors$"):
        SteeringPlan.from_pretrained(tmp_path)
    assert hub.requests == []


def test_what_cannot_be_pulled(hub, tmp_path):
    hub.repositories |= {"someone/empty": {}, "someone/gated": {}, "someone/bad": {"plan.safetensors": b"not a plan"}}
    hub.gated.add("someone/gated")
    for name, message in (
        ("someone/nothing", "the Hub has no repository someone/nothing"),
        ("someone/empty", "someone/empty holds no steering plan: it has no plan.safetensors"),
        ("someone/gated", "someone/gated is gated: ask for access"),
        (tmp_path / "no" / "such" / "folder", "is no file or folder, and no repository can be called so"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            SteeringPlan.from_pretrained(name)
    with pytest.raises(FileNotFoundError, match="someone/empty has no revision v2"):
        SteeringPlan.from_pretrained("someone/empty", revision="v2")
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        SteeringPlan.from_pretrained("someone/bad")


def test_what_cannot_be_pushed(hub):
    with pytest.raises(PermissionError, match="pushing to someone/polite needs a token.*hf auth login"):
        plan().push_to_hub(REPO)
    assert hub.requests == []
    with pytest.raises(PermissionError, match="does not let this token write to someone/polite"):
        plan().push_to_hub(REPO, token=READ_ONLY)
    hub.repositories["someone/elses"] = {}
    with pytest.raises(PermissionError, match="does not let this token write to someone/elses"):
        plan().push_to_hub("someone/elses", token=READ_ONLY)
    with pytest.raises(ValueError, match="no/such/name"):
        plan().push_to_hub("no/such/name", token=TOKEN)
    hub.unreachable = True
    with pytest.raises(ConnectionError, match="the Hub was not reached: no network"):
        plan().push_to_hub(REPO, token=TOKEN)
    assert hub.repositories == {"someone/elses": {}}


def card_of(hub, made):
    made.push_to_hub(REPO, token=TOKEN)
    return hub.repositories[REPO]["README.md"].decode()


def test_the_card_says_what_is_edited(hub):
    card = card_of(hub, plan())
    metadata = huggingface_hub.ModelCard(card).data
    assert metadata.library_name == "sparsesteer" and metadata.base_model == "google/gemma-2-2b"
    assert "| 0 | min(f, 1), where f > 0 |" in card and "| 3 | 2.5 |" in card
    length = plan().delta_bias.norm().item()
    assert f"A constant vector of norm {length:.4g} is added, for features 7, 9." in card
    assert "`gemma-2-2b/3-res`" in card and "`blocks.3.hook_resid_post`" in card
    assert f'ss.SteeringPlan.from_pretrained("{REPO}")' in card


def test_the_card_names_the_sae_where_it_is_needed(hub):
    card = card_of(hub, plan(activation=ss.TopK(7), normalize="layer_norm"))
    assert "TopK, 7 a token" in card and "the token's standard deviation" in card and "sae=" in card


def test_text_of_foreign_files_stays_in_its_cell(hub):
    strange = Site("a|b`\n# heading\nbase_model: x", "place\n---\n| |", None, "`")
    card = card_of(hub, make_sae(site=strange).plan(EDIT))
    assert "base_model" not in card.split("---")[1]
    assert "| model | `a b # heading base_model: x` |" in card and "| place | `place ---` |" in card
    assert "| SAE |" not in card


FORMULAS = {
    "2.5": Edit.set({0: 2.5}),
    "0": Edit.ablate([0]),
    "3 f": Edit.scale({0: 3}),
    "min(f, 2)": Edit.cap({0: 2}),
    "max(f, 2)": Edit.floor({0: 2}),
    "2 + f, where f > 0": Edit.add({0: 2}, when_active=True),
    "1 + 3 f + 3 max(f - 4, 0)": Edit.hinge({0: (1, 2, 3, 4)}),
    "-1 + max(f - 4, 0)": Edit.hinge({0: (-1, -1, 1, 4)}),
}


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_cards_formulas(formula, hub):
    assert f"| 0 | {formula} |" in card_of(hub, make_sae(site=SITE).plan(FORMULAS[formula]))


def test_the_card_of_nothing_and_of_much(hub):
    assert "None." in card_of(hub, make_sae().plan(Edit()))
    much = card_of(hub, make_sae(site=SITE).plan(Edit.ablate(range(200))))
    assert "| 199 | 0 |" in much and "more" not in much
