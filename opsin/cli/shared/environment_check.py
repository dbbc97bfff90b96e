"""A check of `OPSIN_*` variables before a process of the service starts: a typo must neither disable API keys nor go unnoticed."""

from __future__ import annotations

import os
from typing import get_origin

from opsin.cli.shared.errors import UsageError

NON_SETTING_VARIABLES = ("OPSIN_CONFIG", "OPSIN_URL", "OPSIN_API_KEY")
"""Variables that are not settings of the service: the name of its settings file, and those of the client."""


def check_variables(process: str, log_level: str) -> None:
    """Log a warning for unknown variables. Raises UsageError for those that may have been meant to name the API keys."""
    from server.gateway.auth.key_file import PREFIX
    from server.processes.supervisor_protocol import LOADING_FILE_VARIABLE, REFUSED_BUNDLES_VARIABLE, RESTARTS_VARIABLE
    from server.settings import Settings
    from server.telemetry import logs

    if RESTARTS_VARIABLE in os.environ:  # the supervisor has checked them
        return
    setting_names = {
        *NON_SETTING_VARIABLES,
        LOADING_FILE_VARIABLE,
        REFUSED_BUNDLES_VARIABLE,
        *(f"OPSIN_{name.upper()}" for name in Settings.model_fields),
    }
    maps = {f"OPSIN_{name.upper()}" for name, field in Settings.model_fields.items() if get_origin(field.annotation) is dict}
    names = [name for name in sorted(os.environ) if name.upper().startswith("OPSIN_")]
    unknown = [name for name in names if name.upper() not in setting_names and name.upper().partition("__")[0] not in maps]
    for name in unknown:
        if name.upper().startswith("OPSIN_API"):
            raise UsageError(f"{name}: unknown setting; the file of API keys is OPSIN_API_KEYS_FILE. Correct the variable or unset it")
    key = os.environ.get("OPSIN_API_KEY", "")
    if key and not key.startswith(PREFIX):
        raise UsageError(f"OPSIN_API_KEY: it is for clients, and starts with {PREFIX}; the service's file of keys is OPSIN_API_KEYS_FILE")
    if unknown:
        logs.configure(log_level, process=process)
        logs.get(__name__).warning("unknown settings: these variables are ignored", variables=unknown)
