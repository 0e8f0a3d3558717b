"""What a stranger's file, name or environment must not be able to do: run code, leave its folder, become shell, show a secret."""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import os
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator import shipping
from orchestrator.cli import main as cli
from orchestrator.errors import ClusterError, Problem, UserError
from orchestrator.slurm.submit import ArrayRequest, clean_environment, write_index
from orchestrator.store.runs import Store
from orchestrator.submission import freeze, make_plan
from orchestrator.sweep.compose import Composer
from orchestrator.sweep.grammar import parse_sweep
from orchestrator.tables.latex import escape
from orchestrator.tracking.address import shown
from orchestrator.tracking.cursors import MARKS, Marks
from orchestrator.tracking.mlflow_store import _unreachable
from orchestrator.workspace import Root

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("orchestrator", "jobs", "models")

SECRET = "s3cr3t-marker-7f1a"
SECRET_VARIABLES = (
    "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID",
    "AWS_SESSION_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "SLURM_JWT", "GITHUB_TOKEN",
)  # fmt: skip

HOSTILE = (
    "a b", "it's", 'say "x"', "$(touch pwned)", "`touch pwned`", "; touch pwned #", "a && touch pwned", "${HOME}", "é 槽 🦜",
    "-rf", "x" * 200, "%j %A", "a\\b", "*", "~", "a|b>c", "..", "#SBATCH --wrap=x",
)  # fmt: skip
"""Text that is data wherever it stands."""


# --- nothing executes --------------------------------------------------------------------------------------------------------


@functools.cache
def _nodes() -> list[tuple[str, ast.AST]]:
    """Calls and imports of the packages, each with its place."""
    found: list[tuple[str, ast.AST]] = []
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call | ast.Import | ast.ImportFrom):
                    found.append((f"{path.relative_to(REPOSITORY)}:{node.lineno}", node))
    return found


def _calls() -> Iterator[tuple[str, ast.Call]]:
    return ((where, node) for where, node in _nodes() if isinstance(node, ast.Call))


def _complaint(call: ast.Call) -> str:
    """Why this call could run or unpack what a file says; empty when it could not."""
    name, keywords = ast.unparse(call.func), {one.arg: ast.unparse(one.value) for one in call.keywords}
    owner, _, method = name.rpartition(".")
    loader = keywords.get("Loader", "")
    if (
        owner == "yaml"
        and method in ("load", "load_all", "parse", "compose", "compose_all", "scan")
        and "safe" not in loader.lower()
    ):
        return "" if loader == "loader" else "not a safe loader"
    if owner == "yaml" and method.startswith(("unsafe", "full")):
        return "not a safe loader"
    if name == "torch.load" and keywords.get("weights_only") != "True":
        return "without weights_only=True"
    if owner in ("np", "numpy") and method == "load" and keywords.get("allow_pickle") != "False":
        return "without allow_pickle=False"
    if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput"):
        return "runs text"
    if owner in ("pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib") or name == "hydra.utils.instantiate":
        return "unpickles"
    if keywords.get("shell") not in (None, "False"):
        return "through a shell"
    if method in ("extractall", "extract") and keywords.get("filter") not in ("'data'",):
        return "unpacks without filter='data'"
    if method == "unpack_archive" and keywords.get("filter") != "'data'":
        return "unpacks without filter='data'"
    return ""


def test_that_no_call_runs_or_unpacks_what_a_file_says() -> None:
    assert [f"{where}: {ast.unparse(call)[:80]}: {why}" for where, call in _calls() if (why := _complaint(call))] == []


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("yaml.load(t)", True), ("yaml.load(t, Loader=yaml.SafeLoader)", False), ("yaml.unsafe_load(t)", True),
        ("yaml.safe_load(t)", False), ("torch.load(p)", True), ("torch.load(p, weights_only=False)", True),
        ("torch.load(p, weights_only=True)", False), ("np.load(p)", True), ("np.load(p, allow_pickle=False)", False),
        ("pickle.loads(b)", True), ("eval(t)", True), ("model.eval()", False), ("os.system(t)", True),
        ("subprocess.run(t, shell=True)", True), ("subprocess.run([t])", False), ("archive.extractall(p)", True),
        ("archive.extractall(p, filter='data')", False), ("hydra.utils.instantiate(c)", True), ("re.compile(t)", False),
    ],
)  # fmt: skip
def test_that_the_audit_sees_what_it_looks_for(text: str, refused: bool) -> None:
    call = ast.parse(text).body[0]
    assert isinstance(call, ast.Expr)
    assert isinstance(call.value, ast.Call)
    assert bool(_complaint(call.value)) is refused


def test_that_calls_to_unpickle_cannot_hide_behind_another_name() -> None:
    unpickling = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
    for where, node in _nodes():
        if isinstance(node, ast.Import):
            assert not [one.name for one in node.names if one.asname is not None and one.name in unpickling], where
        elif isinstance(node, ast.ImportFrom) and node.module in unpickling:
            assert {one.name for one in node.names} <= {"UnpicklingError"}, where


def test_that_a_checkpoint_that_is_a_pickle_bomb_is_not_run(tmp_path: Path) -> None:
    import pickle

    import torch

    class Bomb:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {tmp_path / 'pwned'}",)

    (tmp_path / "state.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True)
    assert not (tmp_path / "pwned").exists()


def sweep_text(title: str = "t", label: str = "a", base: str = "steps=3", more: str = "") -> str:
    return f"""
title: {title}
base: [{json.dumps(base)}]
axes:
  seed: {{a: {{label: {label}, set: [seed=0]}}}}
pipeline:
  count: {{job: count}}
table: {{rows: seed, value: {{metric: count/value, step: count}}}}
{more}
"""


@pytest.mark.parametrize(
    "value", ["!!python/object/apply:os.system ['touch pwned']", "!!python/name:os.system", "!!python/module:os", "!touch pwned"]
)
def test_that_a_yaml_tag_makes_nothing_happen(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(UserError):
        assert type(parse_sweep(sweep_text(title=value), "s.yaml").title) is str
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "override",
    [
        "data.path=${oc.env:HF_TOKEN}", "+x=${oc.decode:a}", "seed=${hydra:runtime.cwd}", "+x='${${y}.env:HOME}'",
        "+x={a: ${oc.env:HOME}}", "+x=[${oc.env:HOME,0}]",
    ],
)  # fmt: skip
def test_that_an_override_cannot_read_the_environment(override: str) -> None:
    with pytest.raises(UserError, match="calls a resolver"):
        parse_sweep(sweep_text(base=override), "s.yaml")


@pytest.mark.parametrize("override", ["steps=${seed}", "+x={a: ${seed}, b: 2}", "+x='a: b'"])
def test_that_an_override_may_still_name_another_key(override: str) -> None:
    assert parse_sweep(sweep_text(base=override), "s.yaml").base == (override,)


def test_that_no_shipped_configuration_reads_the_environment() -> None:
    for path in (REPOSITORY / "jobs" / "conf").rglob("*.yaml"):
        assert "oc.env" not in path.read_text(encoding="utf-8"), path


def test_that_a_target_to_call_is_not_taken_into_a_configuration() -> None:
    composer = Composer(REPOSITORY / "jobs" / "conf")
    from orchestrator.sweep.expand import expand
    from orchestrator.sweep.plan import plan

    sweep = parse_sweep(sweep_text(base="+_target_=os.system"), "s.yaml")
    with pytest.raises(UserError):
        plan(sweep, expand(sweep), composer, content=lambda *_: "", existing=lambda _: None, code_tree="")


# --- no shell from text ------------------------------------------------------------------------------------------------------

RESOURCES = {"timeout_min": 10, "cpus_per_task": 1, "nodes": 1}


def ran(request: ArrayRequest, place: Path, tmp_path: Path, *, task: int = 0) -> list[str]:
    """The arguments of srun, called in `place`, when bash runs the script as Slurm would."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    said = tmp_path / "said.json"
    stub = f"#!{sys.executable}\nimport json, os, sys\njson.dump([os.getcwd(), sys.argv[1:]], open({str(said)!r}, 'w'))\n"
    (tmp_path / "bin" / "srun").write_text(stub)
    (tmp_path / "bin" / "srun").chmod(0o755)
    script = request.folder / "submission.sh"
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).stderr == b""
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": str(task)}
    done = subprocess.run(["bash", str(script)], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    found, arguments = json.loads(said.read_text())
    assert found == str(place)
    return list(arguments)


@pytest.mark.parametrize("name", HOSTILE)
def test_that_a_path_stays_data_in_the_script(name: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    root = Path(os.path.normpath(base / name)) if name == ".." else base / name
    folder, run_dir = root / "slurm" / "0123456789ab", root / "runs" / "count-abc"
    run_dir.mkdir(parents=True)
    (root / "slurm").mkdir(mode=0o700, exist_ok=True)
    request = ArrayRequest(token="0123456789ab", folder=folder, tasks=1, resources=RESOURCES, python=f"/opt/{name}/python")
    write_index(request, [run_dir])
    arguments = ran(request, run_dir, tmp_path)
    assert arguments[-4:] == [f"/opt/{name}/python", "-m", "jobs", str(run_dir)]
    assert not list(tmp_path.rglob("pwned"))
    for line in request.script().splitlines():
        if line.startswith("#SBATCH --chdir="):
            assert shlex.split(line.partition("=")[2]) == [str(folder)]


@pytest.mark.parametrize("name", HOSTILE)
def test_that_the_paths_of_a_pack_stay_data_in_the_script(name: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    root = Path(os.path.normpath(base / name)) if name == ".." else base / name
    run_dirs = [root / "runs" / f"count-{number}" for number in range(3)]
    (root / "slurm").mkdir(mode=0o700, parents=True, exist_ok=True)
    request = ArrayRequest(
        token="0123456789ab", folder=root / "slurm" / "0123456789ab", tasks=2, runs_per_task=2,
        resources=RESOURCES | {"runs_per_gpu": 2}, python=f"/opt/{name}/python",
    )  # fmt: skip
    write_index(request, run_dirs)
    for task, members in enumerate((run_dirs[:2], run_dirs[2:])):
        arguments = ran(request, tmp_path, tmp_path, task=task)
        assert arguments[-3 - len(members) :] == [f"/opt/{name}/python", "-m", "jobs.pack", *map(str, members)]
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("text", HOSTILE)
def test_that_a_resource_stays_one_word_of_the_header(text: str, tmp_path: Path) -> None:
    resources = RESOURCES | {"partition": text, "account": text, "comment": text, "additional_parameters": {"reservation": text}}
    (tmp_path / "slurm").mkdir()
    (tmp_path / "run").mkdir()
    request = ArrayRequest(token="0123456789ab", folder=tmp_path / "slurm" / "t", tasks=1, resources=resources)
    write_index(request, [tmp_path / "run"])
    ran(request, tmp_path / "run", tmp_path)
    header = [line.removeprefix("#SBATCH --") for line in request.script().splitlines() if line.startswith("#SBATCH ")]
    found = {key: shlex.split(value) for key, _, value in (line.partition("=") for line in header)}
    assert [found[key] for key in ("partition", "account", "comment", "reservation")] == [[text]] * 4
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("resources", [{"partition": "gpu\ntouch pwned"}, {"additional_parameters": {"qos": "a\rb", "x\ny": 1}}])
def test_that_a_line_break_never_reaches_the_header(resources: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="line break"):
        ArrayRequest(token="0123456789ab", folder=tmp_path, tasks=1, resources=RESOURCES | resources).script()
    written = {key: value for key, value in resources.items()}
    with pytest.raises(UserError, match=r"line break|not an option of sbatch|control character"):
        parse_sweep(sweep_text(more=f"resources: {{count: {json.dumps(written)}}}"), "s.yaml")


def test_that_a_root_with_a_line_break_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="control character"):
        Root(tmp_path / "a\nb").create()


# --- names are data ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".", "..", "...", "a/b", "../x", "a b", "é", "a\nb", "x" * 300, "", "$(id)", "-", "a\x00b"])
def test_that_a_name_is_a_word_and_no_path(name: str) -> None:
    with pytest.raises(UserError):
        parse_sweep(sweep_text().replace("{a: {label", f"{{{json.dumps(name)}: {{label"), "s.yaml")
    with pytest.raises(UserError):
        parse_sweep(sweep_text(), f"sweeps/{name or ' '}.yaml" if "/" not in name else f"{name.replace('/', ':')}.yaml")


@pytest.mark.parametrize(
    "text", [*HOSTILE, "a\nb", "x" * 300, "../../etc/passwd", "<script>alert(1)</script>", "\\input{/etc/passwd}"]
)
def test_that_titles_and_labels_may_be_anything_that_can_be_read(text: str) -> None:
    sweep = parse_sweep(
        sweep_text(title=json.dumps(text, ensure_ascii=False), label=json.dumps(text, ensure_ascii=False)), "s.yaml"
    )
    assert sweep.title == sweep.axes["seed"].options["a"].label == " ".join(text.split())


@pytest.mark.parametrize("text", ["\x1b]0;owned\x07", "\x00", "a\x08b", "\x9b2J"])
def test_that_control_characters_reach_no_terminal(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_sweep(sweep_text(title=json.dumps(text)), "s.yaml")
    assert text not in str(caught.value)
    assert text not in str(Problem(what=text, where=text, value=text, hint=text))


def test_that_latex_takes_no_command_from_a_label() -> None:
    assert escape("\\input{/etc/passwd}") == r"\textbackslash{}input\{/etc/passwd\}"


# --- private by default ------------------------------------------------------------------------------------------------------


@pytest.fixture
def orch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The `orch` command in this process, on TMP/root, without Slurm."""
    monkeypatch.setattr("orchestrator.cluster.find_slurm", lambda: None)
    monkeypatch.setattr("os.sync", lambda: None)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["orch", "--root", str(tmp_path / "root"), *arguments])
        code: object = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        assert code in (0, None), arguments

    return run


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    path = tmp_path / "counting.yaml"
    path.write_text(sweep_text(title='"a title with ${HOME} and `id`"'))
    return path


def modes(root: Path) -> dict[str, int]:
    found = {str(path.relative_to(root)): path.lstat().st_mode & 0o7777 for path in root.rglob("*") if not path.is_symlink()}
    return {name: mode for name, mode in found.items() if not name.endswith(("-journal", "-wal", "-shm"))}


def test_that_whatever_a_root_holds_is_its_owners_alone(
    orch: Callable[..., None], sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root").mkdir(mode=0o755)  # somebody's own folder, open to all
    monkeypatch.setattr(shipping, "try_to_ship", lambda *_: "")
    before = os.umask(0o022)
    try:
        orch("submit", str(sweep), "--local")
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    found = modes(tmp_path / "root")
    assert {"orch.db", "lock", "runs", "snapshots"} <= found.keys()
    assert any(name.endswith("outcome.json") for name in found)
    assert any("/logs/" in name for name in found)
    assert [f"{name} {mode:o}" for name, mode in found.items() if mode & 0o077] == []


def test_that_a_teams_root_is_open_to_its_group_and_to_nobody_else(
    orch: Callable[..., None], sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root").chmod(0o2770)
    monkeypatch.setattr(shipping, "try_to_ship", lambda *_: "")
    before = os.umask(0o022)
    try:
        orch("submit", str(sweep), "--local")
    finally:
        os.umask(before)
    found = modes(tmp_path / "root")
    assert [f"{name} {mode:o}" for name, mode in found.items() if mode & 0o007 or mode & 0o060 != 0o060] == []
    folders = [name for name in found if (tmp_path / "root" / name).is_dir()]
    assert [name for name in folders if not found[name] & 0o2000] == []


def test_that_a_root_below_a_teams_folder_is_private_until_somebody_opens_it(tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab").chmod(0o2770)
    root = Root(tmp_path / "lab" / "root")
    root.create()
    assert root.umask == 0o077
    assert root.runs.stat().st_mode & 0o077 == 0


# --- secrets -----------------------------------------------------------------------------------------------------------------


def test_that_no_secret_of_the_environment_is_ever_written(
    orch: Callable[..., None], sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in SECRET_VARIABLES:
        monkeypatch.setenv(name, SECRET)
    orch("submit", str(sweep), "--local", "--comment", "nothing special")
    orch("table", "counting")
    said = capfd.readouterr()
    assert "a title with" in said.out
    assert SECRET not in said.out + said.err
    files = [path for path in (tmp_path / "root").rglob("*") if path.is_file()]
    assert {"mlflow.db", "orch.db", "spec.json", "outcome.json", "0001.json", "0001.jsonl"} <= {path.name for path in files}
    assert any("mlartifacts" in path.parts for path in files)
    with sqlite3.connect(tmp_path / "root" / "mlflow.db") as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone()[0] >= 2
    assert [str(path) for path in files if SECRET.encode() in path.read_bytes()] == []


def test_that_no_secret_reaches_a_job_or_its_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRET_VARIABLES:
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{SECRET}@host")
    (tmp_path / "slurm").mkdir()
    request = ArrayRequest(token="0123456789ab", folder=tmp_path / "slurm" / "t", tasks=1, resources=RESOURCES)
    write_index(request, [tmp_path])
    assert SECRET not in "".join(path.read_text() for path in request.folder.iterdir())
    assert SECRET not in "".join(clean_environment(os.environ).values())
    assert (
        "#SBATCH --export=ALL\n"
        in replace(request, resources=RESOURCES | {"additional_parameters": {"export": "HF_TOKEN"}}).script()
    )


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (f"https://user:{SECRET}@host:5000/a", "https://host:5000/a"), (f"http://{SECRET}@host", "http://host"),
        (f"postgresql://u:{SECRET}@db/x", "postgresql://db/x"), (f"http://u:p@{SECRET}@host", "http://host"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"), ("http://host/x@y", "http://host/x@y"),
        ("http://[", "http://["),
    ],
)  # fmt: skip
def test_that_an_address_is_shown_without_its_password(address: str, expected: str, tmp_path: Path) -> None:
    assert shown(address) == expected
    error = _unreachable(address, RuntimeError(f"API request to {address}/api/2.0 failed"))
    assert SECRET not in str(error)
    marks = Marks(tracking_uri=address, runs={"a": "b"}, changed=True)
    marks.save(tmp_path)
    assert SECRET not in (tmp_path / MARKS).read_text()
    assert Marks.load(tmp_path, address).runs == {"a": "b"}


def test_that_doctor_and_a_tracker_that_does_not_answer_show_no_password(
    orch: Callable[..., None], sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{SECRET}@127.0.0.1:9")
    orch("submit", str(sweep), "--local")
    for arguments in (["doctor"], ["table", "counting"], ["sync"]):
        with pytest.raises(AssertionError):
            orch(*arguments)
    said = capfd.readouterr()
    assert "127.0.0.1:9" in said.out + said.err
    assert SECRET not in said.out + said.err
    files = [path for path in (tmp_path / "root").rglob("*") if path.is_file()]
    assert [str(path) for path in files if SECRET.encode() in path.read_bytes()] == []


def test_that_a_frozen_run_knows_nothing_of_the_environment(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRET_VARIABLES:
        monkeypatch.setenv(name, SECRET)
    root = Root(tmp_path / "root")
    root.create()
    store = Store(root.store)
    freeze(make_plan(sweep, store), root, store, comment="", partial=False)
    store.close()
    assert not any(SECRET.encode() in path.read_bytes() for path in root.path.rglob("*") if path.is_file())
