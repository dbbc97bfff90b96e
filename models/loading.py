"""Loading of bundles as models that run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.bundle import Bundle, BundleError, BundleSpec
from models.layers.forward import ForwardFn, TokenizeFn
from models.layers.meta_device import on_meta_device
from models.layers.packed_linear import pack_linears, supports_packed_linear
from models.layers.stepwise import InProgress, JobState, LoadedMember, StepwiseFactory, StepwiseModel, evict_caches, synchronize
from models.registry import Architecture, Reference, architectures, read_config, resolve

warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)  # inputs are only read

Arrays = Mapping[str, NDArray[Any]]


class LoadedModel:
    """A bundle's model on a device, in evaluation mode. Any number of threads may call it at once."""

    def __init__(
        self,
        spec: BundleSpec,
        model: nn.Module,
        forward: ForwardFn | None,
        device: torch.device,
        steps: StepwiseModel | None = None,
        reader: TokenizeFn | None = None,
    ) -> None:
        self.spec = spec
        self.model = model
        self.steps = LoadedStepwiseModel(steps, device) if steps is not None else None
        """None for a model that answers in one forward pass."""
        self._forward = forward
        self._device = device
        self._reader = reader

    @property
    def depth(self) -> int:
        """Number of blocks, the length of a merge schedule."""
        return int(getattr(self.model.config, "depth", 1))

    @property
    def protected_tokens(self) -> int:
        """Number of special tokens, which never merge."""
        return int(getattr(self.model.config, "special_tokens", 0))

    def without_weights(self) -> LoadedModel:
        """Return a model of the same config and shapes without memory, which cannot run."""
        model = _build_on_meta(architectures()[self.spec.architecture], self.model.config)
        return LoadedModel(self.spec, model, self._forward, self._device, reader=self._reader)

    def forward(self, arrays: Arrays, options: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Run one batch: arrays and outputs have one row per sample. Raises BundleError if there is no forward pass for the task."""
        if self._forward is None:
            reason = (
                unsupported_reason(self.spec) or f"task {self.spec.task} is answered step by step by architecture {self.spec.architecture}"
            )
            raise BundleError(f"{self.spec.id}: {reason}")
        arrays, passed_through = self._reader(arrays) if self._reader is not None and "utf8" in arrays else (arrays, {})
        with torch.inference_mode():
            return {
                **passed_through,
                **_to_numpy(self._forward(self.model, _to_device(arrays, self._device), options, self.spec.image_preprocess)),
            }


@dataclass(frozen=True)
class LoadedStepwiseModel:
    """`StepwiseModel` on a device, in NumPy. A call returns when the device has finished: the caller schedules by the time of a step."""

    steps: StepwiseModel
    device: torch.device

    @property
    def unit(self) -> str:
        return self.steps.unit

    def start(self, arrays: Sequence[Arrays], options: Sequence[Mapping[str, Any]]) -> list[JobState]:
        with torch.inference_mode():
            states = self.steps.start([_to_device(job, self.device) for job in arrays], options)
            synchronize(self.device)
            return states

    def step(self, states: Sequence[JobState], previews: Sequence[bool]) -> list[StepProgress | StepOutputs]:
        with torch.inference_mode():
            outcomes = self.steps.step(states, previews)
            synchronize(self.device)
            if len(outcomes) != len(states):
                raise ValueError(f"a step of {len(states)} jobs had {len(outcomes)} outcomes")
            return [
                _to_progress(outcome) if isinstance(outcome, InProgress) else StepOutputs(_to_numpy(outcome.outputs))
                for outcome in outcomes
            ]

    def cost(self, state: JobState) -> float:
        return self.steps.cost(state)

    @property
    def first_cost(self) -> float | None:
        """Cost of a job's first step, from models that know it in advance; None: as for other jobs."""
        return getattr(self.steps, "first_cost", None)

    def evict(self, max_bytes: int, seconds: float) -> int:
        """Evict cached values (`models.layers.stepwise.evict_caches`)."""
        return evict_caches(self.steps, max_bytes, seconds)


@dataclass(frozen=True)
class StepProgress:
    """Outcome of a step that is not the last, in NumPy arrays."""

    state: JobState
    preview: Arrays | None


@dataclass(frozen=True)
class StepOutputs:
    outputs: Arrays


def _to_progress(outcome: InProgress) -> StepProgress:
    return StepProgress(outcome.state, None if outcome.preview is None else _to_numpy(outcome.preview))


def _to_device(arrays: Arrays, device: torch.device) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in arrays.items()}


def _to_numpy(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def unsupported_reason(spec: BundleSpec) -> str | None:
    """Return why a bundle's task cannot be run; None if it can. `load` refuses unknown architectures."""
    architecture = architectures().get(spec.architecture)
    if spec.route is None:
        return f"architecture {spec.architecture} with this config answers on no route: it is a member of pipelines"
    if architecture is None or architecture.serves(spec.task):
        return None
    served = any(other.serves(spec.task) for other in architectures().values())
    return f"task {spec.task} is not served yet by this version" + (f" for architecture {spec.architecture}" if served else "")


def load(bundle: Bundle, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, packed: bool = False) -> LoadedModel:
    """Verify a bundle's weights, build its model and load them, also for a task that is not served.

    packed: use packed layers where these are faster, as workers do: such a model is for inference only. Raises BundleError with a sentence
    that names the file.
    """
    spec = bundle.spec
    architecture = architectures().get(spec.architecture)
    if architecture is None:
        raise BundleError(f"{bundle.path}: architecture {spec.architecture!r} is unknown; known are {', '.join(architectures())}")
    bundle.verify()
    try:
        config = read_config(architecture.config, spec.config)
        model = _build_on_meta(architecture, config)
    except ValueError as error:
        raise BundleError(f"{bundle.path}: config: {error}") from error
    if architecture.open is not None:
        _check_fit(bundle, config)
        try:
            model = resolve(architecture.open)(bundle.weights_path, config, torch.device(device))
        except (ValueError, OSError) as error:
            raise BundleError(f"{bundle.weights_path}: {error}") from error
        steps = _make_steps(architecture, spec, model, torch.device(device))
        return LoadedModel(spec, model.eval(), _resolve_for(spec.task, architecture.forwards), torch.device(device), steps)
    if architecture.assemble is not None:
        parts = {role: _load_member(member, device, dtype, packed) for role, member in bundle.members().items()}
        try:
            model = resolve(architecture.assemble)(spec, config, parts)
        except ValueError as error:
            raise BundleError(f"{bundle.path}: {error}") from error
        return LoadedModel(spec, model.eval(), None, torch.device(device), _make_steps(architecture, spec, model, torch.device(device)))
    try:
        weights = load_file(bundle.weights_path)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{bundle.weights_path}: no safetensors file ({error})") from error
    problem = weight_mismatch(model, weights)
    if problem:
        raise BundleError(f"{bundle.weights_path}: does not fit architecture {spec.architecture}: {problem}")
    if spoilt := [name for name, tensor in weights.items() if tensor.is_floating_point() and bool(tensor.isnan().any())]:
        raise BundleError(f"{bundle.weights_path}: weights that are not numbers (NaN): {_join_few(spoilt)}")
    _check_fit(bundle, config)
    model.load_state_dict(weights, strict=True, assign=True)
    model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    if packed and supports_packed_linear(torch.device(device), dtype):
        pack_linears(model)
    steps = _make_steps(architecture, spec, model, torch.device(device))
    reader = resolve(architecture.reader)(bundle) if architecture.reader is not None and spec.text is not None else None
    return LoadedModel(spec, model, _resolve_for(spec.task, architecture.forwards), torch.device(device), steps, reader)


def _build_on_meta(architecture: Architecture, config: Any) -> nn.Module:
    with on_meta_device():
        return architecture.build(config)


def check_fit(bundle: Bundle) -> None:
    """Check labels and sizes of a bundle whose architecture is known. Raises BundleError."""
    architecture = architectures().get(bundle.spec.architecture)
    if architecture is None:
        return
    try:
        _check_fit(bundle, read_config(architecture.config, bundle.spec.config))
    except ValueError as error:
        raise BundleError(f"{bundle.path}: config: {error}") from error


def _check_fit(bundle: Bundle, config: Any) -> None:
    """Check labels and sizes for a config. Raises BundleError."""
    problem = config_mismatch(bundle.spec, config)
    if problem:
        raise BundleError(f"{bundle.path}: {problem}")


def config_mismatch(spec: BundleSpec, config: Any) -> str | None:
    """Return why a network of this config does not fit its spec: the number of labels or the size of images differs. None if it fits."""
    defaults = architectures()[spec.architecture].bundle_defaults
    labels, count = len(spec.labels), defaults.classes
    if labels and count is not None and labels != (classes := count(config)):
        return f"{labels} label{'' if labels == 1 else 's'} for a model of {classes} class{'' if classes == 1 else 'es'}"
    preprocess, size = spec.preprocess, defaults.size(config)
    if (
        preprocess is not None
        and size is not None
        and (preprocess.image_size, preprocess.image_width or preprocess.image_size) != tuple(size)
    ):
        size_text = f"{preprocess.image_size} × {preprocess.image_width or preprocess.image_size}"
        return f"preprocess makes images of {size_text} pixels for a model of {size[0]} × {size[1]}"
    return None


def _load_member(member: Bundle, device: torch.device | str, dtype: torch.dtype, packed: bool) -> LoadedMember:
    if member.spec.members:
        raise BundleError(f"{member.path}: a pipeline cannot be a member of another")
    return LoadedMember(member.spec, load(member, device=device, dtype=dtype, packed=packed).model)


def _make_steps(architecture: Architecture, spec: BundleSpec, model: nn.Module, device: torch.device) -> StepwiseModel | None:
    make: StepwiseFactory | None = _resolve_for(spec.task, architecture.steps)
    return make(model, spec, device) if make is not None else None


def _resolve_for(task: str, references: Mapping[str, Reference]) -> Any:
    return resolve(references[task]) if task in references else None


def weight_mismatch(model: nn.Module, weights: Mapping[str, Tensor]) -> str | None:
    """Return the names of weights that are missing, unexpected or of another shape, in one line; None if all fit."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    parts = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {found[name]} for {expected[name]}" for name in expected if name in found and expected[name] != found[name]
        ],
    }
    return "; ".join(f"{problem}: {_join_few(names)}" for problem, names in parts.items() if names) or None


def _join_few(names: Sequence[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
