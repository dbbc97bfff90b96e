"""MAViL (arXiv 2212.08071), fine-tuned: classification of sound, of video, or of both together.

Follows the authors' inference code, which came out, with a base checkpoint, in a benchmark of others. Pre-training is
`models.systems.mavil.pretraining`, the way from sound and video to tensors `models.systems.mavil.preprocessing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.layers.block import Block
from models.layers.initialisation import load_encoder, start_head
from models.layers.masked_encoder import MaskedEncoder, initialise_linears
from models.layers.masking import take
from models.layers.patches import PatchEmbed, TubePatchEmbed, checked, require_clip_patches, require_spectrogram_patches
from models.layers.position_embeddings import sincos_table, tiled_table
from models.layers.token_merging import Tokens
from models.merge_schedule import MergeSchedule


@dataclass(frozen=True)
class TowersConfig:
    """Two transformers of one size, for spectrograms and for clips, and the blocks that see both. The defaults are the base size."""

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
        """Special tokens in front of each half."""
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

    def checked_sound(self, audio: Tensor) -> Tensor:
        """Spectrograms (B, 1, times, mel bins), if they are of this size. Raises ValueError."""
        return checked("audio", audio, (1, self.audio_frames, self.mel_bins))

    def first_frames(self, video: Tensor) -> Tensor:
        """Clips (B, 3, T, S, S) without what is beyond the model's frames. Raises ValueError for other sizes."""
        return checked("video", video[:, :, : self.frames], (3, self.frames, self.image_size, self.image_size))

    def audio_table(self, width: int) -> Tensor:
        """Positions to train from scratch with; published files have tables of their own."""
        return sincos_table(width, *self.audio_grid)

    def video_table(self, width: int) -> Tensor:
        return tiled_table(width, *self.video_grid)

    def fusion_blocks(self) -> nn.ModuleList:
        hidden = int(self.width * self.mlp_ratio)
        return nn.ModuleList(
            Block(self.width, self.heads, hidden, qkv_bias=self.qkv_bias, norm_eps=self.norm_eps) for _ in range(self.fusion_depth)
        )


@dataclass(frozen=True)
class MAViLConfig(TowersConfig):
    """The defaults are the base size on AudioSet; VGGSound has 309 classes and one label a clip."""

    classes: int = 527
    multi_label: bool = True
    """A clip may have several labels: scores are sigmoids of the logits; otherwise a softmax."""
    fusion_depth: int = 3
    """0: sound and video are classified apart, each by a head of its own."""
    drop_path: float = 0.0
    """Rate of the last audio block, in training; the published video and fusion blocks have none."""
    proportional_attention: bool = False
    sees: bool = True
    """False: the half that hears, alone; there is no fusion then."""

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
class Answer:
    logits: Tensor
    """(B, classes)."""
    scores: Tensor
    """(B, classes), in [0, 1]."""
    features: Tensor
    """(B, C), what the head saw; (B, 2C) for both halves."""
    tokens_in: int
    tokens_out: int
    """Tokens of both halves before the first and after the last block, special tokens included."""
    heard: tuple[Tensor, ...] = ()
    seen: tuple[Tensor, ...] = ()
    """After each merge in either half, if traced: the token that holds each input token, (B, tokens of the half)."""


class MAViL(nn.Module):
    def __init__(self, config: MAViLConfig) -> None:
        super().__init__()
        self.config = config
        self.audio = self._half(PatchEmbed(config.audio_patch_size, 1, config.width), config.audio_table(config.width), config.drop_path)
        if config.sees:
            self.video = self._half(
                TubePatchEmbed(config.patch_frames, config.patch_size, 3, config.width), config.video_table(config.width), drop_path=0.0
            )
        self.blocks_av = config.fusion_blocks()
        apart = ("a", "v") if config.sees else ("a",)
        names, width = (("av",), 2 * config.width) if config.fusion_depth else (apart, config.width)
        self.fc_norm = nn.ModuleDict({name: nn.LayerNorm(width, eps=config.norm_eps) for name in names})
        self.head = nn.ModuleDict({name: nn.Linear(width, config.classes) for name in names})
        self._initialise()

    def _half(self, patch_embed: nn.Module, positions: Tensor, drop_path: float) -> MaskedEncoder:
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
            start_head(head)

    def forward(
        self,
        audio: Tensor,
        video: Tensor,
        *,
        merge: MergeSchedule | None = None,
        video_merge: MergeSchedule | None = None,
        audio_kept: Tensor | None = None,
        video_kept: Tensor | None = None,
        trace: bool = False,
    ) -> Answer:
        """Both together. Normalised spectrograms (B, 1, times, mel bins) and clips (B, 3, T, S, S).

        merge: how many tokens merge in each block of either half; none do in the fusion blocks. video_merge: those of the video half, where
        it has a schedule of its own. audio_kept, video_kept: (B, V), the patches that are left in to train, in order of their noise: see
        `kept_on_grid` and `Masking`. trace: also record which tokens merge.
        """
        if not self.config.fusion_depth:
            raise ValueError("this model has no fusion blocks: it answers to `hear` and `see`")
        sound, pictures = self.embed_audio(audio, audio_kept, trace=trace), self.embed_video(video, video_kept, trace=trace)
        video_merge = merge if video_merge is None else video_merge
        heard, seen = fuse(self.blocks_av, self.audio.run(sound, merge), self.video.run(pictures, video_merge))
        pooled = torch.cat([_mean(heard, sound), _mean(seen, pictures)], dim=1)  # (B, 2C)
        answer = self._classify("av", pooled, _count(sound) + _count(pictures), _count(heard) + _count(seen))
        return replace(answer, heard=heard.owners, seen=seen.owners)

    def hear(self, audio: Tensor, *, merge: MergeSchedule | None = None, kept: Tensor | None = None, trace: bool = False) -> Answer:
        """Sound alone, in a model without fusion blocks."""
        sound = self.embed_audio(audio, kept, trace=trace)
        heard = self.audio.run(sound, merge)
        return replace(self._classify("a", _mean(heard, sound), _count(sound), _count(heard)), heard=heard.owners)

    def see(self, video: Tensor, *, merge: MergeSchedule | None = None, kept: Tensor | None = None, trace: bool = False) -> Answer:
        """Images alone, in a model without fusion blocks. Raises ValueError where it only hears."""
        if not self.config.sees:
            raise ValueError("this model only hears")
        pictures = self.embed_video(video, kept, trace=trace)
        seen = self.video.run(pictures, merge)
        return replace(self._classify("v", _mean(seen, pictures), _count(pictures), _count(seen)), seen=seen.owners)

    def layers(self, audio: Tensor | None = None, video: Tensor | None = None) -> dict[str, Tensor]:
        """Mean patches of every layer, for probing: `audio` and `video` (B, 1 + depth, C), the embedding first, and, given both,
        `av` (B, fusion_depth, 2C), the audio half first."""
        found, last = {}, []
        for name, tokens in (
            ("audio", None if audio is None else self.embed_audio(audio)),
            ("video", None if video is None else self.embed_video(video)),
        ):
            if tokens is None:
                continue
            means = [_mean(tokens, tokens)]
            for block in getattr(self, name).blocks:
                tokens = block(tokens)
                means.append(_mean(tokens, tokens))
            found[name] = torch.stack(means, dim=1)
            last.append(tokens)
        if len(last) == 2 and self.config.fusion_depth:
            means = []
            for block in self.blocks_av:
                last = list(fuse([block], *last))
                means.append(torch.cat([_mean(tokens, tokens) for tokens in last], dim=1))
            found["av"] = torch.stack(means, dim=1)
        return found

    def embed_audio(self, audio: Tensor, kept: Tensor | None = None, *, trace: bool = False) -> Tokens:
        """→ tokens (B, 1 + V, C), time slowest, class token first."""
        return self._embed(self.audio, self.config.checked_sound(audio), kept, trace)

    def embed_video(self, video: Tensor, kept: Tensor | None = None, *, trace: bool = False) -> Tokens:
        """→ tokens (B, 1 + V, C), time slowest, class token first. Of a longer clip the first frames are taken."""
        return self._embed(self.video, self.config.first_frames(video), kept, trace)

    def _embed(self, half: MaskedEncoder, pixels: Tensor, kept: Tensor | None, trace: bool) -> Tokens:
        patches = half.embed(pixels)
        x = half.with_class_token(patches if kept is None else take(patches, kept))
        return Tokens(x, protected=1, proportional=self.config.proportional_attention, traced=trace)

    def _classify(self, head: str, pooled: Tensor, tokens_in: int, tokens_out: int) -> Answer:
        if head not in self.head:
            raise ValueError("this model has fusion blocks: it needs sound and pictures")
        features = self.fc_norm[head](pooled)
        logits = self.head[head](features)
        scores = logits.sigmoid() if self.config.multi_label else logits.softmax(dim=-1)
        return Answer(logits, scores, features, tokens_in, tokens_out)


def fuse(blocks: Iterable[nn.Module], audio: Tokens, video: Tokens) -> tuple[Tokens, Tokens]:
    """Blocks that see the tokens of both halves, as they come from the last block of each: no norm between."""
    length = audio.x.shape[1]
    size = None
    if audio.size is not None or video.size is not None:
        size = torch.cat([torch.ones_like(half.x[..., :1]) if half.size is None else half.size for half in (audio, video)], dim=1)
    both = replace(audio, x=torch.cat([audio.x, video.x], dim=1), size=size)
    for block in blocks:
        both = block(both)
    return replace(audio, x=both.x[:, :length]), replace(video, x=both.x[:, length:])


def start_from_pretrained(model: MAViL, pretrained: Mapping[str, Tensor]) -> list[str]:
    """Load a pre-trained model, by our names, into a classifier that is to be fine-tuned, in place; its decoders and norms are left out.
    An Audio-MAE becomes the half that hears.

    Returns the names of the fusion blocks that start fresh, since the published classifier has one more than the pre-trained model.
    Raises ValueError naming what does not fit.
    """
    if "cls_token" in pretrained:  # of one half, whose names have no half in front
        pretrained = {f"audio.{name}": value for name, value in pretrained.items()}
    fresh = [f"blocks_av.{number}." for number in range(len(model.blocks_av)) if f"blocks_av.{number}.norm1.weight" not in pretrained]
    load_encoder(model, pretrained, fresh=("head.", "fc_norm.", *fresh))
    return [block.removesuffix(".") for block in fresh]


def kept_on_grid(time_noise: Tensor, bin_noise: Tensor, time_ratio: float, bin_ratio: float) -> Tensor:
    """Whole times and whole mel bins of a spectrogram are removed to fine-tune: (B, times) and (B, bins) of noise → the patches kept,
    (B, V), times in order of their noise and in each the bins in order of theirs. 0.2 and 0.2 on AudioSet's balanced clips."""
    times, bins = time_noise.shape[1], bin_noise.shape[1]
    kept_times = time_noise.argsort(dim=1)[:, : int(times * (1 - time_ratio))]
    kept_bins = bin_noise.argsort(dim=1)[:, : int(bins * (1 - bin_ratio))]
    return (kept_times.unsqueeze(2) * bins + kept_bins.unsqueeze(1)).flatten(1)


def _mean(tokens: Tokens, embedded: Tokens) -> Tensor:
    """→ (B, C), of the patches; embedded: the tokens before any merge."""
    return tokens.mean(1, embedded.x.shape[1] - 1)


def _count(tokens: Tokens) -> int:
    return tokens.x.shape[1]
