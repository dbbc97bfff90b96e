"""Mel filter banks against Kaldi's own code (kaldi-native-fbank), and what MAViL makes of them (recorded in tests/golden/mavil)."""

from __future__ import annotations

import kaldi_native_fbank  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor

from models.media.fbank import FbankConfig, log_mel, mel_filters
from models.systems.mavil.preprocessing import AUDIOSET, clip_frame_indices, normalise_clip, spectrogram


def sound(samples: int) -> Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(0)) * 0.1


def compute_kaldi(waveform: Tensor, config: FbankConfig) -> Tensor:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.window_type = "hanning"
    options.frame_opts.samp_freq = config.sample_rate
    options.frame_opts.frame_length_ms = config.window_ms
    options.frame_opts.frame_shift_ms = config.hop_ms
    options.frame_opts.preemph_coeff = config.preemphasis
    options.frame_opts.remove_dc_offset = config.remove_mean
    options.mel_opts.num_bins = config.mel_bins
    options.mel_opts.low_freq = config.low_hz
    options.mel_opts.high_freq = config.high_hz
    options.use_power = config.power
    bank = kaldi_native_fbank.OnlineFbank(options)
    bank.accept_waveform(config.sample_rate, waveform.tolist())
    bank.input_finished()
    return torch.stack([torch.tensor(bank.get_frame(frame)) for frame in range(bank.num_frames_ready)])


@pytest.mark.parametrize("mel_bins", [23, 80])
@pytest.mark.parametrize("samples", [400, 559, 560, 8000])
def test_filter_banks_are_kaldis(mel_bins: int, samples: int) -> None:
    waveform, config = sound(samples), FbankConfig(mel_bins=mel_bins)
    torch.testing.assert_close(log_mel(waveform, config), compute_kaldi(waveform, config), rtol=0, atol=1e-3)


@pytest.mark.parametrize("power", [True, False])
def test_other_filter_banks_are_kaldis_too(power: bool) -> None:
    config = FbankConfig(
        sample_rate=22050,
        mel_bins=40,
        window_ms=32.0,
        hop_ms=12.5,
        preemphasis=0.5,
        low_hz=60.0,
        high_hz=9000.0,
        remove_mean=False,
        power=power,
    )
    waveform = sound(6000) + 0.05
    torch.testing.assert_close(log_mel(waveform, config), compute_kaldi(waveform, config), rtol=0, atol=1e-3)


def test_filters_beyond_half_the_sample_rate_are_refused() -> None:
    with pytest.raises(ValueError, match="filters from 20 to 8000 Hz do not fit a sample rate of 8000, which holds 0 to 4000 Hz"):
        FbankConfig(sample_rate=8000)


def test_the_fourth_of_128_filters_hears_nothing() -> None:
    """Kaldi refuses so many filters; the published front end has them."""
    assert mel_filters(FbankConfig()).sum(dim=0).eq(0).nonzero().flatten().tolist() == [3]
    assert torch.allclose(log_mel(sound(800))[:, 3], torch.tensor(-15.9424), atol=1e-4)


def test_sounds_of_a_batch_do_not_meet() -> None:
    batch = torch.stack([sound(2000), sound(2000).flip(0)])
    torch.testing.assert_close(log_mel(batch)[1], log_mel(batch[1]))


def test_ten_seconds_are_998_frames_and_the_rest_is_padding() -> None:
    audible = spectrogram(sound(160000), 1024)
    assert audible.shape == (1, 1024, 128)
    torch.testing.assert_close(audible[0, 998:], torch.full((26, 128), -AUDIOSET.mean / (2 * AUDIOSET.std)))
    assert audible[0, 997].std() > 0.01


def test_channels_are_averaged_and_a_constant_is_silent() -> None:
    left, right = sound(4000), sound(4000).roll(7)
    torch.testing.assert_close(spectrogram(torch.stack([left, right]) + 0.25, 32), spectrogram((left + right) / 2, 32), rtol=0, atol=1e-3)


def test_a_sound_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="399 samples is shorter than one window of 400"):
        spectrogram(sound(399), 32)


def test_clips_have_two_frames_a_second_and_repeat() -> None:
    assert clip_frame_indices(300, 30.0).tolist() == [0, 15, 30, 45, 60, 75, 90, 105]
    assert clip_frame_indices(200, 29.97).tolist() == [0, 14, 29, 44, 59, 74, 89, 104]
    assert clip_frame_indices(31, 30.0).tolist() == [0, 15, 30, 0, 15, 30, 0, 15]
    assert clip_frame_indices(1, 25.0, frames=4).tolist() == [0, 0, 0, 0]


def test_frames_are_squeezed_to_squares() -> None:
    pictures = torch.zeros(2, 10, 20, 3, dtype=torch.uint8)
    pictures[:, :, 10:] = 255
    clip = normalise_clip(pictures, 10, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert clip.shape == (3, 2, 10, 10)
    assert clip[:, :, :, :5].eq(-1).all() and clip[:, :, :, 5:].eq(1).all()
