"""The settings: one YAML file, `OPSIN_*` environment variables, the command line; the later wins."""

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

OPEN = "no OPSIN_API_KEYS_FILE is set: whoever reaches this address may use the service"
ModelControl = Literal["none", "explicit"]


class Settings(BaseSettings):
    """Every field is also `OPSIN_<NAME>`; a YAML file is named by `OPSIN_CONFIG` or `--config`. Seconds and bytes throughout."""

    model_config = SettingsConfigDict(env_prefix="OPSIN_", env_nested_delimiter="__", extra="forbid", frozen=True, allow_inf_nan=False)

    starter_bundles: ClassVar[tuple[str, ...]] = ("photos", "inpaint", "shapes", "reconstruct", "actions", "words", "clips", "sounds")
    """Each is its task's default where several bundles serve it and none is configured; of two, the first."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    bundles: Path = Path("bundles")
    extensions: bool = True
    """Whether tasks and systems of other installed packages are served (`opsin.extending`)."""
    starters: bool = True
    """Whether workers also serve the starter bundles of the package `opsin-starters`, where it is installed. A bundle of the same name in
    `bundles` takes the place of a starter."""
    cache: Path | None = None
    """Folder for what workers keep from one start to the next. None: `opsin` in the user's cache folder."""
    redis_url: str | None = None
    """None: the supervisor starts a private Valkey. `redis://`, `rediss://`, `unix://`, `redis+sentinel://host:port,host:port/MASTER/db`."""
    key_prefix: str = "opsin:"
    """The names of all keys in Redis begin with it: several services share one Redis so."""
    workers: int = Field(default=1, ge=0)
    gateways: int = Field(default=1, ge=1)
    metrics_host: str | None = None
    """Address that workers serve their metrics on; None: `host`."""
    metrics_port: int = Field(default=9101, ge=0, le=65535)
    """A worker's metrics; the next free port above it if it is taken."""
    default_models: dict[str, str] = Field(default_factory=dict)
    """Task → bundle name; `zero_shot` and `zero-shot` are the same. A task that is not named here uses its only bundle, or the starter
    bundle if there are several."""

    playground: bool = True
    """Whether gateways serve the pages `/` and `/status`."""
    api_keys_file: Path | None = None
    """File of API keys; None: the service asks for none."""
    cors_origins: list[str] = Field(default_factory=list)
    model_control: ModelControl = "none"
    """explicit: clients may load and unload bundles over the Open Inference Protocol."""
    trusted_proxies: list[str] = Field(default_factory=list)
    """Addresses or networks of proxies whose X-Forwarded-For is believed."""
    max_connections: int = Field(default=1024, gt=0)
    """Connections to one gateway at once."""
    fetch_hosts: list[str] = Field(default_factory=list)
    """Hosts (`host` or `host:port`, 443 unless said) that `image_url`, `video_url` and `audio_url` may name. Empty: nothing is fetched."""
    fetch_networks: list[str] = Field(default_factory=list)
    """Networks in which these hosts may lie beside the public internet."""
    webhook_hosts: list[str] = Field(default_factory=list)
    """Hosts (as `fetch_hosts`) that `X-Webhook-URL` may name. Empty: nobody is called back."""
    webhook_networks: list[str] = Field(default_factory=list)
    """Networks in which these hosts may lie beside the public internet."""
    webhook_secret_file: Path | None = None
    """Lines `whsec_…`, each of which signs what is sent to them."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    max_body_bytes: int = Field(default=64 * MIB, gt=0)
    max_images: int = Field(default=32, gt=0)
    max_pixels: int = Field(default=50_000_000, gt=0)
    max_audio_seconds: float = Field(default=120.0, gt=0)
    max_video_seconds: float = Field(default=120.0, gt=0)
    max_video_frames: int = Field(default=7_200, gt=0)
    max_video_pixels: int = Field(default=4096 * 2304, gt=0, lt=2**31)
    """Pixels of a frame. FFmpeg counts them in 31 bits."""
    max_points: int = Field(default=4_000_000, gt=0)
    """Points of a map of depth or points."""
    max_queries: int = Field(default=20_000_000, gt=0)
    """Points that one reconstruction may ask."""
    queue_max_items: int = Field(default=1024, gt=0)
    queue_max_bytes: int = Field(default=512 * MIB, gt=0)

    request_timeout: float = Field(default=60.0, gt=0)
    job_timeout: float = Field(default=3600.0, gt=0)
    """Deadline of asynchronous jobs, and of tasks that take long, without X-Request-Timeout."""
    result_ttl: float = Field(default=3600.0, gt=0)
    """How long results and records outlive the end of their jobs."""
    results_max_bytes: int = Field(default=256 * MIB, gt=0)
    """Results that are kept or reserved, and scenes, in Redis."""
    scene_ttl: float = Field(default=600.0, gt=0)
    """How long the encoding of a reconstructed scene is kept, to be asked again."""
    text_cache_bytes: int = Field(default=64 * MIB, ge=0)
    """Vectors of labels that were read before, in each gateway and in Redis; 0: none are kept."""
    text_cache_ttl: float = Field(default=86_400.0, gt=0)
    """How long they are kept in Redis after their last use."""
    worker_grace: float = Field(default=30.0, ge=0)
    redis_grace: float = Field(default=10.0, ge=0)
    drain_timeout: float = Field(default=30.0, ge=0)

    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto` measures and takes the faster of float32 and bfloat16; or one of the two by name."""
    backend: Literal["auto", "eager", "fused", "onnx", "int8", "compiled"] = "auto"
    """Backend of forward passes: `auto` takes for each merge schedule and batch size what was measured fastest.
    `compiled` of earlier versions is read as `auto`."""
    threads: int = Field(default=0, ge=0)
    """Torch threads of a worker; 0: what the CPU affinity and OMP_NUM_THREADS allow, less what the gateway needs."""

    model_bytes: int = Field(default=0, ge=0)
    """Weights that a worker holds at once; 0: half of a GPU's memory, on a CPU no bound."""
    state_bytes: int = Field(default=0, ge=0)
    """Bytes that a worker's jobs of several steps may keep in memory between their steps; 0: a quarter of the device's memory."""

    @field_validator("host", "metrics_host", "bundles", "cache", "api_keys_file", "webhook_secret_file", mode="before")
    @classmethod
    def _said(cls, value: object) -> object:
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
            raise ValueError("braces are not allowed: they say which keys of a Redis Cluster lie together")
        return prefix

    @field_validator("device")
    @classmethod
    def _device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError("use auto, cpu, cuda or cuda:1")
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
        except (OSError, TypeError, ValueError, AttributeError) as error:  # no permission, no UTF-8, no map, or names that are no words
            raise SettingsError(f"{file} holds no lines such as `port: 9000` ({error})") from error
        return (init_settings, env_settings, *yaml)

    @property
    def offered_backend(self) -> Literal["auto", "eager", "fused", "onnx", "int8"]:
        return "auto" if self.backend == "compiled" else self.backend

    @property
    def admits_strangers(self) -> bool:
        """Whether gateways listen to other machines and ask nobody for a key."""
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
        """None where there is neither a setting nor a home. A relative XDG_CACHE_HOME does not count, as its specification says."""
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
        """None where they are not installed, as in a checkout, or not wanted."""
        return installed_starters() if self.starters else None

    def to_environment(self) -> dict[str, str]:
        """The settings as `OPSIN_*` variables, as the supervisor hands them to the processes that it executes."""
        environment: dict[str, str] = {}
        for name, value in self.model_dump(mode="json", exclude_none=True).items():
            environment[f"OPSIN_{name.upper()}"] = json.dumps(value) if isinstance(value, dict | list) else str(value)
        return environment


def load(**overrides: Any) -> Settings:
    """Settings from file and environment, with those command-line values that were given (not None)."""
    return Settings(**{name: value for name, value in overrides.items() if value is not None})
