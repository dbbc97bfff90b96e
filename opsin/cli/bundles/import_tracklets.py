"""`opsin import-tracklets`: a tracker's results → tracks for the service."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from opsin.cli.shared import output_files
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.requirements import requires_extra


def import_tracklets(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="PHALP's results, results/demo_NAME.pkl.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="TRACKS.npz", help="File to write.")],
    fps: Annotated[float, typer.Option(help="Frames per second of the video.")] = 30.0,
    joints: Annotated[bool, typer.Option(help="Include the 3D joints, for networks that take them.")] = False,
) -> None:
    """Convert a tracker's results to tracks for `opsin actions` and `POST /v1/actions`. Only arrays are unpickled."""
    if not file.is_file():
        raise UsageError(f"{file}: no such file")
    if not 0 < fps < math.inf:  # nor is NaN
        raise UsageError(f"--fps: {fps:g}; it must be a positive number")
    output_files.check_writable(output)
    with requires_extra("server"):
        from models.media.safe_joblib import UnsafeFile
        from models.people.tracklets import read_results, tracklets_from_results, tracks_to_arrays, write_tracks
    try:
        tracks = tracklets_from_results(read_results(file))
    except UnsafeFile as error:
        raise CommandError(str(error)) from error
    arrays = tracks_to_arrays(tracks, fps, joints=joints)
    write_tracks(output, arrays)
    typer.echo(f"{output}  {len(tracks)} people, {len(arrays['person'])} sightings of {arrays['token'].shape[1]} values")
