"""Settings of what networks are evaluated on alone: photographs to be filled, real clips with actions, sounds to be named."""

from __future__ import annotations

from pydantic import Field

from starters.data.sounds.sampled_instruments import Instruments
from training.data.packages import DebianPackage, PyPIPackage
from training.settings import Settings
from training.shipped import Located


class SeenAction(Settings):
    """Actions of a person in a clip, as somebody saw them, in seconds."""

    person: int
    """As the tracker numbers them."""
    begin: float
    end: float
    what: str


class Clip(Settings):
    """A real video that the network is shown. It is downloaded, and no picture of it is kept."""

    package: PyPIPackage
    file: str
    detector: Located
    """A bundle of task pose."""
    seen: list[SeenAction] = Field(default_factory=list)


class Recordings(Settings):
    """Files whose names say what they are."""

    files: list[str] = Field(min_length=1)
    """Patterns of paths below the folder, without the ending."""
    right: list[str] = Field(min_length=1)
    """Labels, any of which is right."""


class Orchestra(Settings):
    """Notes of each class, as instruments play them, that are evaluated together."""

    name: str
    fonts: list[Instruments] = Field(min_length=1)


class Recorded(Settings):
    """A package of recorded samples."""

    name: str
    package: DebianPackage
    folder: str
    license: str
    recordings: list[Recordings] = Field(min_length=1)


class EarlierTests(Settings):
    """Tests of earlier versions, which were looked at: a table may go on with them, nothing is concluded from them."""

    test: list[Orchestra] = Field(default_factory=list)
    recorded: list[Recorded] = Field(default_factory=list)
