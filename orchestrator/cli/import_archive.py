"""`orch import FILE --root DIR`: a root rebuilt from an archive; `orch table` there gives the same table."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.workspace import Root


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True, readable=True))
@click.option(
    "--root", "chosen", type=click.Path(path_type=Path, file_okay=False), help="The new root (it must not be there yet)."
)
@click.pass_obj
def command(root: Path, file: Path, chosen: Path | None) -> None:
    """Rebuild a root from FILE, an archive of `orch export`: everything is checked first, and nothing of it is run."""
    from orchestrator.importing import import_archive

    place = Root((chosen or root).absolute())
    manifest = import_archive(file, place)
    click.echo(f"imported {manifest.sweep}: {len(manifest.files)} files; `orch --root {place.path} table {manifest.sweep}`")
