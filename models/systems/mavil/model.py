"""MAViL (arXiv 2212.08071), fine-tuned: classification of audio, of video, or of both together.

Follows the authors' inference code, which was released with a base checkpoint as part of a benchmark. Pre-training is
`models.systems.mavil.pretraining`, preparation of audio and video `models.systems.mavil.preprocessing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.layers.block import TransformerBlock, init_head, load_encoder
from models.layers.masked_encoder import MaskedEncoder, gather_tokens, initialise_linears
from models.layers.patches import (
    PatchEmbed,
    TubePatchEmbed,
    require_clip_patches,
    require_shape,
    require_spectrogram_patches,
    sincos_table,
    tiled_table,
)
from models.layers.token_merging import Tokens
from models.merge_schedule import MergeSchedule


@dataclass(frozen=True)
class TowersConfig:
    """Config of two transformers of one size, for spectrograms and for clips, and of the fusion blocks. The defaults are the base size."""

    audio_frames: int = 1024
    """Frames of the spectrogram, 10 ms each."""
    mel_bins: int = 128
    audio_patch_size: int = 16
    frames: int = 8
    image_size: int = 224
    patch_frames: int = 2
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-6
    fusion_depth: int = 2

    def __post_init__(self) -> None:
        require_spectrogram_patches(self.audio_frames, self.mel_bins, self.audio_patch_size)
        require_clip_patches(self.frames, self.patch_frames, self.image_size, self.patch_size)

    @property
    def special_tokens(self) -> int:
        """Number of special tokens at the start of each half."""
        return 1

    @property
    def audio_grid(self) -> tuple[int, int]:
        """Patches in time and over the mel bins."""
        return self.audio_frames // self.audio_patch_size, self.mel_bins // self.audio_patch_size

    @property
    def video_grid(self) -> tuple[int, int, int]:
        """Patches in time, rows and columns."""
        side = self.image_size // self.patch_size
        return self.frames // self.patch_frames, side, side

    @property
    def audio_patches(self) -> int:
        times, bins = self.audio_grid
        return times * bins

    @property
    def video_patches(self) -> int:
        times, rows, columns = self.video_grid
        return times * rows * columns

    def check_audio(self, audio: Tensor) -> Tensor:
        """Check that spectrograms are (B, 1, times, mel bins) and return them. Raises ValueError."""
        return require_shape("audio", audio, (1, self.audio_frames, self.mel_bins))

    def trim_video(self, video: Tensor) -> Tensor:
        """Trim clips (B, 3, T, S, S) to the model's frames. Raises ValueError for other sizes."""
        return require_shape("video", video[:, :, : self.frames], (3, self.frames, self.image_size, self.image_size))

    def audio_positions(self, width: int) -> Tensor:
        """Return initial positions (1, 1 + L, C) for training from scratch; published checkpoints have their own."""
        return sincos_table(width, *self.audio_grid)

    def video_positions(self, width: int) -> Tensor:
        return tiled_table(width, *self.video_grid)

    def build_fusion_blocks(self) -> nn.ModuleList:
        hidden = int(self.width * self.mlp_ratio)
        return nn.ModuleList(
            TransformerBlock(self.width, self.heads, hidden, qkv_bias=self.qkv_bias, norm_eps=self.norm_eps)
            for _ in range(self.fusion_depth)
        )


@dataclass(frozen=True)
class MAViLConfig(TowersConfig):
    """Config of a classifier. The defaults are the base size on AudioSet; VGGSound has 309 classes and one label per clip."""

    classes: int = 527
    multi_label: bool = True
    """Whether a clip may have several labels: then scores are sigmoids of the logits, otherwise a softmax."""
    fusion_depth: int = 3
    """Number of fusion blocks; 0: audio and video are classified separately, each by its own head."""
    drop_path: float = 0.0
    """Rate of the last audio block, in training; the published video and fusion blocks have none."""
    proportional_attention: bool = False
    sees: bool = True
    """Whether there is a video half; without one there is no fusion."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sees and self.fusion_depth:
            raise ValueError("fusion_depth: there is nothing to fuse in a model that only hears; use 0")


SIZES: Mapping[str, MAViLConfig] = {
    "mavil_small": MAViLConfig(width=384, depth=12, heads=6),
    "mavil_base": MAViLConfig(),
    "mavil_large": MAViLConfig(width=1024, depth=24, heads=16),
    "mavil_huge": MAViLConfig(patch_size=14, width=1280, depth=32, heads=16),
}


@dataclass(frozen=True)
class MAViLOutput:
    logits: Tensor
    """(B, classes)."""
    scores: Tensor
    """(B, classes), in [0, 1]."""
    features: Tensor
    """(B, C), input of the head; (B, 2C) for both halves."""
    tokens_in: int
    tokens_out: int
    """Number of tokens of both halves before the first and after the last block, special tokens included."""
    audio_owners: tuple[Tensor, ...] = ()
    video_owners: tuple[Tensor, ...] = ()
    """After each merge in either half, if traced: the token that holds each input token, (B, tokens of the half)."""


class MAViL(nn.Module):
    def __init__(self, config: MAViLConfig) -> None:
        super().__init__()
        self.config = config
        self.audio = self._build_encoder(
            PatchEmbed(config.audio_patch_size, 1, config.width), config.audio_positions(config.width), config.drop_path
        )
        if config.sees:
            self.video = self._build_encoder(
                TubePatchEmbed(config.patch_frames, config.patch_size, 3, config.width), config.video_positions(config.width), drop_path=0.0
            )
        self.blocks_av = config.build_fusion_blocks()
        separate = ("a", "v") if config.sees else ("a",)
        names, width = (("av",), 2 * config.width) if config.fusion_depth else (separate, config.width)
        self.fc_norm = nn.ModuleDict({name: nn.LayerNorm(width, eps=config.norm_eps) for name in names})
        self.head = nn.ModuleDict({name: nn.Linear(width, config.classes) for name in names})
        self._initialise()

    def _build_encoder(self, patch_embed: nn.Module, positions: Tensor, drop_path: float) -> MaskedEncoder:
        config = self.config
        return MaskedEncoder(
            patch_embed,
            positions,
            depth=config.depth,
            heads=config.heads,
            mlp_ratio=config.mlp_ratio,
            qkv_bias=config.qkv_bias,
            norm_eps=config.norm_eps,
            final_norm=False,
            drop_path=drop_path,
        )

    def _initialise(self) -> None:
        self.audio.initialise()
        if self.config.sees:
            self.video.initialise()
        initialise_linears(self.blocks_av)
        for head in self.head.values():
            assert isinstance(head, nn.Linear)
            init_head(head)

    def forward(
        self,
        audio: Tensor,
        video: Tensor,
        *,
        merge: MergeSchedule | None = None,
        video_merge: MergeSchedule | None = None,
        audio_ids_keep: Tensor | None = None,
        video_ids_keep: Tensor | None = None,
        trace: bool = False,
    ) -> MAViLOutput:
        """Classify audio and video together: normalised spectrograms (B, 1, times, mel bins) and clips (B, 3, T, S, S).

        merge: number of tokens that merge in each block of either half; none do in the fusion blocks. video_merge: schedule of the video
        half if it differs. audio_ids_keep, video_ids_keep: (B, V), indices of the patches that are kept in training, in order of their
        noise: see `keep_time_mel_grid` and `Masking`. trace: also record which tokens merge.
        """
        if not self.config.fusion_depth:
            raise ValueError("this model has no fusion blocks: use `forward_audio` and `forward_video`")
        audio_tokens, video_tokens = (
            self.embed_audio(audio, audio_ids_keep, trace=trace),
            self.embed_video(video, video_ids_keep, trace=trace),
        )
        video_merge = merge if video_merge is None else video_merge
        audio_out, video_out = fuse(self.blocks_av, self.audio.run(audio_tokens, merge), self.video.run(video_tokens, video_merge))
        pooled = torch.cat([_mean(audio_out, audio_tokens), _mean(video_out, video_tokens)], dim=1)  # (B, 2C)
        output = self._classify("av", pooled, _count(audio_tokens) + _count(video_tokens), _count(audio_out) + _count(video_out))
        return replace(output, audio_owners=audio_out.token_owners, video_owners=video_out.token_owners)

    def forward_audio(
        self, audio: Tensor, *, merge: MergeSchedule | None = None, ids_keep: Tensor | None = None, trace: bool = False
    ) -> MAViLOutput:
        """Classify audio alone: spectrograms (B, 1, times, mel bins). For models without fusion blocks."""
        tokens = self.embed_audio(audio, ids_keep, trace=trace)
        encoded = self.audio.run(tokens, merge)
        return replace(self._classify("a", _mean(encoded, tokens), _count(tokens), _count(encoded)), audio_owners=encoded.token_owners)

    def forward_video(
        self, video: Tensor, *, merge: MergeSchedule | None = None, ids_keep: Tensor | None = None, trace: bool = False
    ) -> MAViLOutput:
        """Classify video alone: clips (B, 3, T, S, S). For models without fusion blocks. Raises ValueError for audio-only models."""
        if not self.config.sees:
            raise ValueError("this model has no video half")
        tokens = self.embed_video(video, ids_keep, trace=trace)
        encoded = self.video.run(tokens, merge)
        return replace(self._classify("v", _mean(encoded, tokens), _count(tokens), _count(encoded)), video_owners=encoded.token_owners)

    def embed_audio(self, audio: Tensor, ids_keep: Tensor | None = None, *, trace: bool = False) -> Tokens:
        """Embed spectrograms as tokens (B, 1 + V, C), time slowest, class token first."""
        return self._embed(self.audio, self.config.check_audio(audio), ids_keep, trace)

    def embed_video(self, video: Tensor, ids_keep: Tensor | None = None, *, trace: bool = False) -> Tokens:
        """Embed clips as tokens (B, 1 + V, C), time slowest, class token first. Only the model's frames of longer clips are used."""
        return self._embed(self.video, self.config.trim_video(video), ids_keep, trace)

    def _embed(self, half: MaskedEncoder, pixels: Tensor, ids_keep: Tensor | None, trace: bool) -> Tokens:
        patches = half.embed(pixels)
        x = half.with_class_token(patches if ids_keep is None else gather_tokens(patches, ids_keep))
        return Tokens(x, protected=1, proportional_attention=self.config.proportional_attention, traced=trace)

    def _classify(self, head: str, pooled: Tensor, tokens_in: int, tokens_out: int) -> MAViLOutput:
        if head not in self.head:
            raise ValueError("this model has fusion blocks: it needs audio and video")
        features = self.fc_norm[head](pooled)
        logits = self.head[head](features)
        scores = logits.sigmoid() if self.config.multi_label else logits.softmax(dim=-1)
        return MAViLOutput(logits, scores, features, tokens_in, tokens_out)


def fuse(blocks: Iterable[nn.Module], audio: Tokens, video: Tokens) -> tuple[Tokens, Tokens]:
    """Apply blocks to the tokens of both halves, concatenated after the last block of each, without a norm between."""
    length = audio.x.shape[1]
    size = None
    if audio.size is not None or video.size is not None:
        size = torch.cat([torch.ones_like(half.x[..., :1]) if half.size is None else half.size for half in (audio, video)], dim=1)
    both = replace(audio, x=torch.cat([audio.x, video.x], dim=1), size=size)
    for block in blocks:
        both = block(both)
    return replace(audio, x=both.x[:, :length]), replace(video, x=both.x[:, length:])


def init_from_mavil_pretraining(model: MAViL, pretrained: Mapping[str, Tensor]) -> list[str]:
    """Load a pre-trained model, by our names, into a classifier for fine-tuning, in place, without decoders and norms.

    An Audio-MAE becomes the audio half. Returns the names of the fusion blocks that keep their random initialisation, since the published
    classifier has one more than the pre-trained model. Raises ValueError naming what does not fit.
    """
    if "cls_token" in pretrained:  # one half, without its prefix
        pretrained = {f"audio.{name}": value for name, value in pretrained.items()}
    fresh = [f"blocks_av.{index}." for index in range(len(model.blocks_av)) if f"blocks_av.{index}.norm1.weight" not in pretrained]
    load_encoder(model, pretrained, fresh=("head.", "fc_norm.", *fresh))
    return [block.removesuffix(".") for block in fresh]


def keep_time_mel_grid(time_noise: Tensor, bin_noise: Tensor, time_ratio: float, bin_ratio: float) -> Tensor:
    """Choose the patches to keep if whole times and whole mel bins of a spectrogram are masked for fine-tuning: (B, V).

    time_noise, bin_noise: (B, times) and (B, bins). Times are in order of their noise, and bins within a time in order of theirs. Ratios
    are 0.2 and 0.2 on AudioSet's balanced clips.
    """
    times, bins = time_noise.shape[1], bin_noise.shape[1]
    ids_keep_times = time_noise.argsort(dim=1)[:, : int(times * (1 - time_ratio))]
    ids_keep_bins = bin_noise.argsort(dim=1)[:, : int(bins * (1 - bin_ratio))]
    return (ids_keep_times.unsqueeze(2) * bins + ids_keep_bins.unsqueeze(1)).flatten(1)


def _mean(tokens: Tokens, embedded: Tokens) -> Tensor:
    """Return the mean patch (B, C). embedded: the tokens before any merge."""
    return tokens.mean(1, embedded.x.shape[1] - 1)


def _count(tokens: Tokens) -> int:
    return tokens.x.shape[1]
