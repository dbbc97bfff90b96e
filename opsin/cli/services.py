"""`opsin serve`, `opsin gateway`, `opsin worker`: run the processes of the service."""

from __future__ import annotations

import gc
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin

import typer

from opsin.cli.shared.errors import UsageError
from opsin.cli.shared.requirements import require_processes, requires_extra

if TYPE_CHECKING:
    from server.settings import Settings

Host = Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")]
Port = Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one. [default: 8000]")]
Bundles = Annotated[Path | None, typer.Option(help="Folder of NAME/VERSION/ bundles. [default: ./bundles]")]
Redis = Annotated[str | None, typer.Option(help="redis://, rediss://, unix:// or redis+sentinel:// URL of the queue.")]
MetricsPort = Annotated[int | None, typer.Option(help="Port of a worker's metrics, or the next free one. [default: 9101]")]
ModelControl = Annotated[str | None, typer.Option(help="none, or explicit: clients may load and unload bundles. [default: none]")]
Playground = Annotated[bool | None, typer.Option("--playground/--no-playground", help="Serve the pages / and /status. [default: on]")]
Config = Annotated[Path | None, typer.Option(help="YAML file with settings. Environment variables and options take precedence.")]
REDIS_RETRY_S = 1.0
NON_SETTING_VARIABLES = ("OPSIN_CONFIG", "OPSIN_URL", "OPSIN_API_KEY")
"""Variables that are not settings of the service: the name of its settings file, and those of the client."""


def serve(
    host: Host = None,
    port: Port = None,
    bundles: Bundles = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes. [default: 1]")] = None,
    gateways: Annotated[int | None, typer.Option(help="Gateway processes. [default: 1]")] = None,
    redis: Redis = None,
    metrics_port: MetricsPort = None,
    model_control: ModelControl = None,
    playground: Playground = None,
    config: Config = None,
) -> None:
    """Run the whole service on this machine: queue, gateways and workers. Starts a private Valkey unless `--redis` is given.

    Every setting is also an `OPSIN_…` environment variable and a line of the `--config` file.
    """
    require_processes("serve")
    settings = settings_of(
        config,
        host=host,
        port=port,
        bundles=bundles,
        workers=workers,
        gateways=gateways,
        redis_url=redis,
        metrics_port=metrics_port,
        model_control=model_control,
        playground=playground,
    )
    _check_redis(settings)
    _require_bundles(settings)
    _check_access(settings, "supervisor")
    with requires_extra("server"):
        from server.gateway.webhooks import load_secrets
        from server.supervisor import serve as run

        _check_extensions()
    if settings.webhook_hosts:
        try:
            load_secrets(settings)  # checked here, since each gateway would fail on them and be restarted again and again
        except ValueError as error:
            raise UsageError(str(error)) from error
    raise typer.Exit(run(settings))


def _check_extensions() -> None:
    """Raise ExtensionError for a broken extension, since the processes would fail on it and be restarted again and again."""
    from models.registry import all_extensions, systems

    if all_extensions():
        from server.tasks import registry  # noqa: F401

        systems()


def gateway(
    host: Host = None,
    port: Port = None,
    redis: Redis = None,
    fd: Annotated[int | None, typer.Option(help="Serve on this open listening socket instead.")] = None,
    model_control: ModelControl = None,
    playground: Playground = None,
    config: Config = None,
) -> None:
    """Run one gateway, the HTTP side, against a Redis server that workers share."""
    require_processes("gateway")
    settings = settings_of(
        config, extra="gateway", host=host, port=port, redis_url=redis, model_control=model_control, playground=playground
    )
    _require_redis(settings, "gateway")
    _check_redis(settings)
    _check_access(settings, "gateway")
    with requires_extra("gateway"):
        from server.gateway.main import run_gateway as run
    raise typer.Exit(run(settings, fd=fd))


def template(
    fd: Annotated[int, typer.Option(help="Socket that is connected to the supervisor.")],
    bundles: Bundles = None,
    metrics_port: MetricsPort = None,
) -> None:
    """Fork workers for `opsin serve` from this process."""
    require_processes("template")
    settings = settings_of(None, bundles=bundles, metrics_port=metrics_port)
    gc.disable()
    with requires_extra("server"):
        from server.worker.fork_server import run_template as run
    raise typer.Exit(run(settings, fd))


def worker(bundles: Bundles = None, redis: Redis = None, metrics_port: MetricsPort = None, config: Config = None) -> None:
    """Run one worker. It loads bundles and runs inference on jobs from a shared Redis server."""
    require_processes("worker")
    settings = settings_of(config, bundles=bundles, redis_url=redis, metrics_port=metrics_port)
    _require_redis(settings, "worker")
    _check_redis(settings)
    _require_bundles(settings)
    check_variables("worker", settings.log_level)
    # torch's modules are 200,000 objects and no garbage: not scanning them makes the start a tenth shorter, and freezing them
    # keeps every later collection from scanning them again
    gc.disable()
    with requires_extra("server"):
        from server.worker.main import run_worker as run
    gc.freeze()
    gc.enable()
    raise typer.Exit(run(settings))


def settings_of(config: Path | None, *, extra: str = "server", **overrides: Any) -> Settings:
    """Return the settings of the file, the environment and the options. Raises UsageError if they are not valid, or an extra is missing."""
    with requires_extra(extra):
        from pydantic import ValidationError
        from pydantic_settings import SettingsError
        from yaml import YAMLError

        from server.queue.connect import parse
        from server.settings import load
    for value in overrides.values():
        str(value).encode()  # raises an error for text that is not valid UTF-8
    if config is not None:
        # in the environment, where the settings look for it and where the supervisor's children find it too
        os.environ["OPSIN_CONFIG"] = str(config)
    file = os.environ.get("OPSIN_CONFIG")
    if file and file != os.devnull and not Path(file).is_file():  # /dev/null means no file
        raise UsageError(
            f"{file}: "
            + ("not a regular file, which each process must be able to read" if Path(file).exists() else "no such settings file")
        )
    try:
        settings = load(**overrides)
        os.environ["OPSIN_EXTENSIONS"] = str(settings.extensions).lower()  # read where the tables of systems and tasks are first imported
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UsageError(f"{file}: unknown setting {name!r}") from error
        raise UsageError(f"setting {name}: {first['msg'].removeprefix('Value error, ')}, not {first['input']!r}") from error
    except (SettingsError, YAMLError) as error:
        if unparsed := re.search(r'value for field "(\w+)" from source "EnvSettingsSource"', str(error)):
            variable = f"OPSIN_{unparsed[1].upper()}"
            raise UsageError(f"setting {unparsed[1]}: {variable} is not JSON, as lists and maps in the environment must be") from error
        raise UsageError(f"settings: {error}") from error
    if settings.redis_url is not None:
        try:
            parse(settings.redis_url)
        except ValueError as error:
            raise UsageError(f"setting redis_url: {error}") from error
    _require_tasks(settings)
    return settings


def _check_access(settings: Settings, process: str) -> None:
    """Raise UsageError if the file of API keys cannot be read, or a variable may have been meant to name it."""
    check_variables(process, settings.log_level)
    if settings.api_keys_file is None:
        return
    from server.gateway.auth.key_file import read_file

    try:
        read_file(settings.api_keys_file)
    except OSError as error:
        raise UsageError(f"setting api_keys_file: {settings.api_keys_file} cannot be read: {error.strerror}") from error


def _require_tasks(settings: Settings) -> None:
    if not settings.default_models:
        return
    from server.tasks.registry import REQUEST_KINDS

    for name in settings.default_models.keys() - REQUEST_KINDS.keys():
        raise UsageError(f"setting default_models: unknown task {name!r}; available: {', '.join(REQUEST_KINDS)}")


def _require_bundles(settings: Settings) -> None:
    """Raise UsageError if the folder of bundles was named and cannot be read. The default, `./bundles`, may be missing."""
    from server.processes.supervisor_protocol import RESTARTS_VARIABLE

    if RESTARTS_VARIABLE in os.environ or "bundles" not in settings.model_fields_set:  # the supervisor has checked it
        return
    try:
        os.scandir(settings.bundles).close()
    except OSError as error:
        advice = "name the folder that holds NAME/VERSION/ folders (--bundles or OPSIN_BUNDLES)"
        raise UsageError(f"setting bundles: {settings.bundles} cannot be read ({error.strerror}); {advice}") from error


def _require_redis(settings: Settings, command: str) -> None:
    if settings.redis_url is None:
        raise UsageError(f"`opsin {command}` needs the queue's address: --redis URL or OPSIN_REDIS_URL (`opsin serve` starts its own)")


def _check_redis(settings: Settings) -> None:
    """Raise UsageError if Redis cannot hold the queue of this cell. While it does not answer, go on, and end the process once it does."""
    from server.processes.supervisor_protocol import MISUSE, RESTARTS_VARIABLE
    from server.queue.connect import unsuitable
    from server.queue.keys import Keyspace

    url, keyspace = settings.redis_url, Keyspace.from_settings(settings)
    if url is None or RESTARTS_VARIABLE in os.environ:  # the supervisor checks it
        return

    def check() -> None:
        while (reason := unsuitable(url, keyspace)) is None:
            time.sleep(REDIS_RETRY_S)
        if reason:
            print(f"opsin: setting redis_url: {reason}", file=sys.stderr, flush=True)
            os._exit(MISUSE)

    if reason := unsuitable(url, keyspace):
        raise UsageError(f"setting redis_url: {reason}")
    if reason is None:
        threading.Thread(target=check, name="check-redis", daemon=True).start()


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
