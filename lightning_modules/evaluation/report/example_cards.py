"""The examples of a report as HTML cards, and the filter above them."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence

from datamodules.evaluation.benchmarks import BENCHMARKS
from lightning_modules.evaluation.report.breakdowns import field_title, in_reading_order
from lightning_modules.evaluation.report.examples import Example
from lightning_modules.evaluation.report.markup import Markup, element, joined
from rewards.answer_format import parse_response

LONGEST_TEXT = 6000
"""Characters of a text on the page; the middle of a longer one is left out, and the page says so."""

NOTHING = "(nothing)"
"""Stands where the model wrote an empty text."""

OUTCOMES = ("right", "partly right", "wrong", "failed", "ungraded")
CHANGES = {"gained": "better than the other run", "lost": "worse than the other run", "same": "as the other run"}


def examples_section(examples: Sequence[Example]) -> Markup:
    """Filter, count and cards. Without JavaScript the filter stays hidden and all cards are there."""
    return element(
        "section",
        element("h2", "Examples"),
        element(
            "p",
            "A selection that is even over outcomes and groups, so their shares here are not those of the run. Right "
            "and wrong are judged by the first protocol that grades the item.",
        ),
        _filter(examples),
        element("p", f"{len(examples)} examples", id="shown", role="status", aria_live="polite"),
        element("div", *(_card(example) for example in examples), id="cards"),
        id="examples",
    )


def bounded(text: str) -> str:
    """`text`, without its middle if it is longer than the page bears."""
    if len(text) <= LONGEST_TEXT:
        return text
    half = LONGEST_TEXT // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} of {len(text):,} characters left out …]\n{text[-half:]}"


def _filter(examples: Sequence[Example]) -> Markup:
    benchmarks = list(dict.fromkeys(example.prediction.benchmark for example in examples))
    outcomes = [outcome for outcome in OUTCOMES if any(example.outcome == outcome for example in examples)]
    parts = [
        _select("benchmark", "Benchmark", [(name, BENCHMARKS[name].title) for name in benchmarks]),
        element(
            "label",
            "Group ",
            element("select", element("option", "all", value=""), *_group_options(examples), name="group"),
        ),
        element(
            "fieldset",
            element("legend", "Outcome"),
            *(_radio("outcome", value, value or "all", checked=not value) for value in ("", *outcomes)),
        ),
    ]
    changes = [change for change in CHANGES if any(example.change == change for example in examples)]
    if changes:
        parts.append(_select("change", "Compared", [(change, CHANGES[change]) for change in changes]))
    if any(example.disagree for example in examples):
        box = element("input", type="checkbox", name="disagree")
        parts.append(element("label", box, " protocols disagree"))
    return element("form", *parts, id="filter", hidden=True, aria_label="Filter the examples")


def _select(name: str, title: str, options: Iterable[tuple[str, str]]) -> Markup:
    shown = [element("option", text, value=value) for value, text in options]
    return element("label", f"{title} ", element("select", element("option", "all", value=""), *shown, name=name))


def _radio(name: str, value: str, text: str, *, checked: bool) -> Markup:
    return element("label", element("input", type="radio", name=name, value=value, checked=checked), f" {text}")


def _group_options(examples: Sequence[Example]) -> list[Markup]:
    """One list per benchmark and field, of which the script offers those of the chosen benchmark."""
    groups: dict[tuple[str, str], set[str]] = {}
    for example in examples:
        for group in example.groups:
            groups.setdefault((example.prediction.benchmark, group.split("/", 1)[0]), set()).add(group)
    return [
        element(
            "optgroup",
            *(element("option", group.split("/", 1)[1], value=group) for group in in_reading_order(values)),
            label=f"{BENCHMARKS[benchmark].title}, {field_title(benchmark, field).lower()}",
            data_benchmark=benchmark,
        )
        for (benchmark, field), values in groups.items()
    ]


def _card(example: Example) -> Markup:
    prediction = example.prediction
    parts = [
        element("h3", f"{BENCHMARKS[prediction.benchmark].title}, {prediction.problem_id}"),
        element("p", *_chips(example), class_="chips"),
        _figure(example),
        element("p", bounded(prediction.question), class_="question"),
    ]
    if prediction.options:
        parts.append(element("ul", *(element("li", option) for option in prediction.options), class_="options"))
    parts.append(_answers(example))
    if prediction.completion is not None:
        parts.append(_reasoning(prediction.completion))
    if prediction.option_logprobs is not None:
        shown = ", ".join(f"{letter} {value:.3f}" for letter, value in prediction.option_logprobs.items())
        parts.append(element("p", f"Log-probabilities of the letters in nats: {shown}", class_="detail"))
    parts += [
        element("p", f"Not graded under {protocol}: {reason}", class_="detail")
        for protocol, reason in prediction.ungraded.items()
    ]
    return element(
        "article",
        *parts,
        class_=f"example {example.outcome.replace(' ', '-')}",
        data_benchmark=prediction.benchmark,
        data_outcome=example.outcome,
        data_change=example.change or "",
        data_disagree="yes" if example.disagree else "",
        data_groups="\n".join(example.groups),
    )


def _chips(example: Example) -> list[Markup]:
    prediction = example.prediction
    chips = [element("span", example.outcome, class_="chip outcome")]
    chips += [
        element("span", f"{protocol} {score:.2f}", class_="chip")
        for protocol, score in prediction.scores.items()
        if score is not None
    ]
    chips += [element("span", group.replace("/", ": ", 1), class_="chip group") for group in example.groups]
    if prediction.completion_tokens is not None:
        chips.append(element("span", f"{prediction.completion_tokens:,} tokens", class_="chip"))
    if prediction.truncated:
        chips.append(element("span", "truncated", class_="chip alarm"))
    if prediction.well_formed is False:
        chips.append(element("span", "not well-formed", class_="chip alarm"))
    if example.change in ("gained", "lost"):
        chips.append(element("span", CHANGES[example.change], class_="chip alarm"))
    return [joined(chip, " ") for chip in chips]


def _figure(example: Example) -> Markup:
    strip = example.strip
    if strip is None:
        return element("p", example.strip_note, class_="detail")
    address = "data:image/jpeg;base64," + base64.b64encode(strip.jpeg).decode()
    alt = f"Film strip: {example.strip_note}"
    image = element("img", src=address, alt=alt, width=strip.width, height=strip.height, decoding="async")
    return element("figure", image, element("figcaption", example.strip_note))


def _answers(example: Example) -> Markup:
    prediction = example.prediction
    failed = "(failed)"
    rows = [
        ("Answer", failed if prediction.answer is None else prediction.answer or NOTHING),
        ("Gold", prediction.gold),
    ]
    if example.failure is not None:
        rows.insert(1, ("Reason", example.failure))
    if example.other is not None:
        rows.append(("Other run", failed if example.other.answer is None else example.other.answer or NOTHING))
    return element("dl", *(joined(element("dt", name), element("dd", bounded(text))) for name, text in rows))


def _reasoning(completion: str) -> Markup:
    """What stands inside the think tags; of a completion in another form, all of it."""
    parsed = parse_response(completion)
    if parsed.well_formed and parsed.think is not None:
        title, text = "Reasoning", parsed.think
    else:
        title, text = "Whole completion", completion
    words = len(text.split())
    summary = element("summary", f"{title} ({words:,} word{'' if words == 1 else 's'})")
    return element("details", summary, element("div", bounded(text) or NOTHING, class_="reasoning"))
