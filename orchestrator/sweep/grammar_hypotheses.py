"""The grammar of `table: hypotheses:`: claims about rows, made before there are numbers.

    hypotheses:
      - name: H1
        text: fixed noise keeps identities, and frames are segmented as well
        all:                                  # `claim` for one; `any`: one of them is enough
          - {left: fixed, right: base, metric: eval/video_fg_ari, relation: higher}
          - {left: fixed, right: base, metric: eval/fg_ari, relation: equal, margin: 2}

In `all` and `any`, `left` and `metric` may be lists, which make one claim each.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.sweep.document import Item, Reader, require
from orchestrator.sweep.grammar_parts import read_name
from orchestrator.sweep.model import Claim, Hypothesis, Join, Relation

KEYS = ("name", "text", "claim", "all", "any")
FORMS = ("claim", "all", "any")
CLAIM_KEYS = ("left", "right", "metric", "relation", "margin")


def read_hypotheses(reader: Reader, item: Item, rows: Sequence[str], metrics: Sequence[str]) -> list[Hypothesis]:
    """Hypotheses about the options of the rows and the metrics of the table; what is wrong is recorded and left out."""
    found: list[Hypothesis] = []
    names: set[str] = set()
    for entry in reader.sequence(item, hint="write `hypotheses: [{name: H1, text: ..., claim: {...}}]`"):
        parts = reader.mapping(entry, KEYS)
        if not entry.is_mapping:
            continue
        require(reader, entry, parts, ("name", "text"))
        forms = [form for form in FORMS if form in parts]
        if len(forms) != 1:
            what = "claims nothing" if not forms else "gives its claims in two ways"
            reader.problem(entry, what, value=", ".join(forms), allowed="one of claim, all, any")
        name = reader.text(parts["name"]) if "name" in parts else None
        text = reader.text(parts["text"]) if "text" in parts else None
        if name is not None and read_name(reader, parts["name"], name, "a hypothesis") and name in names:
            reader.problem(parts["name"], "is the name of an earlier hypothesis")
        claims = [claim for form in forms for claim in _claims(reader, parts[form], form, rows, metrics)]
        if name is None or text is None or not claims or len(forms) != 1:
            continue
        names.add(name)
        join = Join.ANY if forms[0] == "any" else Join.ALL
        found.append(Hypothesis(name=name, text=text, join=join, claims=tuple(claims)))
    return found


def _claims(reader: Reader, item: Item, form: str, rows: Sequence[str], metrics: Sequence[str]) -> list[Claim]:
    if form == "claim":
        return _claim(reader, item, rows, metrics, several=False)
    entries = reader.sequence(item, hint=f"write `{form}: [{{left: ..., right: ..., metric: ..., relation: ...}}]`")
    if item.is_list and not entries:
        reader.problem(item, "has no claim")
    return [claim for entry in entries for claim in _claim(reader, entry, rows, metrics, several=True)]


def _claim(reader: Reader, item: Item, rows: Sequence[str], metrics: Sequence[str], *, several: bool) -> list[Claim]:
    """The claims of one entry: one for each combination of its lists; none when it has problems."""
    before = len(reader.problems)
    parts = reader.mapping(item, CLAIM_KEYS)
    if not item.is_mapping:
        return []
    require(reader, item, parts, ("left", "right", "metric", "relation"))
    lefts = _words(reader, parts["left"], "unknown row", rows, several=several) if "left" in parts else []
    shown = _words(reader, parts["metric"], "is no number of this table", metrics, several=several) if "metric" in parts else []
    right = reader.word(parts["right"], "unknown row", rows) if "right" in parts else None
    known = [one.value for one in Relation]
    relation = reader.word(parts["relation"], "unknown relation", known) if "relation" in parts else None
    margin = reader.number(parts["margin"]) if "margin" in parts else 0.0
    if margin is not None and margin < 0:
        reader.problem(parts["margin"], "is below 0", hint="`relation: lower` turns a claim around")
    if relation == Relation.EQUAL and margin == 0:
        hint = "how far apart two rows may be and still count as equal, in the table's units"
        reader.problem(parts.get("margin", item), "`relation: equal` needs a `margin` above 0", value="", hint=hint)
    if right is not None and right in lefts:
        reader.problem(parts["right"], "is compared with itself")
    if len(reader.problems) > before or right is None or relation is None or margin is None:
        return []
    return [
        Claim(left=left, right=right, metric=metric, relation=Relation(relation), margin=margin)
        for left in lefts
        for metric in shown
    ]


def _words(reader: Reader, item: Item, what: str, allowed: Sequence[str], *, several: bool) -> list[str]:
    """One word, or a list of words where `several` are allowed."""
    if item.is_list and not several:
        reader.problem(item, "is a list", hint="`any: [{left: [...], ...}]` or `all:` instead of `claim:` make several claims")
        return []
    if item.is_list and not reader.sequence(item):
        reader.problem(item, "names nothing", allowed=", ".join(allowed))
    words = [reader.word(entry, what, allowed) for entry in (reader.sequence(item) if item.is_list else [item])]
    found = [word for word in words if word is not None]
    if len(set(found)) < len(found):
        reader.problem(item, "names one twice", value=", ".join(found))
    return found
