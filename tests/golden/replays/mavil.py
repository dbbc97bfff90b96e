"""MAViL: fine-tuned heads, both stages of pre-training, Audio-MAE, and the sound that they hear."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models.checkpoints import families, fit, read_checkpoint
from models.layers.masked_encoder import Masking
from models.media.fbank import FbankConfig, log_mel
from models.systems.mavil.audio_mae import AudioMAE
from models.systems.mavil.model import MAViL, keep_time_mel_grid
from models.systems.mavil.preprocessing import AUDIOSET, LogMelStats, spectrogram
from models.systems.mavil.pretraining import MaskNoise, MAViLPretraining, MAViLPretrainingOutput
from tests.golden.case import Case, Replay

SOUND_FIELDS = {
    "sample_rate": "sample_rate",
    "num_mel_bins": "mel_bins",
    "frame_length_ms": "window_ms",
    "frame_shift_ms": "hop_ms",
    "preemphasis": "preemphasis",
    "low_freq": "low_hz",
    "high_freq": "high_hz",
    "log_floor": "floor",
    "remove_dc_offset": "remove_mean",
    "use_power": "power",
}
"""Keys of a case's config → our fields. Fields that a case lacks are read from the weights, or have the published default."""

NO_SOUND = {"dither": 0.0, "use_energy": False, "snip_edges": True}
"""Options that our filter banks do not have, with the only value that they support."""

ENCODER_FIELDS = {
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "heads",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "layernorm_eps": "norm_eps",
}

TOWER_FIELDS = ENCODER_FIELDS | {
    "patch": "audio_patch_size",
    "video_frames": "frames",
    "video_size": "image_size",
    "depth_av": "fusion_depth",
    "num_classes": "classes",
}

DECODER_FIELDS = {
    "decoder_dim": "decoder_width",
    "decoder_depth": "decoder_depth",
    "decoder_heads": "decoder_heads",
    "mask_ratio": "mask_ratio",
    "norm_pix_loss": "normalise_targets",
}

LOSS_FIELDS = {
    "alpha": "inter_weight",
    "beta": "intra_weight",
    "tau_inter": "inter_temperature",
    "tau_intra": "intra_temperature",
}


def replay(case: Case) -> Replay:
    if "waveform" in case.inputs:
        return _sound(case)
    if "stage" in case.config:
        return _pretraining(case)
    return _audio_mae(case) if "decoder_dim" in case.config else _replay_finetuned(case)


def _select_settings(config: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    return {ours: config[theirs] for theirs, ours in fields.items() if config.get(theirs) is not None}


def _load(checkpoint: Path, family: str, settings: dict[str, Any]) -> nn.Module:
    return fit(read_checkpoint(checkpoint), families()[family], settings).model()


def _sound(case: Case) -> Replay:
    config, waveform = case.config, case.inputs["waveform"]
    other = {key: config[key] for key, value in NO_SOUND.items() if config.get(key, value) != value}
    if other or not config.get("window", "hanning").lower().startswith("hanning"):
        raise ValueError(f"our filter banks do not know {other or config['window']}")
    bank = FbankConfig(**_select_settings(config, SOUND_FIELDS))
    if config.get("fft", bank.transform) != bank.transform:
        raise ValueError(f"fft: {config['fft']} where a window of {bank.window} samples has {bank.transform}")
    loudness = LogMelStats(config.get("mean", AUDIOSET.mean), config.get("std", AUDIOSET.std))
    mono = waveform.mean(dim=0) if waveform.dim() == 2 else waveform
    raw = log_mel(mono - mono.mean(), bank)
    normalised = spectrogram(waveform, config.get("target_length", 1024), loudness, bank)
    return Replay({"normalized": normalised[0], "fbank": raw}, {"fbank": raw, "fbank_float64": log_mel(mono.double(), bank)})


def _towers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of both models of two halves, which must agree with the weights."""
    settings = _select_settings(config, TOWER_FIELDS)
    if "audio_input" in config:
        settings["audio_frames"], settings["mel_bins"] = config["audio_input"]
    if "tubelet" in config:
        settings["patch_frames"], height, width = config["tubelet"]
        if height != width:
            raise ValueError(f"tubelet: patches of {height} × {width} are not squares")
        settings["patch_size"] = height
    return settings


def load_finetuned(case: Case) -> MAViL:
    """Load a classifier whose recorded scores are sigmoids, however many classes there are."""
    model = _load(case.checkpoint, "mavil", _towers(case.config) | {"multi_label": True})
    assert isinstance(model, MAViL)
    return model


def _replay_finetuned(case: Case) -> Replay:
    model, (kept_audio, kept_video) = load_finetuned(case), _kept_patches(case)
    audio, video = case.inputs.get("audio"), case.inputs.get("video")
    answers = {}
    if model.config.fusion_depth:
        assert audio is not None and video is not None
        answers["av"] = model(audio, video)
        if kept_audio is not None and kept_video is not None:
            answers["av_masked"] = model(audio, video, audio_ids_keep=kept_audio, video_ids_keep=kept_video)
    else:
        if audio is not None:
            answers |= {"audio": model.forward_audio(audio), "audio_masked": model.forward_audio(audio, ids_keep=kept_audio)}
        if video is not None:
            answers |= {"video": model.forward_video(video), "video_masked": model.forward_video(video, ids_keep=kept_video)}
    outputs: dict[str, Tensor] = {}
    for name, answer in answers.items():
        outputs |= {f"features_{name}": answer.features, f"logits_{name}": answer.logits, f"probs_{name}": answer.scores}
    return Replay(outputs)


def _kept_patches(case: Case) -> tuple[Tensor | None, Tensor | None]:
    """Return the patches of sound and images that training leaves in."""
    inputs, masking = case.inputs, case.config.get("train_masking") or {}
    kept_audio = kept_video = None
    if "noise_t" in inputs and "t" in masking:
        kept_audio = keep_time_mel_grid(inputs["noise_t"], inputs["noise_f"], masking["t"], masking["f"])
    if "noise_v" in inputs and "v" in masking:
        noise = inputs["noise_v"]
        kept_video = Masking.from_noise(noise, int(noise.shape[1] * (1 - masking["v"]))).ids_keep
    return kept_audio, kept_video


def _pretraining(case: Case) -> Replay:
    model, inputs = load_pretraining(case, case.checkpoint, student=True), case.inputs
    features = None
    intermediates: dict[str, Tensor] = {}
    if model.config.predict_features:
        teacher = load_pretraining(case, case.folder / "teacher.pth", student=False)
        features = teacher.teacher_features(inputs["audio"], inputs["video"])
        intermediates |= {"target_audio": features.audio, "target_video": features.video}
    learned: MAViLPretrainingOutput = model(inputs["audio"], inputs["video"], noise_of(case), features)
    outputs = {
        "loss_inter": learned.inter,
        "loss_intra": learned.intra,
        "loss_total": learned.loss,
    }
    for name, half in (("audio", learned.audio), ("video", learned.video)):
        outputs |= {
            f"pred_{name}": half.predicted,
            f"mask_{name}": half.mask,
            f"emb_{name}": half.embeddings[0],
            f"loss_rec_{name}": half.loss,
        }
        intermediates[f"fused_{name}"] = half.fused
    return Replay(outputs, intermediates)


def load_pretraining(case: Case, checkpoint: Path, *, student: bool) -> MAViLPretraining:
    """Load the pretraining. The decoders of a teacher are not used, and the case does not give their heads."""
    config = case.config
    settings = _towers(config)
    if student:
        settings |= _select_settings(config, DECODER_FIELDS | LOSS_FIELDS) | {"predict_features": config["stage"] == 2}
    else:
        settings["decoder_heads"] = 1
    model = _load(checkpoint, "mavil_pretrained", settings)
    assert isinstance(model, MAViLPretraining)
    return model


def noise_of(case: Case) -> MaskNoise:
    inputs = case.inputs
    return MaskNoise((inputs["noise_audio_1"], inputs["noise_audio_2"]), (inputs["noise_video_1"], inputs["noise_video_2"]))


def load_audio_mae(case: Case) -> AudioMAE:
    config = case.config
    if config.get("mask_2d"):
        raise ValueError("mask_2d: pre-training removes patches, not whole times and bins")
    settings = _select_settings(config, ENCODER_FIELDS | DECODER_FIELDS | {"patch": "patch_size"}) | _windows(config.get("decoder") or "")
    if "audio_input" in config:
        settings["audio_frames"], settings["mel_bins"] = config["audio_input"]
    model = _load(case.checkpoint, "audio_mae", settings)
    assert isinstance(model, AudioMAE)
    return model


def _windows(decoder: str) -> dict[str, Any]:
    """Read windows from prose such as "window attention 4x4, shift (2,0) on odd blocks". The weights show, too, whether there are
    windows."""
    settings: dict[str, Any] = {}
    if window := re.search(r"(\d+) ?x ?(\d+)", decoder):
        settings["window"] = (int(window[1]), int(window[2]))
    if shift := re.search(r"shift \((\d+), ?0\)", decoder):
        settings["window_shift"] = int(shift[1])
    elif "no shift" in decoder:
        settings["window_shift"] = 0
    return settings


def _audio_mae(case: Case) -> Replay:
    model, audio, noise = load_audio_mae(case), case.inputs["audio"], case.inputs["noise"]
    answer = model(audio, noise)
    masking = Masking.from_noise(noise, model.config.visible)
    return Replay(
        {
            "pred": answer.patches,
            "mask": answer.mask,
            "loss_rec_audio": answer.loss,
            "target_patches": model.target_patches(audio),
        },
        {"latent": model.encode_visible(audio, masking.ids_keep), "ids_restore": masking.ids_restore},
    )
