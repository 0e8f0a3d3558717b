from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import UserError
from orchestrator.sweep.grammar import load_sweep, parse_sweep
from orchestrator.sweep.model import Factorial

Complaint = Callable[[Callable[[], object]], str]

GRID = """
title: a grid
axes:
  method:
    one: {label: One, set: [objective=reconstruction], note: the first}
    two: {set: [objective=covariance]}
  data:
    small: {set: [data=mdsprites_easy]}
    large: {set: [data=mdsprites_generated]}
  seed: {key: seed, values: [0, 1]}
"""


def test_that_a_sweep_is_read_as_written() -> None:
    sweep = parse_sweep(
        GRID
        + """
base: [experiment=demo]
where:
  - {if: {method: one, data: large}, cite: 20, source: a page}
  - {if: {data: [small, large], seed: 1}, set: [steps=5]}
resources: {train: {gpus_per_node: 2, timeout_min: 240, setup: [module load x], additional_parameters: {nice: 5}, qos: null}}
table:
  rows: method
  columns: data
  value: {metric: eval/fg_ari, scale: 100, digits: 1, over: seed}
  more: [{metric: train/loss, step: train, better: lower, label: loss}]
  paper: {one: {small: 90.71}, two: {small: 1e1, large: 29}}
  paper_source: a paper
""",
        "sweeps/grid.yaml",
    )
    assert (sweep.name, sweep.title, sweep.base) == ("grid", "a grid", ("experiment=demo",))
    assert sweep.axes["method"].options["one"].label == "One"
    assert sweep.axes["method"].options["two"].label == "two"
    assert sweep.axes["seed"].options["1"].set == ("seed=1",)
    cited, changed = sweep.where
    assert (cited.cite, cited.source, cited.when) == (20.0, "a page", {"method": {"one"}, "data": {"large"}})
    assert (changed.set, changed.when["data"]) == (("steps=5",), {"small", "large"})
    assert [(step.name, step.needs) for step in sweep.pipeline.values()] == [
        ("prepare", ()),
        ("train", ("prepare",)),
        ("evaluate", ("prepare", "train")),
    ]
    assert sweep.resources["train"] == {
        "gpus_per_node": 2,
        "timeout_min": 240,
        "setup": ["module load x"],
        "additional_parameters": {"nice": 5},
        "qos": None,
    }
    table = sweep.table
    assert table is not None
    assert (table.value.step, table.value.over, table.value.label, table.value.better) == (
        "evaluate",
        "seed",
        "eval/fg_ari",
        "higher",
    )
    assert (table.more[0].step, table.more[0].over, table.more[0].better) == ("train", "seed", "lower")
    assert table.paper == {"one": {"small": 90.71}, "two": {"small": 10.0, "large": 29.0}}


def test_that_a_table_without_columns_takes_one_paper_number_per_row() -> None:
    sweep = parse_sweep(
        "axes: {m: {a: {}, b: {}}}\ntable: {rows: m, value: {metric: eval/fg_ari}, paper: {a: 3.5}, paper_source: x}",
        "s.yaml",
    )
    assert sweep.table is not None
    assert sweep.table.paper == {"a": {"": 3.5}}


def test_that_steps_come_after_the_steps_that_they_need() -> None:
    sweep = parse_sweep(
        "axes: {seed: {key: seed, values: [0]}}\n"
        "pipeline: {c: {job: count, needs: [b]}, b: {job: count, needs: [a]}, a: {job: count}}",
        "s.yaml",
    )
    assert list(sweep.pipeline) == ["a", "b", "c"]


TWO_STAGES = """
axes:
  method: {base: {}, gated: {steps: {second: [seed=4], last: [seed=5]}}}
  seed: {key: seed, values: [0]}
pipeline:
  last: {job: train, needs: [data, [second, first]]}
  first: {job: count, needs: [data]}
  second: {job: count, needs: [data, first], only: {method: gated}}
  data: {job: prepare}
"""


def test_that_a_step_may_belong_to_some_cells_and_a_need_may_be_a_choice() -> None:
    sweep = parse_sweep(TWO_STAGES, "s.yaml")
    assert list(sweep.pipeline) == ["data", "first", "second", "last"]
    last, second = sweep.pipeline["last"], sweep.pipeline["second"]
    assert last.needed(["data", "first", "second"]) == ("data", "second")
    assert last.needed(["data", "first"]) == ("data", "first")
    assert last.needed([]) == ()
    assert [second.belongs({"method": method, "seed": "0"}) for method in ("base", "gated")] == [False, True]
    assert sweep.axes["method"].options["gated"].steps == {"second": ("seed=4",), "last": ("seed=5",)}


def test_that_two_needs_of_one_kind_are_fine_where_no_cell_has_both() -> None:
    text = TWO_STAGES.replace("[data, [second, first]]", "[first, second]").replace("needs: [data]}", "only: {method: base}}")
    text = text.replace("[data, first], ", "[data], ")
    assert parse_sweep(text, "s.yaml").pipeline["last"].needs == ("first", "second")


def test_that_a_circle_through_a_choice_is_found(complaint: Complaint) -> None:
    text = TWO_STAGES.replace("first: {job: count, needs: [data]}", "first: {job: count, needs: [[last, data]]}")
    assert "need each other in a circle" in complaint(lambda: parse_sweep(text, "s.yaml"))


def test_that_a_protocol_may_differ_by_column(complaint: Complaint) -> None:
    table = "table: {rows: method, columns: data, value: {metric: eval/ari, over: seed}, protocol: {small: one way}}\n"
    found = parse_sweep(GRID + table, "s.yaml").table
    assert found is not None
    assert found.protocol == {"small": "one way"}
    assert "did you mean `small`?" in complaint(lambda: parse_sweep(GRID + table.replace("small:", "smal:"), "s.yaml"))


def test_that_option_names_are_taken_as_written_whatever_yaml_makes_of_them() -> None:
    sweep = parse_sweep(
        "axes: {a: {on: {}, 010: {}, null: {}}, lr: {key: optimizer.learning_rate, values: [1e-3, 0.10]}}", "s.yaml"
    )
    assert list(sweep.axes["a"].options) == ["on", "010", "null"]
    assert sweep.axes["lr"].options["1e-3"].set == ("optimizer.learning_rate=1e-3",)
    assert "0.10" in sweep.axes["lr"].options


WRONG = [
    ("titel: x\n", "s.yaml:11: titel: unknown key", "hint: did you mean `title`?"),
    ("axes: {}\n", "s.yaml:11: axes: key `axes` is given twice", "first in line 4"),
    ("base: experiment=demo\n", "s.yaml:11: base: is not a list", "write a list"),
    ("base: [{seed: 1}]\n", "s.yaml:11: base[0]: is not an override", "write `key=value` instead of `key: value`"),
    ("base: [seed]\n", "s.yaml:11: base[0]: is not an override", "value:   seed"),
    ("base: [kind=train]\n", "base[0]: `kind` cannot be overridden", "hint:"),
    ("base: [hydra.run.dir=x]\n", "base[0]: sets Hydra itself", "resources:"),
    ("where: [{if: {metod: one}, skip: true}]\n", "where[0].if.metod: unknown key", "did you mean `method`?"),
    ("where: [{if: {method: won}, skip: true}]\n", "unknown option of axis `method`", "allowed: one, two"),
    ("where: [{if: {method: one}}]\n", "where[0]: does nothing", "allowed: set, steps, skip, cite"),
    ("where: [{if: {method: one}, cite: 3}]\n", "`cite` and `source` go together", "says where it is from"),
    ("where: [{if: {method: one}, cite: x, source: y}]\n", "where[0].cite: is not a number", "value:   x"),
    ("where: [{if: {method: one}, skip: true, set: [seed=1]}]\n", "both sets, skips or cites", "use one of the three"),
    ("where: [{if: {method: one}, skip: false}]\n", "where[0].skip: does nothing", "allowed: true"),
    ("where: [{if: {seed: 2}, skip: true}]\n", "unknown option of axis `seed`", "allowed: 0, 1"),
    ("where: [{if: {}, skip: true}]\n", "skips every cell", "where"),
    (
        "where:\n- {if: {method: one}, skip: true}\n- {if: {method: one, seed: 0}, set: [steps=1]}\n",
        "s.yaml:13: where[1]: matches no cell",
        "method: one, seed: 0",
    ),
    ("pipeline: {train: {jop: train}}\n", "pipeline.train.jop: unknown key", "did you mean `job`?"),
    ("pipeline: {train: {job: trian}}\n", "unknown kind of job", "did you mean `train`?"),
    ("pipeline: {train: {needs: []}}\n", "pipeline.train: lacks the key `job`", ""),
    ("pipeline: {a: {job: count, needs: [b]}}\n", "needs an unknown step", "value:   b"),
    ("pipeline: {a: {job: count, needs: [b]}, b: {job: count, needs: [a]}}\n", "need each other in a circle", "a -> b -> a"),
    ("pipeline: {a: {job: count, needs: [a]}}\n", "pipeline.a.needs[0]: needs an unknown step", "value:   a"),
    ("pipeline: {a: {job: count}, b: {job: count}, c: {job: count, needs: [a, b]}}\n", "needs two steps of kind `count`", "a, b"),
    (
        "pipeline: {a: {job: count}, b: {job: count}, c: {job: count, needs: [[a, b], a]}}\n",
        "needs two steps of kind `count`",
        "give one of the steps an `only`",
    ),
    ("pipeline: {a: {job: count}, c: {job: count, needs: [[a]]}}\n", "is no choice of steps", "the first of them"),
    ("pipeline: {a: {job: count, only: {metod: one}}}\n", "pipeline.a.only.metod: unknown key", "did you mean `method`?"),
    ("pipeline: {a: {job: count, only: {method: won}}}\n", "unknown option of axis `method`", "allowed: one, two"),
    ("pipeline: {a: {job: count, only: {}}}\n", "pipeline.a.only: names no axis", "leave it out"),
    ("where: [{if: {method: one}, steps: {trian: [seed=1]}}]\n", "where[0].steps.trian: unknown key", "did you mean `train`?"),
    ("where: [{if: {method: one}, steps: {train: [seed=1, seed=2]}}]\n", "sets `seed` twice", "seed=1, seed=2"),
    ("where: [{if: {method: one}, steps: {train: []}}]\n", "where[0].steps.train: has no override", ""),
    ("where: [{if: {method: one}, steps: {train: seed=1}}]\n", "where[0].steps.train: is not a list", "write a list"),
    ("where: [{if: {method: one}, steps: {train: [seed=1]}, skip: true}]\n", "both sets, skips or cites", "use one of the three"),
    (
        "pipeline: {a: {job: count}, b: {job: count, only: {method: two}}}\nwhere: [{if: {method: one}, steps: {b: [seed=1]}}]\n",
        "s.yaml:12: where[0]: this rule has overrides for a step of other cells",
        "allowed: cells with method: two",
    ),
    ("resources: {trian: {nodes: 1}}\n", "resources.trian: unknown key", "did you mean `train`?"),
    ("resources: {train: {gpus: 1}}\n", "resources.train.gpus: unknown key", "gpus_per_node"),
    ("resources: {train: {nodes: two}}\n", "resources.train.nodes: is not a whole number in range", "value:   two"),
    ("resources: {train: {nodes: 0}}\n", "resources.train.nodes: is not a whole number in range", "allowed: 1 ..."),
    ("resources: {train: {nodes: null}}\n", "resources.train.nodes: may not be null", "allowed: int"),
    ("resources: {train: {setup: module load x}}\n", "resources.train.setup: is not a list", "write `setup: [command, ...]`"),
    ("resources: {train: {additional_parameters: [a]}}\n", "additional_parameters: is not a mapping", ""),
    ("resources: {train: {submitit_folder: x}}\n", "submitit_folder: unknown key", ""),
    ("resources: {train: {elastic: 4}}\n", "s.yaml:11: resources.train.elastic: is not a list", "write `elastic: [2, 4, 8]`"),
    (
        "resources: {train: {elastic: []}}\n",
        "resources.train.elastic: has no size",
        "write `elastic: [2, 4, 8]`, or leave it out",
    ),
    ("resources: {train: {elastic: [1, 0]}}\n", "resources.train.elastic[1]: is not a whole number in range", "allowed: 1 ..."),
    ("resources: {train: {elastic: [1, 2, 1]}}\n", "resources.train.elastic[2]: is given twice", "value:   1"),
    ("resources: {train: {elastik: [1]}}\n", "resources.train.elastik: unknown key", "did you mean `elastic`?"),
    ("resources: {prepare: {elastic: [1]}}\n", "resources.prepare.elastic: a `prepare` step", "one of embed, evaluate, train"),
    ("table: {rows: methods, value: {metric: eval/ari, over: seed}}\n", "table.rows: unknown axis", "did you mean `method`?"),
    ("table: {rows: method, columns: method, value: {metric: eval/ari}}\n", "table.columns: is also the axis of the rows", ""),
    (
        "table: {rows: method, columns: data, value: {metric: eval/fgari, over: seed}}\n",
        "unknown metric",
        "did you mean `eval/fg_ari`?",
    ),
    (
        "table: {rows: method, columns: data, value: {metric: train/loss, over: seed}}\n",
        "does not write this metric",
        "step: train",
    ),
    (
        "table: {rows: method, columns: data, value: {metric: eval/ari}}\n",
        "axis `seed` is neither rows, columns nor over",
        "value.over",
    ),
    ("table: {rows: method, columns: data, value: {metric: eval/ari, over: data}}\n", "runs over `data`", ""),
    (
        "table: {rows: method, columns: data, value: {metric: eval/ari, over: seed, better: more}}\n",
        "unknown direction",
        "higher, lower, neutral",
    ),
    (
        "table: {rows: method, columns: data, value: {metric: eval/ari, over: seed}, effects: {base: on}}\n",
        "table.effects.base: unknown option of axis `method`",
        "did you mean `one`?",
    ),
    ("table: {rows: method, columns: data, value: {metric: eval/ari, over: seed}, effects: {}}\n", "lacks the key `base`", ""),
    ("table: {value: {metric: eval/ari, over: seed}}\n", "table: lacks the key `rows`", ""),
    (
        "table: {rows: method, factorial: {factors: [method, data]}, value: {metric: eval/ari, over: seed}}\n",
        "table.rows: does not go with `factorial`",
        "",
    ),
    (
        "table: {effects: {base: one}, factorial: {factors: [method, data]}, value: {metric: eval/ari, over: seed}}\n",
        "table.effects: does not go with `factorial`",
        "",
    ),
    (
        "table: {factorial: {factors: [method, dat]}, value: {metric: eval/ari, over: seed}}\n",
        "table.factorial.factors[1]: unknown axis",
        "did you mean `data`?",
    ),
    (
        "table: {factorial: {factors: [method, method]}, value: {metric: eval/ari, over: seed}}\n",
        "table.factorial.factors[1]: is named twice",
        "",
    ),
    (
        "table: {factorial: {factors: [method]}, value: {metric: eval/ari, over: seed}}\n",
        "table.factorial.factors: crosses nothing",
        "at least two axes",
    ),
    ("table: {factorial: {}, value: {metric: eval/ari, over: seed}}\n", "table.factorial: lacks the key `factors`", ""),
    (
        "table: {factorial: {factors: [method, data], within: {seed: 0}}, value: {metric: eval/ari, over: seed}}\n",
        "table.factorial.within.seed: unknown key",
        "allowed: method, data",
    ),
    (
        "table: {factorial: {factors: [method, data], within: {data: smal}}, value: {metric: eval/ari, over: seed}}\n",
        "unknown option of axis `data`",
        "did you mean `small`?",
    ),
    (
        "table: {factorial: {factors: [method, data]}, value: {metric: eval/ari}}\n",
        "axis `seed` is neither factors nor over",
        "add it to the `factors`",
    ),
    (
        "table: {factorial: {factors: [method, data]}, value: {metric: eval/ari, over: data}}\n",
        "runs over `data`, which is an axis of the table",
        "",
    ),
    (
        "table: {rows: method, columns: data, value: {metric: eval/ari, over: seed, digits: 1.5}}\n",
        "is not a whole number",
        "0 ... 12",
    ),
    (
        "table: {rows: method, columns: data, value: {metric: eval/ari, over: seed}, paper: {on: {small: 3}}, paper_source: x}\n",
        "table.paper.on: unknown key",
        "did you mean `one`?",
    ),
    (
        "table: {rows: method, columns: data, value: {metric: eval/ari, over: seed}, paper: {one: {wide: 3}}}\n",
        "table.paper.one.wide: unknown key",
        "allowed: small, large",
    ),
    (
        "table: {rows: method, columns: data, value: {metric: eval/ari, over: seed}, paper: {one: {small: 3}}}\n",
        "has no source",
        "paper_source",
    ),
]


@pytest.mark.parametrize(("text", "what", "detail"), WRONG)
def test_that_a_mistake_is_named_with_its_place_and_a_way_out(text: str, what: str, detail: str, complaint: Complaint) -> None:
    said = complaint(lambda: parse_sweep(GRID + text, "s.yaml"))
    assert what in said
    assert detail in said
    assert said.count("s.yaml:") >= 1


def test_that_a_table_may_ask_for_effects_or_be_a_factorial() -> None:
    text = "table: {rows: method, columns: data, value: {metric: eval/ari, better: neutral, over: seed}, effects: {base: one}}\n"
    table = parse_sweep(GRID + text, "s.yaml").table
    assert table is not None
    assert (table.base, table.factorial, table.value.better, table.shown) == ("one", None, "neutral", ("method", "data"))
    text = (
        "table: {value: {metric: eval/ari, over: seed}, factorial: {factors: [data, method], within: {data: [large, small]}}}\n"
    )
    table = parse_sweep(GRID + text, "s.yaml").table
    assert table is not None
    assert (table.rows, table.base, table.shown) == (None, None, ("data", "method"))
    assert table.factorial == Factorial(factors=("data", "method"), within={"data": ("small", "large")})


def test_that_a_factor_has_two_options(complaint: Complaint) -> None:
    wide = GRID.replace("values: [0, 1]", "values: [0, 1, 2]")
    text = "table: {factorial: {factors: [method, seed]}, value: {metric: eval/ari, over: data}}\n"
    said = complaint(lambda: parse_sweep(wide + text, "s.yaml"))
    assert "table.factorial.factors[1]: is an axis of 3 options" in said
    assert "allowed: axes of exactly two" in said


def test_that_all_problems_of_a_file_come_at_once(complaint: Complaint) -> None:
    said = complaint(lambda: parse_sweep(GRID + "titel: x\nbase: [seed]\nresources: {train: {gpus: 1, nodes: x}}\n", "s.yaml"))
    assert [line.split(": ")[1] for line in said.splitlines() if line.startswith("s.yaml:")] == [
        "titel",
        "base[0]",
        "resources.train.gpus",
        "resources.train.nodes",
    ]


def test_that_the_wording_of_a_problem_stays(complaint: Complaint) -> None:
    said = complaint(lambda: parse_sweep(GRID + "where: [{if: {method: won}, skip: true}]\n", "sweeps/s.yaml"))
    assert said == (
        "sweeps/s.yaml:11: where[0].if.method: unknown option of axis `method`\n"
        "  value:   won\n"
        "  allowed: one, two\n"
        "  hint: did you mean `two`?"
    )


BROKEN = [
    "", "# only a comment\n", "just text", "- a\n- b\n", "a: 1\n---\nb: 2\n", "a: [1, 2", "a:\n\t- b", "axes: &a {x: *a}",
    "a: *missing", "[" * 100_000, "{" * 5_000, "- " * 5_000, "\x00", "\ud800", "axes: {[1, 2]: {}}", "axes: {? {a: 1} : {}}",
    "!!python/object:os.system x", "axes: !!set {a, b}", "<<: {axes: {}}", "axes: {a: {key: seed, values: []}}",
    "axes: {a: {key: 'a b', values: [1]}}", "axes: {a: {key: seed}}", "axes: {a: {}}", "axes: {}", "axes: [a]", "axes: {a: 3}",
    "axes: {'a b': {key: seed, values: [1]}}", "axes: {a: {key: seed, values: [[1]]}}", "axes: {a: {key: kind, values: [1]}}",
    "axes: {a: {key: seed, values: [1, 1]}}", "axes: {a: {x: [seed=1]}}", "title: 3",
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_that_a_broken_file_is_the_users_error_and_names_the_file(text: str, complaint: Complaint) -> None:
    assert "s.yaml" in complaint(lambda: parse_sweep(text, "s.yaml"))


def test_that_an_alias_bomb_is_refused(complaint: Complaint) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert "holds more than" in complaint(lambda: parse_sweep("\n".join(lines), "s.yaml"))


def test_that_too_many_cells_are_refused_before_they_are_made(complaint: Complaint) -> None:
    axes = "\n".join(f"  a{n}: {{key: seed, values: [{', '.join(map(str, range(50)))}]}}" for n in range(9))
    assert "makes too many cells" in complaint(lambda: parse_sweep(f"axes:\n{axes}\n", "s.yaml"))


def test_that_files_that_cannot_be_read_are_the_users_error(tmp_path: Path, complaint: Complaint) -> None:
    (tmp_path / "table1.yaml").write_text(GRID)
    (tmp_path / "latin.yaml").write_bytes(b"title: ok\ntitle: caf\xe9\n")
    (tmp_path / "my sweep.yaml").write_text(GRID)
    assert "did you mean" in complaint(lambda: load_sweep(tmp_path / "tabel1.yaml"))
    assert "is a directory" in complaint(lambda: load_sweep(tmp_path))
    assert "latin.yaml:2: is not UTF-8" in complaint(lambda: load_sweep(tmp_path / "latin.yaml"))
    assert "not a sweep's name" in complaint(lambda: load_sweep(tmp_path / "my sweep.yaml"))
    assert load_sweep(tmp_path / "table1.yaml").text == GRID
    with pytest.raises(UserError):
        load_sweep(tmp_path / "table1.yaml" / "deeper.yaml")
