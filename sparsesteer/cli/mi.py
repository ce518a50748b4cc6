"""``sparsesteer mi``: features explained by words, labelled, steered by, and what a defence by them is worth."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sparsesteer.cli.border import DebugOption, ModelOption, SaeOption, loading, note, one_line_errors
from sparsesteer.cli.models import DEMO, SMOLLM2, demo_sae_folder, load_model, load_sae
from sparsesteer.word_index import FILE_NAME

if TYPE_CHECKING:
    from sparsesteer.methods.mi.labels import Annotator

app = typer.Typer(
    help="Explain features by mutual information with words, label them, and steer by what they mean.",
    no_args_is_help=True,
)
FileArgument = Annotated[Path, typer.Argument(help="File of explanations.")]


@app.command()
@one_line_errors
def explain(
    out: Annotated[Path | None, typer.Option(help="The file.", show_default="beside the SAE")] = None,
    corpus: Annotated[list[Path] | None, typer.Option(help="Text: top contexts and densities; repeatable.")] = None,
    corpus_words: Annotated[bool, typer.Option("--corpus-words", help="Explain with the corpus' words.")] = False,
    score: Annotated[str, typer.Option(help="literal, information, pointwise, product or logit.")] = "product",
    vectors: Annotated[str, typer.Option(help="encoder or decoder rows.")] = "encoder",
    words: Annotated[int, typer.Option(min=1, help="Words of the vocabulary, at most.")] = 5000,
    count: Annotated[int, typer.Option(min=1, help="Words kept of each feature.")] = 15,
    contexts: Annotated[int, typer.Option(min=1, help="Contexts kept of each feature.")] = 3,
    tokens: Annotated[int, typer.Option(min=128, help="Tokens of the corpus that are read, at most.")] = 200_000,
    model: ModelOption = SMOLLM2,
    sae: SaeOption = DEMO,
    debug: DebugOption = False,
) -> None:
    """Find the words that explain each feature, and write them beside the SAE.

    Examples:

        sparsesteer mi explain --out explanations.safetensors

        sparsesteer mi explain --out explanations.safetensors --corpus corpus.txt --tokens 50000
    """
    from sparsesteer.logit_lens import final_norm
    from sparsesteer.methods.mi import explain as explained
    from sparsesteer.methods.mi import vocabulary
    from sparsesteer.methods.mi.bias import frequency_bias
    from sparsesteer.methods.mi.contexts import context_notes, top_contexts, windows_of

    path = out or _beside(sae, model)
    texts = [each.read_text(encoding="utf-8") for each in corpus or ()]
    if corpus_words and not texts:
        raise ValueError("--corpus-words: give the text with --corpus")
    with loading(f"{sae} SAE and {model}"):
        autoencoder = load_sae(sae, model)
        network, tokenizer = load_model(model)
    unembedding = network.get_output_embeddings().weight.detach()
    if corpus_words:
        named = vocabulary.of_texts(texts, tokenizer, words)
    else:
        named = vocabulary.of_tokenizer(tokenizer, words, unembedding)
    found = explained(autoencoder, unembedding, final_norm(network), named, score, count=count, vectors=vectors)
    if texts:
        read = top_contexts(network, autoencoder, windows_of(texts, tokenizer, tokens), contexts)
        found = found.with_notes(context_notes(network, tokenizer, autoencoder, read, contexts), read.density)
    bias = ", ".join(f"{name} {share:.1%}" for name, share in frequency_bias(found).items())
    print(found.save(path), found, found.about, f"frequency bias: {bias}", sep="\n")


@app.command()
@one_line_errors
def label(
    file: FileArgument,
    answers: Annotated[
        Path | None, typer.Option(help="Where answers are kept.", show_default="FILE.labels.jsonl")
    ] = None,
    lists: Annotated[Path | None, typer.Option(help='JSON, {"label": ["stem of a word", ...]}.')] = None,
    endpoint: Annotated[str | None, typer.Option(help="Address that speaks OpenAI's protocol, up to /v1.")] = None,
    endpoint_model: Annotated[str, typer.Option(help="The model's name there.")] = "",
    key_variable: Annotated[str | None, typer.Option(help="Environment variable that holds the key.")] = None,
    local_model: Annotated[str | None, typer.Option(help="A model to ask in this process.")] = None,
    debug: DebugOption = False,
) -> None:
    """Label explained features: by lists of words, by an endpoint, or by a local model.

    Without --endpoint and --local-model the words alone decide, offline. Called again it goes on where it was
    interrupted.

    Example:

        sparsesteer mi label explanations.safetensors
    """
    from sparsesteer.explanations import Explanations
    from sparsesteer.methods.mi.labels import label as label_features
    from sparsesteer.methods.mi.steering import selected

    explanations = Explanations.load(file)
    annotator = _annotator(lists, endpoint, endpoint_model, key_variable, local_model)
    found = label_features(explanations, annotator, answers or file.with_name(f"{file.name}.labels.jsonl"))
    found.save(file)
    counts: dict[str, list[int]] = {}
    chosen = set(selected(found))
    for feature in range(len(found)):
        name = found.note(feature).get("label")
        if name:
            total = counts.setdefault(name, [0, 0])
            total[0] += 1
            total[1] += feature in chosen
    table = Table(title=f"{len(chosen)} features selected")
    for heading in ("label", "features", "judged yes"):
        table.add_column(heading)
    for name, (labelled, yes) in sorted(counts.items()):
        table.add_row(name, str(labelled), str(yes))
    Console().print(table)


@app.command()
@one_line_errors
def steer(
    out: Annotated[Path, typer.Argument(help="File of the plan.")],
    rule: Annotated[str, typer.Option(help="amplify, calibrate or gap_fill.")],
    amount: Annotated[float, typer.Option(help="Of the rule.")],
    explanations: Annotated[Path | None, typer.Option(help="File of labelled explanations.")] = None,
    labelled: Annotated[str | None, typer.Option("--label", help="Only features of this label.")] = None,
    features: Annotated[str, typer.Option(help="Features instead, as in 12,99.")] = "",
    model: ModelOption = SMOLLM2,
    sae: SaeOption = DEMO,
    debug: DebugOption = False,
) -> None:
    """Write a plan that steers by labelled features, or by those you name.

    Example:

        sparsesteer mi steer plan.safetensors --rule gap_fill --amount 300 --features 12,99
    """
    from sparsesteer.methods.mi import MISteering

    autoencoder = load_sae(sae, model)
    plan = MISteering(autoencoder, _features(explanations, labelled, features)).plan(rule, amount)
    print(plan.save(out), plan, sep="\n")


@app.command("eval")
@one_line_errors
def evaluate(
    folder: Annotated[Path, typer.Argument(help="Folder of the study.")],
    attacks: Annotated[Path, typer.Option(help="Harmful prompts: .json, .jsonl or .csv.")],
    harmless: Annotated[Path, typer.Option(help="Harmless prompts.")],
    text: Annotated[Path | None, typer.Option(help="Plain text, whose perplexity is measured.")] = None,
    explanations: Annotated[Path | None, typer.Option(help="File of labelled explanations.")] = None,
    labelled: Annotated[str | None, typer.Option("--label", help="Only features of this label.")] = None,
    features: Annotated[str, typer.Option(help="Features instead, as in 12,99.")] = "",
    control: Annotated[
        list[str] | None, typer.Option(help='Defence and strength, "gap_fill, explained=300"; repeatable.')
    ] = None,
    n_attacks: Annotated[int, typer.Option(min=1, help="Harmful prompts asked.")] = 100,
    n_harmless: Annotated[int, typer.Option(min=1, help="Harmless prompts asked.")] = 100,
    n_fit: Annotated[int, typer.Option(min=1, help="Prompts of either kind that are fitted on.")] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Prompts asked at once.")] = 32,
    hand_labels: Annotated[Path | None, typer.Option(help="Labels of answers, to test the rules by.")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder of the report.", show_default="the study's")] = None,
    only_report: Annotated[bool, typer.Option("--only-report", help="Ask nothing more.")] = False,
    model: ModelOption = SMOLLM2,
    sae: SaeOption = DEMO,
    debug: DebugOption = False,
) -> None:
    """Measure what defences do to attacks and to harmless requests. Called again it goes on where it was interrupted.

    Answers stay in the study's folder; the report holds none.

    Example:

        sparsesteer mi eval study --attacks attacks.json --harmless harmless.json --features 12,99
    """
    from sparsesteer.methods.safety.prompts import read_prompts
    from sparsesteer.methods.safety.report import write_report
    from sparsesteer.methods.safety.study import CONTROLS, Protocol, Study

    if not only_report:
        controls = tuple(_control(each) for each in control) if control else CONTROLS
        protocol = Protocol(n_attacks, n_harmless, n_fit, max_new_tokens, batch, controls=controls)
        chosen = _features(explanations, labelled, features)
        prompts = read_prompts(attacks), read_prompts(harmless)
        with loading(f"{sae} SAE and {model}"):
            autoencoder = load_sae(sae, model)
            network, tokenizer = load_model(model)
        about = {"model": model, "sae": sae, "attacks": attacks.name, "harmless": harmless.name}
        study = Study.begun(folder, network, tokenizer, autoencoder, chosen, *prompts, protocol, about)
        study.run(None if text is None else text.read_text(encoding="utf-8"), note)
    found = write_report(folder, report or folder, hand_labels, f"sparsesteer {shlex.join(sys.argv[1:])}")
    table = Table(title="shares in percent")
    for heading in ("defence", "attacks refused", "attacks that succeed", "harmless served"):
        table.add_column(heading)
    for row in found["rows"]:
        shares = (row[name]["mean"] for name in ("attack refusal", "attack coherent", "harmless coherent"))
        table.add_row(row["control"], *(f"{share:.0%}" for share in shares))
    Console().print(table)
    print(f"written: {report or folder}")


@app.command("mt-bench")
@one_line_errors
def mt_bench(
    questions: Annotated[Path, typer.Argument(help="FastChat's question.jsonl.")],
    out: Annotated[Path, typer.Argument(help="File of the answers, MODEL_ID.jsonl.")],
    rule: Annotated[str | None, typer.Option(help="amplify, calibrate or gap_fill; unsteered without it.")] = None,
    amount: Annotated[float, typer.Option(help="Of the rule.")] = 0.0,
    explanations: Annotated[Path | None, typer.Option(help="File of labelled explanations.")] = None,
    labelled: Annotated[str | None, typer.Option("--label", help="Only features of this label.")] = None,
    features: Annotated[str, typer.Option(help="Features instead, as in 12,99.")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 512,
    model: ModelOption = SMOLLM2,
    sae: SaeOption = DEMO,
    debug: DebugOption = False,
) -> None:
    """Answer MT-Bench's questions, in the file format that FastChat's judge reads.

    Example:

        sparsesteer mi mt-bench question.jsonl smollm2.jsonl
    """
    from sparsesteer.methods.mi import MISteering
    from sparsesteer.methods.safety.controls import Control
    from sparsesteer.methods.safety.mt_bench import answer_questions, read_questions

    asked = read_questions(questions)
    control = Control("none")
    if rule is not None:
        plan = MISteering(load_sae(sae, model), _features(explanations, labelled, features)).plan(rule, amount)
        control = Control(rule, amount, plan)
    with loading(model):
        network, tokenizer = load_model(model)
    print(answer_questions(network, tokenizer, asked, control, out, out.stem, max_new_tokens, note))


def _beside(sae: str, model: str) -> Path:
    """Where explanations of an SAE belong. Raises ValueError for one that others share."""
    folder = Path(sae).expanduser()
    if sae == DEMO:
        raise ValueError(
            f"--out: the demonstration SAE has explanations already, in {demo_sae_folder(model)}; name a file"
        )
    if not folder.is_dir():
        raise ValueError("--out: name a file; explanations are written beside an SAE only if that is a folder of yours")
    return folder / FILE_NAME


def _annotator(
    lists: Path | None, endpoint: str | None, endpoint_model: str, key_variable: str | None, local: str | None
) -> "Annotator":
    from sparsesteer.documents import read_document
    from sparsesteer.methods.mi import asking
    from sparsesteer.methods.mi.word_lists import SAFETY, WordLists

    if endpoint is not None and local is not None:
        raise ValueError("--endpoint and --local-model: give one of them")
    named: dict[str, Any] = dict(SAFETY) if lists is None else read_document(lists)
    if endpoint is not None:
        if not endpoint_model:
            raise ValueError("--endpoint: give the model's name with --endpoint-model")
        ask = asking.endpoint(endpoint, endpoint_model, key_variable)
        return asking.Asking(ask, endpoint_model, list(named))
    if local is not None:
        with loading(local):
            return asking.Asking(asking.local_model(*load_model(local)), local, list(named))
    return WordLists(named)


def _features(explanations: Path | None, labelled: str | None, features: str) -> list[int]:
    """Named ones, or those that were selected by their labels."""
    from sparsesteer.explanations import Explanations
    from sparsesteer.methods.mi.steering import selected

    if (explanations is None) == (not features):
        raise ValueError("give --explanations, whose selected features are taken, or --features, one of them")
    if explanations is not None:
        return selected(Explanations.load(explanations), labelled)
    try:
        return [int(each) for each in features.split(",") if each.strip()]
    except ValueError as error:
        raise ValueError(f"--features {features!r}: give numbers, as in 12,99") from error


def _control(text: str) -> tuple[str, float]:
    """(method, strength) of texts like "gap_fill, explained=300"."""
    method, _, strength = text.partition("=")
    try:
        return method.strip(), float(strength or 0)
    except ValueError as error:
        raise ValueError(f'--control {text!r}: give a defence and a strength, "gap_fill, explained=300"') from error
