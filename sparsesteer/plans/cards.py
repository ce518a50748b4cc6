"""The card of a shared plan: what it edits, in the form of a README of the Hugging Face Hub."""

import re

from sparsesteer._layout import Column, OutputScale
from sparsesteer.plans.plan import SteeringPlan

_MOST_ROWS = 200
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_SCALES = {
    OutputScale.STD: "the token's standard deviation",
    OutputScale.RMS: "the token's root mean square",
    OutputScale.NORM: "the token's norm",
    OutputScale.GAP_FILL: "the plan's gap, shared by the edited features",
}


def card(plan: SteeringPlan, repo_id: str) -> str:
    """The README.md of a repository that holds a plan."""
    return "\n".join([*_front_matter(plan), "", *_facts(plan), "", *_edits(plan), "", *_use(plan, repo_id), ""])


def new_activation(c0: float, c1: float, c2: float, knot: float, when_active: bool) -> str:
    """What the activation f of an edited feature becomes, as a formula."""
    if c2 == 0 and c1 == -1:
        formula = f"{c0:g}"
    elif (c0, c1, c2) == (0, 0, -1):
        formula = f"min(f, {knot:g})"
    elif (c1, c2) == (-1, 1) and c0 == knot:
        formula = f"max(f, {knot:g})"
    else:
        slope, hinge = _term(1 + c1, "f"), _term(c2, f"max(f - {knot:g}, 0)")
        constant = f"{c0:g}" if c0 else ""
        formula = " + ".join(filter(None, [constant, slope, hinge])) or "0"
    return f"{formula}, where f > 0" if when_active else formula


def _term(factor: float, of: str) -> str:
    return "" if factor == 0 else of if factor == 1 else f"{factor:g} {of}"


def _front_matter(plan: SteeringPlan) -> list[str]:
    lines = ["---", "library_name: sparsesteer", "tags:", "- sparse-autoencoder", "- activation-steering"]
    model = plan.site.model_name
    if model is not None and _REPOSITORY.fullmatch(model):
        lines.append(f"base_model: {model}")
    return [*lines, "---"]


def _facts(plan: SteeringPlan) -> list[str]:
    site = plan.site
    facts = {
        "model": _code(site.model_name),
        "place": _code(site.hook_name_out or site.hook_name),
        "SAE": _code(site.neuronpedia_id or site.source),
        "SAE digest": _code(plan.sae_digest),
        "activation": f"TopK, {plan.k} a token" if plan.k else "",
        "reconstruct": "the tensor is replaced by its edited reconstruction" if plan.reconstruct else "",
        "norm": "every edited token keeps its length" if plan.preserve_norm else "",
        "scale": "" if plan.scale_rule == OutputScale.ONE else _SCALES[plan.scale_rule],
    }
    return [
        "# Steering plan",
        "",
        "Edits of a language model's sparse-autoencoder features.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts.items() if value),
    ]


def _edits(plan: SteeringPlan) -> list[str]:
    columns = [Column.C0, Column.C1, Column.C2, Column.KNOT, Column.GATE]
    rows = zip(plan.features.tolist(), plan.rows[:, columns].tolist(), strict=True)
    lines = ["## Edits", ""]
    if len(plan):
        lines += ["| feature | its activation f becomes |", "|---|---|"]
        for feature, (c0, c1, c2, knot, gate) in list(rows)[:_MOST_ROWS]:
            lines.append(f"| {feature} | {new_activation(c0, c1, c2, knot, bool(gate))} |")
        if len(plan) > _MOST_ROWS:
            lines.append(f"| {len(plan) - _MOST_ROWS} more | |")
    if plan.delta_bias is not None:
        features = ", ".join(map(str, plan.constant_features.tolist()[:_MOST_ROWS]))
        length = plan.delta_bias.norm().item()
        lines += ["", f"A constant vector of norm {length:.4g} is added, for features {features}."]
    return lines if len(lines) > 2 else [*lines, "None."]


def _use(plan: SteeringPlan, repo_id: str) -> list[str]:
    sae = ', sae=ss.SAE.from_pretrained("release", "sae_id")' if plan.needs_sae else ""
    return [
        "## Use",
        "",
        "```python",
        "import sparsesteer as ss",
        "",
        f'plan = ss.SteeringPlan.from_pretrained("{repo_id}"{sae})',
        "with ss.steer(model, plan):",
        "    model.generate(**inputs)",
        "```",
    ]


def _code(text: str | None) -> str:
    """Text of foreign files as code, without what would end the cell."""
    cleaned = re.sub(r"[`|\s]+", " ", text or "").strip()
    return f"`{cleaned}`" if cleaned else ""
