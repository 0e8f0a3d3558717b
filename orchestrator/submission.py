"""From a sweep file to frozen runs in the store: load, expand, plan, check the site, snapshot the code, freeze. Queues nothing.

Everything that can be wrong is found before the first write; a refused submission is taken back by `undo`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jobs
from jobs.contract import write_atomically
from jobs.data.errors import DataError
from jobs.data_spec import ClipsSpec, CocoSpec, MultiDSpritesSpec, VideoFilesSpec
from jobs.data_spec_parts import CUB_MASKS, PART_FILES, CelebaSpec, CubSpec, PascalPartSpec
from jobs.environment import fingerprint, packages
from jobs.spec import CountSpec, EmbedSpec, FrozenRun, PrepareSpec, TrainSpec
from models.spec import AnyBackbone, BackboneSpec
from models.spec_language import ClipSpec
from models.spec_parts import FeatureNetSpec, PartSlotsSpec, PartsObjective, TrunkSpec
from models.spec_video import LpipsSpec, VideoObjective
from orchestrator import workspace
from orchestrator.elastic import KEY as ELASTIC
from orchestrator.elastic import fitted, planned_tasks, world_sizes
from orchestrator.errors import Problem, UserError
from orchestrator.lifecycle import RESUMABLE, RunState
from orchestrator.records import CellRecord, KnownSweep, RunRecord
from orchestrator.resources import unpackable
from orchestrator.site import Site, check_resources, most_nodes
from orchestrator.store.runs import Store
from orchestrator.sweep.compose import Composer
from orchestrator.sweep.expand import expand
from orchestrator.sweep.grammar import load_sweep
from orchestrator.sweep.plan import WEIGHTS, Known, Plan, PlannedRun, plan
from orchestrator.workspace import Root

ENVIRONMENTS = "environments"
"""ROOT/environments/FINGERPRINT.json: the packages behind the fingerprint that specs and attempts carry."""


def checkout() -> Path:
    """The folder that holds the packages which jobs import: the user's working copy."""
    return Path(jobs.__file__).resolve().parent.parent


Folder = CocoSpec | ClipsSpec | VideoFilesSpec | PascalPartSpec | CubSpec | CelebaSpec
"""Data that are folders of the user's."""
Weights = AnyBackbone | LpipsSpec | FeatureNetSpec | TrunkSpec
"""Of nets that somebody else trained."""
COCO_HINT = (
    "a folder with train2017/, val2017/ and annotations/instances_{train,val}2017.json (README, COCO); "
    "without it `data=coco_mini` makes a miniature"
)
CLIPS_HINT = (
    "a folder with scenes/, images/, train_annos.json and val_annos.json (jobs/data/README.md, clips); "
    "without it `data=toy_clevr` draws clips of its own"
)
VIDEOS_HINT = (
    "a folder with train/ and test/, or with MOVi's shards and data.format=movi (jobs/data/README.md, videos); "
    "without it `data=toy_video` draws videos of its own"
)
PARTS_HINT = (
    "a folder in the original layout (jobs/data/README.md, parts); without it `data=toy_creatures` draws creatures of its own"
)
FOLDER_HINTS = {"coco": COCO_HINT, "clips": CLIPS_HINT, "video_files": VIDEOS_HINT} | dict.fromkeys(PART_FILES, PARTS_HINT)
"""By kind of data set: what must be a folder."""
WEIGHTS_HINT = (
    "give the file that holds the net's parameters, "
    "or take weights=pretrained (timm's, open_clip's or torchvision's download) with path=null"
)


def content_of(kind: str, path: str) -> str:
    """sha256 of a data file, a folder of data, or a weights file, after checking that it is what it should be.

    `kind`: of data set, with a format that it may have behind a space; or `WEIGHTS`. Raises UserError.
    """
    from jobs.data.source import check_source, content_hash

    place = Path(path)
    hint = FOLDER_HINTS.get(kind.partition(" ")[0])
    if hint is not None and not place.is_dir():
        raise UserError(Problem(what="no such folder" if not place.exists() else "is not a folder", value=path, hint=hint))
    if kind == WEIGHTS and not place.is_file():
        what = "no such file of weights" if not place.exists() else "is not a file of weights"
        raise UserError(Problem(what=what, value=path, hint=WEIGHTS_HINT))
    try:
        if kind == "mdsprites":
            check_source(MultiDSpritesSpec(path=path, generator=None))
        return content_hash(place, kind=kind)
    except DataError as error:
        raise UserError(Problem(what=str(error), value=path)) from error


def check_inputs(made: Plan, environ: Mapping[str, str]) -> list[str]:
    """Look at the folders of data and the frozen weights of runs that are not done yet; returns warnings, line by line.

    A folder's lists are read and one image of each split is decoded: some seconds for the original.
    Raises UserError with every folder and weights file that cannot be used.
    """
    from jobs.data.source import check_source
    from jobs.weights_file import cached_weights, check_weights

    problems: list[Problem] = []
    warnings: dict[str, None] = {}
    looked_at: set[Folder | Weights] = set()
    for run in made.runs.values():
        for key, spec in _inputs(run):
            if spec in looked_at or (run.known is not None and run.known.state is RunState.DONE):
                continue
            looked_at.add(spec)
            try:
                if isinstance(spec, Folder):
                    check_source(spec)
                    continue
                found = check_weights(spec, environ)
                if spec.weights == "pretrained" and cached_weights(spec, environ) is None:
                    warnings |= dict.fromkeys((f"warning: {found[0]}", *found[1:]))
            except DataError as error:
                where = f"{made.sweep.path}: {run.step}: {key}"
                what = f"{error.place}: {error.what}"
                problems.append(Problem(what=what, where=where, allowed=error.expected, hint=error.hint))
    problems += _without_masks(made)
    if problems:
        raise UserError(*problems)
    return list(warnings)


def _without_masks(made: Plan) -> list[Problem]:
    """Training steps that ask for the true foreground of birds whose masks were not unpacked, each once."""
    found: dict[tuple[str, str], Problem] = {}
    for run in made.runs.values():
        match run.spec:
            case TrainSpec(objective=PartsObjective(foreground="truth")):
                prepared = made.runs.get(run.needs.get("prepare", ""))
            case _:
                continue
        if prepared is None or not isinstance(prepared.spec, PrepareSpec) or not isinstance(prepared.spec.data, CubSpec):
            continue
        path = prepared.spec.data.path
        done = run.known is not None and run.known.state is RunState.DONE
        if not done and not (masks := Path(path).expanduser() / CUB_MASKS).is_dir():
            found[run.step, path] = Problem(
                what=f"objective.foreground is truth, and there are no masks of the birds: {masks} is missing",
                where=f"{made.sweep.path}: {run.step}: objective.foreground",
                hint="unpack segmentations.tgz there, or set objective.foreground=none",
            )
    return list(found.values())


def _inputs(run: PlannedRun) -> Iterator[tuple[str, Folder | Weights]]:
    """The folder of data and the weights that a run reads, each with the key of the configuration that names it."""
    match run.spec:
        case PrepareSpec(data=data) if isinstance(data, Folder):
            yield "data.path", data
        case EmbedSpec(backbone=backbone):
            yield "backbone", backbone
        case TrainSpec(online=BackboneSpec() | ClipSpec() as online):
            yield "online", online
        case TrainSpec(objective=VideoObjective(lpips=lpips, perceptual=weight)) if weight > 0:
            yield "objective.lpips", lpips
        case TrainSpec(model=PartSlotsSpec(trunk=trunk), objective=PartsObjective() as objective):
            yield "model.trunk", trunk
            if objective.looks_at_features:
                yield "objective.features", objective.features


def make_plan(path: Path, store: Store | None, *, only: Sequence[str] = (), overrides: Sequence[str] = ()) -> Plan:
    """What the sweep means today, beside what the store knows; raises UserError with every problem."""
    sweep = load_sweep(path)
    made = plan(
        sweep,
        expand(sweep, only=only, overrides=overrides),
        Composer(checkout() / "jobs" / "conf"),
        content=content_of,
        existing=lambda run_id: None,
        code_tree=workspace.tree_hash(checkout()),
    )
    check_packing(made)
    return made if store is None else beside_store(made, store)


def beside_store(made: Plan, store: Store) -> Plan:
    """The same plan with what the store knows of its runs now."""
    known = {run: Known(state=one.state, code_tree=one.code_tree) for run, one in store.runs().items()}
    return replace(made, runs={run: replace(one, known=known.get(run)) for run, one in made.runs.items()})


def check_packing(made: Plan) -> None:
    """Raise UserError when the runs of a step shall share tasks and cannot."""
    _check_steps(made, unpackable)


def check_site(made: Plan, site: Site) -> None:
    """Raise UserError when a step asks for what no node of the site has."""
    _check_steps(made, lambda resources, where: check_resources(site, resources, where=where))


def _check_steps(made: Plan, check: Callable[[Mapping[str, Any], str], list[Problem]]) -> None:
    """Check what each step asks for; (resources, place) -> problems."""
    problems: list[Problem] = []
    for step in made.sweep.pipeline:
        used = next((run.resources for run in made.runs.values() if run.step == step), {})
        problems += check(used, f"{made.sweep.path}: resources.{step}")
    if problems:
        raise UserError(*problems)


def fit_to_site(made: Plan, site: Site) -> tuple[Plan, list[str]]:
    """A checked plan without the world sizes that the site can never give, and a warning for each step that loses some."""
    runs, warnings = dict(made.runs), dict[str, None]()
    for run in made.runs.values():
        sizes = world_sizes(run.resources)
        most = most_nodes(site, run.resources) if sizes else 0
        kept = fitted(run.resources, most_nodes=most)
        if world_sizes(kept) != sizes:
            runs[run.id] = replace(run, resources=kept)
            never = ", ".join(str(size) for size in sizes if size not in world_sizes(kept))
            place = f"{made.sweep.path}: resources.{run.step}.{ELASTIC}"
            warnings[f"warning: {place}: no run will have {never} tasks: this site gives a job at most {most} nodes"] = None
    return replace(made, runs=runs), list(warnings)


def check_name(made: Plan, store: Store) -> None:
    """Raise UserError when another file of the same name was submitted here: one would hide the other's runs."""
    before = store.sweep_row(made.sweep.name)
    path = Path(made.sweep.path).absolute()
    if before is not None and before["path"] != str(path) and Path(before["path"]).exists():
        raise UserError(
            Problem(
                what=f"another sweep is called {made.sweep.name}",
                where=str(path),
                value=before["path"],
                hint="a sweep's name is its file's: rename one of them, or use another --root",
            )
        )


def steps_of(run: PlannedRun) -> int:
    """How many steps the whole run has; 0 when it does not count steps."""
    return run.spec.steps if isinstance(run.spec, TrainSpec | CountSpec) else 0


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """What freezing a plan added."""

    sweep: str
    new: tuple[str, ...]
    before: KnownSweep | None
    """The sweep as it was known before; None when it is new."""


def record_environment(root: Root) -> None:
    """Write down, once for each fingerprint, which packages it stands for."""
    path = root.path / ENVIRONMENTS / f"{fingerprint()}.json"
    if not path.exists():
        path.parent.mkdir(mode=root.folder_mode, exist_ok=True)
        write_atomically(path, json.dumps(packages(), indent=1) + "\n")


def freeze(made: Plan, root: Root, store: Store, *, comment: str, partial: bool) -> Frozen:
    """Write the plan: code snapshot, run directories with their specs, store. Can run again.

    Known runs keep their code and their configuration, but for what is not part of their identity: an unfinished run takes
    new resources, places and intervals.

    `partial`: the plan holds a selection of the sweep's cells; the others keep what they had.
    """
    snapshot = workspace.snapshot_code(root, checkout())
    environment = fingerprint()
    rows: list[RunRecord] = []
    for run in made.runs.values():
        frozen = FrozenRun(
            id=run.id,
            config=run.spec,
            needs=dict(run.needs),
            code_tree=snapshot.tree,
            code_commit=snapshot.commit,
            code_dirty=snapshot.dirty,
            environment=environment,
            planned_tasks=planned_tasks(run.resources),
        )
        tree = workspace.freeze(root, run.id, frozen.model_dump(mode="json"), tree=snapshot.tree)
        if run.known is not None and run.known.state in RESUMABLE | {RunState.PLANNED}:
            workspace.refreeze_config(root, run.id, run.spec.model_dump(mode="json"), planned_tasks=frozen.planned_tasks)
        elif run.known is not None and run.known.state is RunState.DONE:
            workspace.refreeze_places(root, run.id, run.spec.model_dump(mode="json"))
        rows.append(
            RunRecord(
                id=run.id,
                kind=run.kind,
                state=RunState.PLANNED,
                needs=run.needs,
                resources=run.resources,
                code_tree=tree,
                steps=steps_of(run),
            )
        )
    record_environment(root)
    workspace.flush(root)
    name = made.sweep.name
    before = store.known_sweep(name)
    new = store.add(
        name=name,
        path=str(Path(made.sweep.path).absolute()),
        title=made.sweep.title,
        definition=made.sweep.text,
        comment=comment,
        cells=[CellRecord(coordinates=cell.cell.coordinates, runs=cell.runs) for cell in made.cells if cell.cell.cite is None],
        runs=rows,
        partial=partial,
    )
    return Frozen(sweep=name, new=tuple(new), before=before)


def undo(frozen: Frozen, root: Root, store: Store) -> None:
    """Take a freeze back after a refused submission: new runs, their directories, and what changed about the sweep.

    Does nothing when some of its runs are, or may be, in Slurm's hands: the others then stay planned, for `orch resume`.
    """
    if any(record.state is not RunState.PLANNED for record in store.runs(frozen.new).values()):
        return
    store.withdraw(frozen.sweep, frozen.new, before=frozen.before)
    workspace.discard(root, frozen.new)
