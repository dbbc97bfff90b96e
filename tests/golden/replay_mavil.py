"""MAViL: fine-tuned heads, both stages of pre-training, Audio-MAE, and the sound that they hear."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from models.audio_mae import AudioMAE
from models.fbank import FbankConfig, log_mel
from models.layers.masking import Masking
from models.mavil import MAViL, kept_on_grid
from models.mavil_inputs import Loudness, spectrogram
from models.mavil_pretraining import Learned, MAViLPretraining, Noise
from models.published import FAMILIES, fit, read_checkpoint
from tests.golden.case import Case, Replayed


def replay(case: Case) -> Replayed:
    if "target_length" in case.config:
        return _sound(case)
    if "num_classes" in case.config:
        return _finetuned(case)
    return _pretraining(case) if "stage" in case.config else _audio_mae(case)


def _sound(case: Case) -> Replayed:
    config = case.config
    assert config["dither"] == 0.0 and config["use_power"] and not config["use_energy"] and config["snip_edges"]
    assert config["window"] == "hanning (symmetric)"
    bank = FbankConfig(
        sample_rate=config["sample_rate"],
        mel_bins=config["num_mel_bins"],
        window_ms=config["frame_length_ms"],
        hop_ms=config["frame_shift_ms"],
        preemphasis=config["preemphasis"],
        low_hz=config["low_freq"],
        high_hz=config["high_freq"],
        floor=config["log_floor"],
        remove_mean=config["remove_dc_offset"],
    )
    assert bank.transform == config["fft"]
    waveform = case.inputs["waveform"]
    heard = spectrogram(waveform, config["target_length"], Loudness(config["mean"], config["std"]), bank)
    raw = log_mel(waveform - waveform.mean(), bank)
    return Replayed({"normalized": heard[0], "fbank": raw}, {"fbank": raw, "fbank_float64": log_mel(waveform.double(), bank)})


def _towers(config: dict[str, Any]) -> dict[str, Any]:
    """What both models of two halves are told. It must agree with the weights."""
    frames, *patch = config.get("tubelet", (2, config["patch"], config["patch"]))
    assert patch[0] == patch[1]
    return {
        "audio_frames": config["audio_input"][0],
        "mel_bins": config["audio_input"][1],
        "audio_patch_size": config["patch"],
        "frames": config["video_frames"],
        "image_size": config["video_size"],
        "patch_frames": frames,
        "patch_size": patch[0],
        "width": config["embed_dim"],
        "depth": config["depth"],
        "heads": config["num_heads"],
        "mlp_ratio": config.get("mlp_ratio", 4.0),
        "qkv_bias": config.get("qkv_bias", True),
        "norm_eps": config["layernorm_eps"],
        "fusion_depth": config["depth_av"],
    }


def load_finetuned(case: Case) -> MAViL:
    settings = _towers(case.config) | {"classes": case.config["num_classes"]}
    model = fit(read_checkpoint(case.checkpoint), FAMILIES["mavil"], settings).model()
    assert isinstance(model, MAViL)
    return model


def _finetuned(case: Case) -> Replayed:
    model, inputs = load_finetuned(case), case.inputs
    audio, video = inputs["audio"], inputs["video"]
    heard, seen = _kept(case)
    outputs: dict[str, Tensor] = {}
    if model.config.fusion_depth:
        answers = {"av": model(audio, video)}
        if heard is not None and seen is not None:
            outputs["logits_av_masked"] = model(audio, video, audio_kept=heard, video_kept=seen).logits
    else:
        answers = {"audio": model.hear(audio), "video": model.see(video)}
        outputs |= {"logits_audio_masked": model.hear(audio, kept=heard).logits, "logits_video_masked": model.see(video, kept=seen).logits}
    for name, answer in answers.items():
        outputs |= {
            f"features_{name}": answer.features,
            f"logits_{name}": answer.logits,
            f"probs_{name}": answer.scores,
        }
    return Replayed(outputs)


def _kept(case: Case) -> tuple[Tensor | None, Tensor | None]:
    """The patches of sound and pictures that training leaves in."""
    inputs, masking = case.inputs, case.config.get("train_masking", {})
    heard = seen = None
    if "noise_t" in inputs:
        heard = kept_on_grid(inputs["noise_t"], inputs["noise_f"], masking["t"], masking["f"])
    if "noise_v" in inputs:
        noise = inputs["noise_v"]
        seen = Masking.by_noise(noise, int(noise.shape[1] * (1 - masking["v"]))).kept
    return heard, seen


def _pretraining(case: Case) -> Replayed:
    model, inputs = load_pretraining(case, case.checkpoint, student=True), case.inputs
    features = None
    intermediates: dict[str, Tensor] = {}
    if model.config.predict_features:
        teacher = load_pretraining(case, case.folder / "teacher.pth", student=False)
        features = teacher.features(inputs["audio"], inputs["video"])
        intermediates |= {"target_audio": features.audio, "target_video": features.video}
    learned: Learned = model(inputs["audio"], inputs["video"], noise_of(case), features)
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
    return Replayed(outputs, intermediates)


def load_pretraining(case: Case, checkpoint: Path, *, student: bool) -> MAViLPretraining:
    """A teacher differs in what its decoders predict, and nobody asks them."""
    config = case.config
    settings = _towers(config) | {
        "decoder_width": config["decoder_dim"],
        "decoder_depth": config["decoder_depth"],
        "decoder_heads": config["decoder_heads"],
        "mask_ratio": config["mask_ratio"],
        "normalise_targets": config.get("norm_pix_loss", True),
        "inter_weight": config["alpha"],
        "intra_weight": config["beta"],
        "inter_temperature": config["tau_inter"],
        "intra_temperature": config["tau_intra"],
    }
    if student:
        settings["predict_features"] = config["stage"] == 2
    model = fit(read_checkpoint(checkpoint), FAMILIES["mavil_pretrained"], settings).model()
    assert isinstance(model, MAViLPretraining)
    return model


def noise_of(case: Case) -> Noise:
    inputs = case.inputs
    return Noise((inputs["noise_audio_1"], inputs["noise_audio_2"]), (inputs["noise_video_1"], inputs["noise_video_2"]))


def load_audio_mae(case: Case) -> AudioMAE:
    config = case.config
    if config.get("mask_2d"):
        raise ValueError("mask_2d: pre-training removes patches, not whole times and bins")
    settings = {
        "audio_frames": config["audio_input"][0],
        "mel_bins": config["audio_input"][1],
        "patch_size": config["patch"],
        "width": config["embed_dim"],
        "depth": config["depth"],
        "heads": config["num_heads"],
        "decoder_width": config["decoder_dim"],
        "decoder_depth": config["decoder_depth"],
        "decoder_heads": config["decoder_heads"],
        "mask_ratio": config["mask_ratio"],
        "normalise_targets": config["norm_pix_loss"],
        "norm_eps": config["layernorm_eps"],
        **_windows(config["decoder"]),
    }
    model = fit(read_checkpoint(case.checkpoint), FAMILIES["audio_mae"], settings).model()
    assert isinstance(model, AudioMAE)
    return model


def _windows(decoder: str) -> dict[str, Any]:
    """In prose, as "window attention 4x4, shift (2,0) on odd blocks"."""
    window = re.search(r"window\D*(\d+)x(\d+)", decoder)
    if window is None:
        return {"window": None}
    shift = re.search(r"shift \((\d+), ?0\)", decoder)
    return {"window": (int(window[1]), int(window[2])), "window_shift": int(shift[1]) if shift else 0}


def _audio_mae(case: Case) -> Replayed:
    model, audio, noise = load_audio_mae(case), case.inputs["audio"], case.inputs["noise"]
    answer = model(audio, noise)
    masking = Masking.by_noise(noise, model.config.visible)
    return Replayed(
        {
            "pred": answer.patches,
            "mask": answer.mask,
            "loss_rec_audio": answer.loss,
            "target_patches": model.target_patches(audio),
        },
        {"latent": model.encode_visible(audio, masking.kept), "ids_restore": masking.restore},
    )
