"""Published weights read as one family: its config, the weights by our names, and mismatches; and detection of the family."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from models.checkpoints.checkpoint_file import CheckpointError, InvalidSetting
from models.checkpoints.family import ConfigFields, Family, families
from models.layers.meta_device import on_meta_device
from models.registry import architectures, hub_classes, read_config, resolve, systems

MAX_PATCHES = 2**16
"""Maximum number of patches, 4,096 pixels per side in patches of 16: a larger position table would fill the memory."""

READABLE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Supported types of weights; quantised ones need their scales."""
UNSUPPORTED_PARTS: Mapping[str, str] = {
    r"\.ls[12]\.gamma$|\.gamma_[12]$|\.layer_scale": "LayerScale",
    r"\.(q|k|query|key)_?norm\.": "QK-norm",
    r"reg_?token|register|storage_token": "register tokens",
    r"rope|freqs_cis": "rotary position embeddings",
    r"relative_position_bias|rel_pos_bias": "relative position biases",
    r"mlp\.(w12|w[123]|fc1_[gx]|gate_proj)\.": "gated MLPs (SwiGLU)",
    r"attn_pool": "attention pooling",
    r"norm_pre": "a norm before the first block",
    r"mlp\.norm\.|attn\.norm\.|inner_attn_ln": "norms inside attention or MLP",
    r"lora_": "LoRA adapters",
    r"(weight|input)_scale$|qweight|\.SCB$|absmax": "quantised weights",
}
"""Parts of published checkpoints that no family here supports: pattern of their keys → the field's name."""
ONNX_ADVICE = "another classifier or encoder of images comes as ONNX: export it, then `opsin import FILE.onnx --as classify`"
"""Advice at the end of each refusal of an architecture."""


@dataclass(frozen=True)
class CheckpointFit:
    family: Family
    fields: ConfigFields
    """Config fields: inferred from keys, the family's defaults, and those set by hand."""
    weights: dict[str, Tensor]
    """Our name → tensor."""
    missing: list[str]
    unexpected: list[str]
    """Published keys."""
    misshapen: list[str]
    """Published keys and their shapes or types."""

    @property
    def perfect(self) -> bool:
        return not (self.missing or self.unexpected or self.misshapen)

    def config(self) -> Any:
        """Return the architecture's config; `heads` must be among the fields."""
        return read_config(architectures()[self.family.architecture].config, self.fields)

    def model(self) -> nn.Module:
        """Return the model with its weights, in evaluation mode."""
        model = architectures()[self.family.architecture].build(self.config())
        model.load_state_dict(self.weights)
        return model.eval()

    @property
    def headless(self) -> bool:
        """Whether only the head is missing, without which the family's models are encoders."""
        return (
            self.family.headless and bool(self.missing) and not (self.unexpected or self.misshapen) and all(map(_is_head_key, self.missing))
        )

    def mismatch_message(self) -> str:
        """Describe the mismatch in one line, with its meaning if that is known."""
        hints = describe_unsupported(self.unexpected)
        decodes = self.family.headless and "decoder_pred.weight" in self.unexpected
        if decodes or any(map(_is_head_key, self.missing)):
            features = "; --set classes=0 takes an encoder for its features" if self.family.headless and not decodes else ""
            hints.append(f"without a head they are pre-training weights, which cannot classify before they are fine-tuned{features}")
        return describe_mismatch(self.missing, self.unexpected, self.misshapen) + (f" ({'; '.join(hints)})" if hints else "")


def _is_head_key(key: str) -> bool:
    return key.startswith(("head.", "head_"))


def fit(weights: Mapping[str, Tensor], family: Family, settings: ConfigFields) -> CheckpointFit:
    """Read published weights as a family. settings: config fields that override what was inferred.

    Raises UnlikeFamily if the weights lack what the config is inferred from, ValueError for settings that cannot be.
    """
    for name in family.head_fields:
        heads = settings.get(name, 1)
        if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
            raise ValueError(f"{name}: {heads!r} is not a number of heads")
    weights = family.clean(weights)
    translated = family.table.translate(weights)
    fields = {**family.config(translated.weights, settings), **family.defaults, **settings}
    architecture = architectures()[family.architecture]
    config = read_config(architecture.config, {**dict.fromkeys(family.head_fields, 1), **fields})
    if getattr(config, "patches", 0) > MAX_PATCHES:
        raise ValueError(f"image_size {fields.get('image_size')}: it makes {config.patches} patches; at most {MAX_PATCHES} are accepted")
    with on_meta_device():
        model = architecture.build(config)
    state = model.state_dict()
    expected = {name: tuple(value.shape) for name, value in state.items()}
    adapted = family.resized(dict(translated.weights), config)
    complete = family.table.translate(weights, needed=expected)
    misshapen = [
        f"{key} {tuple(adapted[name].shape)} for {shape}"
        for name, shape in expected.items()
        if name in adapted and tuple(adapted[name].shape) != shape
        for key in family.table.published_names(name)
    ]
    misshapen += [
        f"{key} {str(adapted[name].dtype).removeprefix('torch.')}"
        for name, value in state.items()
        if name in adapted and value.is_floating_point() and adapted[name].dtype not in READABLE_DTYPES
        for key in family.table.published_names(name)
    ]
    misshapen += [f"{key} {tuple(weights[key].shape)}" for key in complete.unjoinable]
    unknown = [key for name in adapted if name not in expected for key in family.table.published_names(name)]
    fitting = {name: adapted[name].contiguous() for name in expected if name in adapted}
    return CheckpointFit(family, fields, fitting, complete.missing, complete.unexpected + unknown, misshapen)


def describe_mismatch(missing: Sequence[str], unexpected: Sequence[str], misshapen: Sequence[str]) -> str:
    parts = {"missing": missing, "unexpected": unexpected, "of another shape or type": misshapen}
    return "; ".join(f"{problem}: {', '.join(collapse_block_numbers(keys))}" for problem, keys in parts.items() if keys)


def collapse_block_numbers(keys: Sequence[str]) -> list[str]:
    """Return the keys without repetition, block numbers replaced by `{i}`."""
    return list(dict.fromkeys(re.sub(r"(?<=[._])\d+(?=\.)", "{i}", key, count=1) for key in keys))


def describe_unsupported(unexpected: Iterable[str]) -> list[str]:
    """Return one sentence for each unsupported part that keys indicate."""
    keys = list(unexpected)
    return [f"{part} cannot be imported" for pattern, part in UNSUPPORTED_PARTS.items() if any(re.search(pattern, key) for key in keys)]


def detect(
    weights: Mapping[str, Tensor],
    description: Mapping[str, Any] = MappingProxyType({}),
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> list[str]:
    """Return the names of the families whose keys these are: none, one, or several with the same keys. An encoder without a head counts.

    description: `Checkpoint.description` of the file; settings: fields set by hand, used for families that have them.
    """
    fits = []
    for family in families().values():
        try:
            fits.append(fit(weights, family, {**family.described(description), **_settings_for(family, settings)}))
        except ValueError:
            continue
    return [candidate.family.name for candidate in fits if candidate.perfect or candidate.headless]


def choose_family(
    file: Path, published: Mapping[str, Tensor], name: str | None, description: Mapping[str, Any], settings: ConfigFields
) -> Family:
    if name is not None:
        if name not in families():
            raise InvalidSetting(f"family {name!r} is unknown; known are {', '.join(families())}")
        return families()[name]
    names = detect(published, description) or detect(published, description, settings)
    if len(names) == 1:
        return families()[names[0]]
    if names:
        headed = any(key.startswith("head") for key in published)
        headless = "" if headed else " (it has no head: --set classes=0 takes an encoder for its features)"
        raise CheckpointError(
            f"{file}: its keys fit the families {', '.join(names)}; say which it is with --family; how each "
            f"prepares images is in docs/checkpoints.md{headless}"
        )
    described = _self_described_families(description)
    if len(described) == 1:
        return families()[described[0]]  # reading it will say what is wrong
    raise CheckpointError(f"{file}: {_nearest_family(published, description, settings)}")


def choose_class(file: Path, config: Mapping[str, Any]) -> Family:
    """Return the family of a class of transformers, from its `config.json`. Raises CheckpointError."""
    classes, name = hub_classes(), config["architectures"][0]
    if name not in classes:
        raise CheckpointError(
            f"{file}: config.json: architectures {name!r} is not read here; accepted are {', '.join(classes)}; {ONNX_ADVICE}"
        )
    family: Family = resolve(classes[name])
    return family


def choose_network(file: Path, config: Mapping[str, Any]) -> Family:
    """Return the family of a network of timm, from its `config.json`. Raises CheckpointError."""
    name = config["architecture"]
    for system in systems():
        family: Family | None = resolve(system.timm_networks)(config) if system.timm_networks is not None else None
        if family is not None:
            return family
    raise CheckpointError(
        f"{file}: config.json: architecture {name!r} is not read by its name; accepted are vit_SIZE_patchN_PIXELS, deit_…, "
        f"vit_…_dinov2 and vit_…_clip_…; --family takes another one as what its keys are; {ONNX_ADVICE}"
    )


def _self_described_families(description: Mapping[str, Any]) -> list[str]:
    """Return the families whose files describe themselves as this one does, valid or not."""
    names = []
    for family in families().values():
        try:
            is_described = bool(family.described(description))
        except ValueError:
            is_described = True
        if is_described:
            names.append(family.name)
    return names


def _nearest_family(published: Mapping[str, Tensor], description: Mapping[str, Any], settings: ConfigFields) -> str:
    fits: list[CheckpointFit] = []
    refusals: list[tuple[int, str]] = []  # rows of the table that the file lacks, and the error
    for family in families().values():
        try:
            fits.append(fit(published, family, {**family.described(description), **_settings_for(family, settings)}))
        except ValueError as error:
            tidied = family.clean(published)
            if tidied and not family.table.translate(tidied).unexpected:
                refusals.append((len(family.table.unmatched_rows(tidied)), f"its keys are those of {family.name}, but {error}"))
    unknown = f"fits no known family ({', '.join(families())})."
    absent, refusal = min(refusals, default=(0, f"{unknown} Its keys are {', '.join(list(published)[:5])}, …; {ONNX_ADVICE}"))
    if not fits or (refusals and not absent):
        return refusal
    nearest = min(fits, key=lambda candidate: len(candidate.missing) + len(candidate.unexpected) + len(candidate.misshapen))
    return f"{unknown} Nearest is {nearest.family.name}: {nearest.mismatch_message()}; {ONNX_ADVICE}"


def _settings_for(family: Family, settings: Mapping[str, Any]) -> ConfigFields:
    """Return the settings that are fields of the family's config."""
    fields = {field.name for field in dataclasses.fields(architectures()[family.architecture].config)}
    return {key: value for key, value in settings.items() if key in fields}
