"""The grammar of a sweep's `table:` part."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.metrics import METRICS
from orchestrator.sweep.document import Item, Reader, require
from orchestrator.sweep.grammar_hypotheses import read_hypotheses
from orchestrator.sweep.grammar_parts import read_condition
from orchestrator.sweep.model import Axis, Factorial, Step, Table, Value

KEYS = ("rows", "columns", "value", "more", "paper", "paper_source", "protocol", "effects", "factorial", "hypotheses")
WITH_ROWS = ("rows", "columns", "paper", "paper_source", "protocol", "effects", "hypotheses")
"""Keys of a table that has rows; a factorial one has none."""
DIRECTIONS = ("higher", "lower", "neutral")
VALUE_KEYS = ("metric", "scale", "digits", "better", "over", "step", "label")


def read_table(reader: Reader, item: Item, axes: Mapping[str, Axis], pipeline: Mapping[str, Step]) -> Table | None:
    """The table, or None when it has problems (all recorded)."""
    before = len(reader.problems)
    parts = reader.mapping(item, KEYS)
    if not item.is_mapping:
        return None
    if "factorial" in parts:
        for key in (key for key in WITH_ROWS if key in parts):
            reader.problem(parts[key], "does not go with `factorial`, whose table shows effects instead of rows")
        require(reader, item, parts, ["value"])
    else:
        require(reader, item, parts, ("rows", "value"))
    factorial = _factorial(reader, parts["factorial"], axes) if "factorial" in parts else None
    rows = reader.word(parts["rows"], "unknown axis", list(axes)) if "rows" in parts else None
    has_columns = "columns" in parts and not parts["columns"].is_null
    columns = reader.word(parts["columns"], "unknown axis", list(axes)) if has_columns else None
    if rows is not None and rows == columns:
        reader.problem(parts["columns"], "is also the axis of the rows")
    value = _value(reader, parts["value"], axes, pipeline, None) if "value" in parts else None
    more_items = reader.sequence(parts["more"], hint="write `more: [{metric: eval/mbo}]`") if "more" in parts else []
    more = [_value(reader, entry, axes, pipeline, value) for entry in more_items]
    shown = factorial.factors if factorial is not None else (rows, columns)
    if len(reader.problems) == before:
        _check_axes(reader, item, parts, axes, shown, (value, *more))
    base = _base(reader, parts["effects"], axes, rows) if "effects" in parts else None
    paper = _paper(reader, parts["paper"], axes, rows, columns) if "paper" in parts and rows is not None else {}
    source = (reader.text(parts["paper_source"]) if "paper_source" in parts else None) or ""
    if paper and not source:
        reader.problem(parts["paper"], "has no source", value="", hint="add `paper_source:`, where the numbers are printed")
    protocol = _protocol(reader, parts["protocol"], axes, columns) if "protocol" in parts else ""
    metrics = [one.metric for one in (value, *more) if one is not None]
    hypotheses = []
    if "hypotheses" in parts and rows is not None and len(reader.problems) == before:  # else rows and metrics are not known
        hypotheses = read_hypotheses(reader, parts["hypotheses"], list(axes[rows].options), metrics)
    if len(reader.problems) > before or value is None:
        return None
    return Table(
        rows=rows,
        columns=columns,
        value=value,
        more=tuple(extra for extra in more if extra is not None),
        paper=paper,
        paper_source=source,
        protocol=protocol,
        base=base,
        factorial=factorial,
        hypotheses=tuple(hypotheses),
    )


def _base(reader: Reader, item: Item, axes: Mapping[str, Axis], rows: str | None) -> str | None:
    """`effects: {base: OPTION}`: the row that the others are compared with."""
    parts = reader.mapping(item, ["base"])
    if not item.is_mapping:
        return None
    require(reader, item, parts, ["base"])
    if "base" not in parts or rows is None:
        return None
    return reader.word(parts["base"], f"unknown option of axis `{rows}`", list(axes[rows].options))


def _factorial(reader: Reader, item: Item, axes: Mapping[str, Axis]) -> Factorial | None:
    """`factorial: {factors: [axis, ...], within: {axis: option}}`."""
    parts = reader.mapping(item, ("factors", "within"))
    if not item.is_mapping:
        return None
    require(reader, item, parts, ["factors"])
    factors: list[str] = []
    entries = reader.sequence(parts["factors"], hint="write `factors: [axis, axis]`") if "factors" in parts else []
    for entry in entries:
        name = reader.word(entry, "unknown axis", list(axes))
        if name is None:
            continue
        if name in factors:
            reader.problem(entry, "is named twice")
        elif len(axes[name].options) != 2:
            reader.problem(entry, f"is an axis of {len(axes[name].options)} options", allowed="axes of exactly two")
        else:
            factors.append(name)
    if len(entries) < 2 and "factors" in parts and parts["factors"].is_list:
        reader.problem(parts["factors"], "crosses nothing", allowed="at least two axes", hint="one axis makes `rows`")
    chosen = {name: axis for name, axis in axes.items() if name in factors}
    found = read_condition(reader, parts["within"], chosen) if "within" in parts else {}
    within = {name: tuple(option for option in axes[name].options if option in options) for name, options in found.items()}
    return Factorial(factors=tuple(factors), within=within)


def _value(
    reader: Reader, item: Item, axes: Mapping[str, Axis], pipeline: Mapping[str, Step], main: Value | None
) -> Value | None:
    """One number of a cell; an entry of `more` takes over what it does not say from the main value."""
    parts = reader.mapping(item, VALUE_KEYS)
    if not item.is_mapping:
        return None
    require(reader, item, parts, ["metric"])
    last = main.step if main is not None else (list(pipeline)[-1] if pipeline else "")
    step = reader.word(parts["step"], "unknown step", list(pipeline)) if "step" in parts else last
    over = main.over if main is not None else None
    if "over" in parts:
        over = None if parts["over"].is_null else reader.word(parts["over"], "unknown axis", list(axes))
    metric = reader.text(parts["metric"]) if "metric" in parts else None
    if metric is not None and step is not None and step in pipeline:
        metric = _known_metric(reader, parts["metric"], metric, pipeline[step], pipeline)
    scale = reader.number(parts["scale"]) if "scale" in parts else 1.0
    digits = reader.integer(parts["digits"], least=0, most=12) if "digits" in parts else 2
    better = reader.word(parts["better"], "unknown direction", DIRECTIONS) if "better" in parts else "higher"
    label = reader.text(parts["label"]) if "label" in parts else metric
    if metric is None or step is None or scale is None or digits is None or better is None:
        return None
    return Value(metric=metric, step=step, scale=scale, digits=digits, better=better, over=over, label=label or metric)


def _known_metric(reader: Reader, item: Item, metric: str, step: Step, pipeline: Mapping[str, Step]) -> str | None:
    known = METRICS.get(step.job)
    if known is None or metric in known:  # an unknown job is a problem of its own
        return metric
    owners = [other.name for other in pipeline.values() if metric in METRICS.get(other.job, {})]
    if owners:
        reader.problem(item, f"step `{step.name}` does not write this metric", hint=f"add `step: {owners[-1]}`")
    else:
        every = [name for other in pipeline.values() for name in METRICS.get(other.job, {})]
        reader.unknown(item, f"unknown metric of step `{step.name}`", metric, list(known) if metric not in every else every)
    return None


def _check_axes(
    reader: Reader,
    item: Item,
    parts: Mapping[str, Item],
    axes: Mapping[str, Axis],
    shown: tuple[str | None, ...],
    values: tuple[Value | None, ...],
) -> None:
    """Every axis with several options is rows, columns, a factor, or what a number runs over."""
    for value in values:
        if value is None:
            continue
        if value.over in shown and value.over is not None:
            reader.problem(parts["value"], f"runs over `{value.over}`, which is an axis of the table", value=value.metric)
        loose = [name for name, axis in axes.items() if name not in (*shown, value.over) and len(axis.options) > 1]
        if loose:
            names = ", ".join(f"`{name}`" for name in loose)
            shape = "factors" if "factorial" in parts else "rows, columns"
            more = "add it to the `factors`" if "factorial" in parts else "make it the `columns`"
            hint = f"name it in `value.over`, {more}, or move it into another sweep"
            reader.problem(item, f"axis {names} is neither {shape} nor over", value=value.metric, hint=hint)


def _paper(reader: Reader, item: Item, axes: Mapping[str, Axis], rows: str, columns: str | None) -> dict[str, dict[str, float]]:
    """Published numbers; without columns a row holds its number directly, kept under the column ``."""
    paper: dict[str, dict[str, float]] = {}
    for row, row_item in reader.mapping(item, list(axes[rows].options)).items():
        if columns is None:
            found = reader.number(row_item)
            if found is not None:
                paper[row] = {"": found}
            continue
        numbers = {
            column: reader.number(number) for column, number in reader.mapping(row_item, list(axes[columns].options)).items()
        }
        paper[row] = {column: number for column, number in numbers.items() if number is not None}
    return paper


def _protocol(reader: Reader, item: Item, axes: Mapping[str, Axis], columns: str | None) -> str | dict[str, str]:
    """How the paper measured: one text, or one per column option."""
    if not item.is_mapping:
        return reader.text(item) or ""
    if columns is None:
        reader.problem(item, "names columns, and the table has none", hint="write one text")
        return ""
    texts = {column: reader.text(text) for column, text in reader.mapping(item, list(axes[columns].options)).items()}
    return {column: text for column, text in texts.items() if text is not None}
