"""Synthetic recordings to train on in tests: harmonic tones with moving F0 and pauses."""

import json

import numpy as np

from spirit_jax.audio import write_wav

SPEAKERS = {"low": 110.0, "high": 220.0}  # Hz


def make_tone(number, seconds, base):
    rng = np.random.default_rng(number)
    time_t = np.arange(int(seconds * 16000)) / 16000
    f0_t = base * (1 + 0.2 * np.sin(2 * np.pi * rng.uniform(0.5, 2) * time_t))
    phase_t = 2 * np.pi * np.cumsum(f0_t) / 16000
    gate_t = np.sin(2 * np.pi * rng.uniform(1, 3) * time_t) > -0.7
    wave_t = sum(np.sin(k * phase_t) / k for k in range(1, 6)) * gate_t * 0.2
    return (wave_t + 0.003 * rng.standard_normal(len(wave_t))).astype(np.float32)


def write_tones(folder, number, first=0):
    """Writes recordings and FOLDER/manifest.jsonl; speakers and styles alternate."""
    lines = []
    for k in range(first, first + number):
        speaker, style = list(SPEAKERS)[k % 2], ("calm", "glad")[k // 2 % 2]
        write_wav(folder / f"{k}.wav", make_tone(k, 1.0 + 0.2 * (k % 4), SPEAKERS[speaker]))
        fields = {"id": f"tone{k}", "audio": f"{k}.wav", "speaker": speaker, "style": style}
        lines.append(json.dumps(fields) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines))
    return str(folder / "manifest.jsonl")
