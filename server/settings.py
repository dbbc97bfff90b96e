"""The settings, from one YAML file, `OPSIN_*` environment variables and the command line; later sources take precedence."""

from __future__ import annotations

import json
import os
import re
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError, YamlConfigSettingsSource

from models.bundle_folders import installed_starters
from server.http.url_allowlist import host_and_port

if TYPE_CHECKING:
    from models.media.audio import SoundLimits
    from models.media.video import ClipLimits

MIB = 1024 * 1024

NO_API_KEYS_WARNING = "OPSIN_API_KEYS_FILE is not set: anyone who can reach this address can use the service"
ModelControl = Literal["none", "explicit"]


class Settings(BaseSettings):
    """Settings of the service, in seconds and bytes. Every field is also `OPSIN_<NAME>`; `OPSIN_CONFIG` or `--config` names a YAML file."""

    model_config = SettingsConfigDict(env_prefix="OPSIN_", env_nested_delimiter="__", extra="forbid", frozen=True, allow_inf_nan=False)

    starter_bundles: ClassVar[tuple[str, ...]] = ("photos", "inpaint", "shapes", "reconstruct", "actions", "words", "clips", "sounds")
    """Default bundles of their tasks if several bundles serve one and none is configured; the first comes first."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    bundles: Path = Path("bundles")
    extensions: bool = True
    """Whether tasks and systems of other installed packages are served (`opsin.extending`)."""
    starters: bool = True
    """Whether workers also serve the starter bundles of the package `opsin-starters`, if it is installed. A bundle of the same name in
    `bundles` replaces a starter."""
    cache: Path | None = None
    """Folder for workers' caches across restarts. None: `opsin` in the user's cache folder."""
    redis_url: str | None = None
    """None: the supervisor starts a private Valkey. `redis://`, `rediss://`, `unix://`, `redis+sentinel://host:port,host:port/MASTER/db`."""
    key_prefix: str = "opsin:"
    """Prefix of all keys in Redis, so that several services can share one Redis."""
    cell: int = Field(default=0, ge=0, le=255)
    """Number of the cell: one Redis, its gateways and its workers. Ids of jobs and scenes begin with it."""
    workers: int = Field(default=1, ge=0)
    gateways: int = Field(default=1, ge=1)
    metrics_host: str | None = None
    """Address for workers' metrics. None: `host`."""
    metrics_port: int = Field(default=9101, ge=0, le=65535)
    """Port of a worker's metrics, or the next free port above it."""
    default_models: dict[str, str] = Field(default_factory=dict)
    """Task → bundle name; `zero_shot` and `zero-shot` are the same. A task that is not named here uses its only bundle, or the starter
    bundle if there are several."""

    playground: bool = True
    """Whether gateways serve the pages `/` and `/status`."""
    api_keys_file: Path | None = None
    """File of API keys. None: no keys are required."""
    cors_origins: list[str] = Field(default_factory=list)
    model_control: ModelControl = "none"
    """explicit: clients may load and unload bundles over the Open Inference Protocol."""
    trusted_proxies: list[str] = Field(default_factory=list)
    """Addresses or networks of proxies whose X-Forwarded-For is believed."""
    max_connections: int = Field(default=1024, gt=0)
    """Connections to one gateway at once."""
    fetch_hosts: list[str] = Field(default_factory=list)
    """Hosts (`host` or `host:port`, default 443) that `image_url`, `video_url` and `audio_url` may name. Empty: nothing is fetched."""
    fetch_networks: list[str] = Field(default_factory=list)
    """Networks that these hosts may be in, in addition to the public internet."""
    webhook_hosts: list[str] = Field(default_factory=list)
    """Hosts (as `fetch_hosts`) that `X-Webhook-URL` may name. Empty: webhooks are not enabled."""
    webhook_networks: list[str] = Field(default_factory=list)
    """Networks that these hosts may be in, in addition to the public internet."""
    webhook_secret_file: Path | None = None
    """File of lines `whsec_…`, each of which signs webhooks."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    max_body_bytes: int = Field(default=64 * MIB, gt=0)
    max_images: int = Field(default=32, gt=0)
    max_pixels: int = Field(default=50_000_000, gt=0)
    max_audio_seconds: float = Field(default=120.0, gt=0)
    max_video_seconds: float = Field(default=120.0, gt=0)
    max_video_frames: int = Field(default=7_200, gt=0)
    max_video_pixels: int = Field(default=4096 * 2304, gt=0, lt=2**31)
    """Maximum size of a frame. FFmpeg counts pixels in 31 bits."""
    max_points: int = Field(default=4_000_000, gt=0)
    """Maximum number of pixels of a depth map or map of points."""
    max_queries: int = Field(default=20_000_000, gt=0)
    """Maximum number of queries of one reconstruction."""
    queue_max_items: int = Field(default=1024, gt=0)
    queue_max_bytes: int = Field(default=512 * MIB, gt=0)

    request_timeout: float = Field(default=60.0, gt=0)
    job_timeout: float = Field(default=3600.0, gt=0)
    """Default deadline of asynchronous jobs, and of tasks that take long, without X-Request-Timeout."""
    result_ttl: float = Field(default=3600.0, gt=0)
    """Time for which results and records are kept after the end of their jobs."""
    results_max_bytes: int = Field(default=256 * MIB, gt=0)
    """Maximum size of results that are kept or reserved, and scenes, in Redis."""
    scene_ttl: float = Field(default=600.0, gt=0)
    """Time for which the encoding of a reconstructed scene is kept for further queries."""
    text_cache_bytes: int = Field(default=64 * MIB, ge=0)
    """Maximum size of cached vectors of labels, in each gateway and in Redis; 0 for no cache."""
    text_cache_ttl: float = Field(default=86_400.0, gt=0)
    """Time for which they are kept in Redis after their last use."""
    worker_grace: float = Field(default=30.0, ge=0)
    redis_grace: float = Field(default=10.0, ge=0)
    drain_timeout: float = Field(default=30.0, ge=0)
    drain_delay: float = Field(default=0.0, ge=0)
    """Time after SIGTERM in which a gateway is not ready and still takes requests, so that a load balancer notices first."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`; `cuda:0,2` and `cuda:all` start a worker for each GPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of weights. `auto` measures and takes the faster of float32 and the device's 16-bit format: float16 on GPUs before
    compute capability 8.0, else bfloat16."""
    backend: Literal["auto", "eager", "fused", "onnx", "int8", "compiled"] = "auto"
    """Backend of forward passes: `auto` takes for each merge schedule and batch size what was measured fastest.
    `compiled` of earlier versions is read as `auto`."""
    threads: int = Field(default=0, ge=0)
    """Torch threads of a worker. 0: those that the CPU affinity and OMP_NUM_THREADS allow, less those that the gateway needs."""

    model_bytes: int = Field(default=0, ge=0)
    """Maximum size of weights that a worker holds at once. 0: half of a GPU's memory, no limit on a CPU."""
    state_bytes: int = Field(default=0, ge=0)
    """Maximum memory of a worker's jobs of several steps between their steps. 0: a quarter of the device's memory."""

    @field_validator("host", "metrics_host", "bundles", "cache", "api_keys_file", "webhook_secret_file", mode="before")
    @classmethod
    def _not_empty(cls, value: object) -> object:
        if value == "":  # as a host it would be all of this machine's addresses, as a path the working folder
            raise ValueError("write a value, or unset it")
        return value

    @field_validator("default_models")
    @classmethod
    def _tasks(cls, models: dict[str, str]) -> dict[str, str]:
        return {task.lower().replace("_", "-"): model for task, model in models.items()}  # names of variables have no hyphens

    @field_validator("fetch_hosts", "webhook_hosts")
    @classmethod
    def _hosts(cls, hosts: list[str]) -> list[str]:
        for host in hosts:
            host_and_port(host)  # ValueError says what is wrong with it
        return hosts

    @field_validator("trusted_proxies", "fetch_networks", "webhook_networks")
    @classmethod
    def _networks(cls, proxies: list[str]) -> list[str]:
        for proxy in proxies:
            ip_network(proxy, strict=False)  # ValueError says what is wrong with it
        return proxies

    @field_validator("key_prefix")
    @classmethod
    def _without_braces(cls, prefix: str) -> str:
        if set(prefix) & set("{}"):
            raise ValueError("braces are not allowed: they select the keys of a Redis Cluster that share a slot")
        return prefix

    @field_validator("device")
    @classmethod
    def _device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:all|:\d+(,\d+)*)?", device):
            raise ValueError("use auto, cpu, cuda, cuda:1, cuda:0,2 or cuda:all")
        return device

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get("OPSIN_CONFIG")
        try:
            yaml = (YamlConfigSettingsSource(settings_cls, yaml_file=file),) if file else ()
        except (OSError, TypeError, ValueError, AttributeError) as error:  # not readable, not UTF-8, not a map, or names that are not words
            raise SettingsError(f"{file} holds no lines such as `port: 9000` ({error})") from error
        return (init_settings, env_settings, *yaml)

    @property
    def offered_backend(self) -> Literal["auto", "eager", "fused", "onnx", "int8"]:
        return "auto" if self.backend == "compiled" else self.backend

    @property
    def admits_strangers(self) -> bool:
        """Whether gateways accept other machines' connections without API keys."""
        try:
            loopback = ip_address(self.host).is_loopback
        except ValueError:
            loopback = self.host == "localhost"
        return self.api_keys_file is None and not loopback

    @property
    def sound_limits(self) -> SoundLimits:
        from models.media.audio import SoundLimits

        return SoundLimits(self.max_audio_seconds)

    @property
    def clip_limits(self) -> ClipLimits:
        from models.media.video import ClipLimits  # numpy stays out of the supervisor

        return ClipLimits(self.max_video_seconds, self.max_video_frames, self.max_video_pixels)

    @property
    def cache_folder(self) -> Path | None:
        """Cache folder, None without a setting and a home. A relative XDG_CACHE_HOME is ignored, as its specification requires."""
        if self.cache is not None:
            return self.cache
        xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if xdg.is_absolute():
            return xdg / "opsin"
        try:
            return Path.home() / ".cache" / "opsin"
        except RuntimeError:
            return None

    @property
    def starters_folder(self) -> Path | None:
        """Folder of the starter bundles. None if they are not installed, as in a checkout, or disabled."""
        return installed_starters() if self.starters else None

    def to_environment(self) -> dict[str, str]:
        """Return the settings as `OPSIN_*` variables, which the supervisor passes to its child processes."""
        environment: dict[str, str] = {}
        for name, value in self.model_dump(mode="json", exclude_none=True).items():
            environment[f"OPSIN_{name.upper()}"] = json.dumps(value) if isinstance(value, dict | list) else str(value)
        return environment


def load(**overrides: Any) -> Settings:
    """Load the settings from file and environment. Overrides are command-line values; None stands for no value."""
    return Settings(**{name: value for name, value in overrides.items() if value is not None})
