"""Inpainting step by step: one denoising step of many requests at once, each with its own time, sampler and hole.

The encoder and the keys and values of every decoder block run once for each window; samples of one hole share them. The state, the
sampler's tables and its updates are float32. Noise comes from a counter: it depends on seed, step and place alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from models.bundle import BundleError, BundleSpec
from models.layers.stepwise import InProgress, JobState, StepCompletion, Tensors
from models.systems.diffmae.canvas import Canvas, CanvasWindow, Place
from models.systems.diffmae.decoder import DecoderContext
from models.systems.diffmae.diffusion import DiffusionSampler, NoiseSchedule, SamplerMethod, SamplerTable, TimestepSpacing
from models.systems.diffmae.exemplar_fill import ExemplarCrop, ExemplarState
from models.systems.diffmae.inpaint_state import (
    MIN_SIZE_RATIO,
    InpaintRequest,
    InpaintState,
    PaddedBatch,
    WindowDenoising,
    group_by_hole_size,
    group_by_visible_count,
)
from models.systems.diffmae.masks import PatchSplit
from models.systems.diffmae.model import DiffMAE
from models.systems.diffmae.packed_decoder import PackedBatch
from models.systems.diffmae.sampling import clean, counter_normal

CONSUMED_ARRAYS = frozenset({"pixels", "missing", "windows", "detail", "detail_missing"})
"""Arrays of a job that are read here; all others are returned with the answer."""
INT64_SIGN_BIT = 2**63
DEFAULT_STEPS = 100
COPYING_SECONDS = 1.0
"""Seconds of a step after which no further level starts, since other work waits for its end. Remaining jobs stay as they are."""


class InpaintingSteps:
    """Stepwise inpainting of jobs.

    A job has `pixels` uint8 (h, w, channels) or (T, h, w, channels), `missing` (h, w) or (T, h, w), nonzero for pixels to generate, and
    `windows` int (W, 2), top and left of each. Its answer has `filled` uint8 (n, h, w, channels) or (n, T, h, w, channels), and all other
    arrays of the job. With `detail` uint8 (h, w, 3) and `detail_missing` (h, w) the hole is then filled with patches of this crop, starting
    from the network's result or, without `pixels`, from nothing (`models.systems.diffmae.exemplar_fill`).
    """

    unit = "steps"

    def __init__(self, model: DiffMAE, device: torch.device, *, packs: bool | None = None) -> None:
        """Precompute the time table. packs: whether jobs share a pass without padding; None: on a CPU only.

        A GPU would have to launch the attention of each job separately, so there holes of similar size share a padded pass.
        """
        self.model = model
        self._device = device
        self._packs = device.type == "cpu" if packs is None else packs
        with torch.inference_mode():
            self._times = model.time_table()

    def start(self, arrays: Sequence[Tensors], options: Sequence[Mapping[str, Any]]) -> list[JobState]:
        """Start jobs. options: `sampler`, `steps`, `eta`, `spacing`, `temperature`, `seed`, `samples`, `inject_known`, `deterministic`.

        Raises BundleError if the model predicts normalised patches: it cannot generate pixels.
        """
        if self.model.config.normalise_patches:
            raise BundleError("normalise_patches: such a model cannot fill holes, since it does not know a missing patch's mean and spread")
        jobs = list(zip(arrays, options, strict=True))
        fillings = iter(
            self._enter(
                [
                    InpaintState(self._request(job, job_options), Canvas.from_pixels(job["pixels"], job["missing"]))
                    for job, job_options in jobs
                    if "pixels" in job
                ]
            )
        )
        return [
            next(fillings)
            if "pixels" in job
            else ExemplarState.start(
                ExemplarCrop.from_job(job), _seeds(job_options), {name: job[name] for name in job if name not in CONSUMED_ARRAYS}
            )
            for job, job_options in jobs
        ]

    def step(self, states: Sequence[JobState], previews: Sequence[bool]) -> list[InProgress | StepCompletion]:
        filled = iter(
            self._fill([(state, preview) for state, preview in zip(states, previews, strict=True) if isinstance(state, InpaintState)])
        )
        copied = iter(_copy([state for state in states if isinstance(state, ExemplarState)]))
        return [next(copied) if isinstance(state, ExemplarState) else next(filled) for state in states]

    def _fill(self, requests: Sequence[tuple[InpaintState, bool]]) -> list[InProgress | StepCompletion]:
        """Run the next step of the network for each state, with a preview if requested."""
        fillings = [filling for filling, _ in requests]
        moved = {
            index: result
            for group in group_by_hole_size(fillings, 0.0 if self._packs else MIN_SIZE_RATIO)
            for index, result in zip(group, self._denoise([fillings[index] for index in group]), strict=True)
        }
        return [
            self._outcome(*moved[index], preview) if index in moved else StepCompletion(self._answer(filling))
            for index, (filling, preview) in enumerate(requests)
        ]

    def cost(self, state: JobState) -> float:
        return state.cost if isinstance(state, InpaintState) else 1.0

    def _request(self, job: Tensors, options: Mapping[str, Any]) -> InpaintRequest:
        steps = int(options.get("steps", DEFAULT_STEPS))
        schedule = self.model.config.schedule
        sampler = DiffusionSampler(
            SamplerMethod(options.get("sampler", SamplerMethod.DDIM)),
            min(steps, schedule.steps),
            eta=float(options.get("eta", 0.0)),
            spacing=TimestepSpacing(options.get("spacing", TimestepSpacing.UNIFORM)),
        )
        reverse, noisy = _reverse(sampler, schedule)
        return InpaintRequest(
            windows=tuple((top, left) for top, left in job["windows"].tolist()),
            reverse=reverse,
            noisy=noisy,
            seeds=torch.tensor(_seeds(options), device=self._device),
            temperature=float(options.get("temperature", 1.0)),
            inject_known=bool(options.get("inject_known", True)),
            alone="detail" in job or bool(options.get("deterministic", False)),  # one grey level leads to another patch
            returned={name: array for name, array in job.items() if name not in CONSUMED_ARRAYS},
            crop=ExemplarCrop.from_job(job) if "detail" in job else None,
        )

    def _enter(self, fillings: Sequence[InpaintState]) -> list[InpaintState]:
        """Enter the next window, if there is one: encode it and draw its initial noise."""
        windows = {
            index: filling.canvas.window(self.model, filling.request.windows[filling.finished])
            for index, filling in enumerate(fillings)
            if filling.finished < len(filling.request.windows)
        }
        contexts: dict[int, DecoderContext] = {}
        for group in group_by_visible_count(fillings, windows):
            contexts |= zip(group, self._encode([windows[index] for index in group]), strict=True)
        return [
            replace(filling, current=self._denoising(filling, windows[index], contexts[index]) if index in windows else None)
            for index, filling in enumerate(fillings)
        ]

    def _encode(self, windows: Sequence[CanvasWindow]) -> Iterator[DecoderContext]:
        """Encode windows with equally many visible and masked patches in one pass."""
        images = torch.cat([window.images for window in windows]).to(self.model.noise_embed.weight.dtype)
        visible = torch.cat([window.split.visible.expand(len(window.images), -1) for window in windows])
        masked = torch.cat([window.split.masked.expand(len(window.images), -1) for window in windows])
        context = self.model.encode(images, PatchSplit(visible, masked))
        start = 0
        for window in windows:
            rows = slice(start, start + len(window.images))
            start = rows.stop
            yield context if len(windows) == 1 else context.rows(rows)

    def _denoising(self, filling: InpaintState, window: CanvasWindow, context: DecoderContext) -> WindowDenoising:
        at = filling.request.windows[filling.finished]
        return WindowDenoising(at, window, context, self._noise(filling, -1, window.split))

    def _denoise(self, fillings: Sequence[InpaintState]) -> Iterator[tuple[InpaintState, Tensor]]:
        """Take one step of all states in one batch. Yield each new state and its predicted clean patches (n, M, P)."""
        batch = PackedBatch.join(fillings) if self._packs else PaddedBatch.join(fillings)
        x0 = clean(self.model, batch.x, batch.predict(self.model, self._times), batch.steps, batch.known_pixels)
        added = torch.zeros_like(batch.x)
        for filling, now, rows in batch.jobs():
            if filling.adds_noise:
                added[rows] = self._noise(filling, now.executed, now.window.split).view(added[rows].shape)
        after = batch.steps.take(batch.x, x0, added)
        for filling, now, rows in batch.jobs():
            x = after[rows].reshape(now.x.shape).clone()
            yield replace(filling, current=replace(now, x=x, executed=now.executed + 1)), x0[rows].reshape(now.x.shape)

    def _outcome(self, filling: InpaintState, x0: Tensor, preview: bool) -> InProgress | StepCompletion:
        now = filling.current
        assert now is not None
        if now.executed < len(filling.request.reverse):
            return InProgress(filling, self._preview(filling, x0) if preview else None)
        canvas = filling.canvas.paste(self.model, now.at, now.window, now.x)
        [filling] = self._enter([InpaintState(filling.request, canvas, filling.finished + 1)])
        if filling.current is None and filling.request.crop is not None:
            return InProgress(self._copying(filling, filling.request.crop))
        if filling.current is None:
            return StepCompletion(self._answer(filling))
        return InProgress(filling, self._preview(filling, None) if preview else None)

    def _copying(self, filling: InpaintState, crop: ExemplarCrop) -> ExemplarState:
        request, starts = filling.request, self._answer(filling)["filled"].cpu().numpy()
        return ExemplarState.start(crop, request.seeds.tolist(), request.returned, starts, filling.done)

    def _preview(self, filling: InpaintState, x0: Tensor | None) -> dict[str, Tensor]:
        """Render the part of the first sample's window on the canvas, as predicted so far.

        `filled` is uint8 (h, w, channels) or (T, h, w, channels); `step` the number of steps done; `box`, if the job has one, the window
        in the image that the job's box was cut from: x, y, width, height.
        """
        now = filling.current
        assert now is not None
        canvas = replace(filling.canvas, pixels=filling.canvas.pixels[:1])
        if x0 is not None:
            first = replace(now.window, images=now.window.images[:1])
            canvas = canvas.paste(self.model, now.at, first, x0[:1])
        part = self._like_input(canvas.part(self.model, now.at))[0]
        preview = {"filled": part, "step": torch.tensor(filling.done)}
        box = filling.request.returned.get("box")
        return preview if box is None else {**preview, "box": _locate_in_image(box, canvas, now.at, part.shape[-3:-1])}

    def _answer(self, filling: InpaintState) -> dict[str, Tensor]:
        pixels = filling.canvas.pixels
        samples = pixels.expand(filling.request.samples, *pixels.shape[1:])
        return {"filled": self._like_input(samples), **filling.request.returned}

    def _like_input(self, pixels: Tensor) -> Tensor:
        return pixels if self.model.config.frames else pixels.squeeze(1)

    def _noise(self, filling: InpaintState, executed: int, split: PatchSplit) -> Tensor:
        """Draw the noise (n, M, P) that this step adds; -1 is the initial noise. Windows do not repeat each other's noise."""
        seeds = filling.request.seeds
        counter = filling.finished * (len(filling.request.reverse) + 1) + executed
        drawn = counter_normal(seeds, torch.full_like(seeds, counter), split.masked.expand(len(seeds), -1), self.model.config.patch_values)
        return drawn * filling.request.temperature


def _locate_in_image(box: Tensor, canvas: Canvas, at: Place, size: Sequence[int]) -> Tensor:
    """Convert a part of a canvas to its box in the image: (4,), left, top, width, height. box: that of the whole canvas."""
    left, top, width, height = box.tolist()
    across, down = width / canvas.missing.shape[2], height / canvas.missing.shape[1]
    edges = [left + at[1] * across, top + at[0] * down, left + (at[1] + size[1]) * across, top + (at[0] + size[0]) * down]
    x0, y0, x1, y1 = map(round, edges)
    return torch.tensor([x0, y0, x1 - x0, y1 - y0])


def _copy(states: Sequence[ExemplarState]) -> Iterator[InProgress | StepCompletion]:
    """Fill one level of each of the first states, until COPYING_SECONDS have passed."""
    until = time.monotonic() + COPYING_SECONDS
    for state in states:
        if time.monotonic() < until:
            state = state.next()
        yield StepCompletion(state.answer()) if state.is_done else InProgress(state)


def _seeds(options: Mapping[str, Any]) -> list[int]:
    return [(int(options.get("seed", 0)) + sample) % INT64_SIGN_BIT for sample in range(int(options.get("samples", 1)))]


def inpaint_steps(model: nn.Module, _spec: BundleSpec, device: torch.device) -> InpaintingSteps:
    assert isinstance(model, DiffMAE)
    return InpaintingSteps(model, device)


@lru_cache(maxsize=64)
def _reverse(sampler: DiffusionSampler, schedule: NoiseSchedule) -> tuple[SamplerTable, tuple[bool, ...]]:
    steps = sampler.reverse(schedule)
    return steps, tuple(steps.sigma.gt(0).tolist())
