"""Imported last by the process that copies start from: what every copy would do again is done here, once.

Its million objects are no garbage, and no collection in a copy need look at them, which would copy the memory that they lie in. The tree of
`opsin`'s commands is the same for all of them. Networks are imported as `opsin template` does it: ONNX Runtime would start threads.
"""

import functools
import gc

import typer.main

from models.registry import architectures, resolve
from opsin.cli.app import app

for architecture in architectures().values():
    if architecture.open is None and architecture.assemble is None:
        resolve(architecture.model)
typer.main.get_command = functools.cache(typer.main.get_command)
typer.main.get_command(app)
gc.collect()
gc.freeze()
