"""Imports of the process that copies start from, for work that every copy would do again.

A million objects are frozen, since a collection in a copy would copy their memory. The tree of `opsin`'s commands is the same
for all copies. Networks are imported as `opsin template` does it: ONNX Runtime would start threads."""

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
