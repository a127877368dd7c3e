"""A made-up ionosphere that behaves like one, and what the antennas and correlators of a radar make of it.

Three bands of scatter lie one behind the other: the E region near the radar, the F region, and the ground beyond. They move
and flicker over minutes, bend over the beams, and show one flow of plasma, seen by each beam at its own angle. Correlations
and antenna samples are made from the same echoes, so beam-forming one gives the power of the other.

Powers are those of Borealis in its own units, before ``data_normalization_factor``: 1 after conversion to DMAP is about
the noise of the main array. Everything is drawn from the generator that is handed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dataflow.demo.radar import FIRST_RANGE_KM, PULSES, RANGE_STEP_KM, SAMPLE_US, TAU_US, FaultKind

Floats: TypeAlias = NDArray[np.floating[Any]]
Complexes: TypeAlias = NDArray[np.complex64]

LIGHT_M_S = 299_792_458.0
ANTENNA_NOISE_POWER = 5_800.0
TRANSMIT_AMPLITUDE = 7.5e4
FIRST_RANGE_SAMPLE = FIRST_RANGE_KM // RANGE_STEP_KM
PULSE_SAMPLES = np.array(PULSES) * TAU_US // SAMPLE_US
"""The samples in which the transmitter is on; the receiver then hears nothing else."""


@dataclass(frozen=True, slots=True)
class Scene:
    """The bands of scatter over one radar. Every array is shaped (bands, 1, 1), to be spread over beams and ranges."""

    centre_gate: Floats
    half_width_gates: Floats
    snr_db: Floats
    phase: Floats
    patch_period_s: Floats
    spectral_width_m_s: Floats
    elevation_deg: Floats
    share_of_flow: Floats
    flow_m_s: float
    flow_azimuth_deg: float


@dataclass(frozen=True, slots=True)
class Echoes:
    """What one averaging period scatters back, each array shaped (beams, ranges).

    ``snr`` is power over the noise of the main array after beam-forming; ``noise_power`` that of a single antenna.
    """

    snr: Floats
    velocity_m_s: Floats
    spectral_width_m_s: Floats
    elevation_rad: Floats
    azimuth_rad: Floats
    noise_power: float


def draw_scene(rng: np.random.Generator) -> Scene:
    """The scatter over one radar; the same generator state gives the same scene."""

    def around(middle: tuple[float, float, float], spread: float) -> Floats:
        return (np.array(middle) + spread * rng.uniform(-1, 1, 3)).reshape(3, 1, 1)

    return Scene(
        centre_gate=around((6, 27, 50), 2.5),
        half_width_gates=around((3, 8, 7), 0.8),
        snr_db=around((18, 27, 31), 3),
        phase=around((0, 0, 0), np.pi),
        patch_period_s=around((240, 600, 1500), 60),
        spectral_width_m_s=around((60, 180, 12), 8),
        elevation_deg=around((7, 22, 15), 2),
        share_of_flow=np.array((0.6, 1.0, 0.02)).reshape(3, 1, 1),
        flow_m_s=float(rng.uniform(350, 800)),
        flow_azimuth_deg=float(rng.uniform(-180, 180)),
    )


def echoes(scene: Scene, time_s: float, azimuths_deg: Floats, ranges: int, rng: np.random.Generator) -> Echoes:
    """The echoes of one averaging period at ``time_s`` (Unix time) from the beams at ``azimuths_deg``, shaped (beams,)."""
    azimuth = np.asarray(azimuths_deg, np.float64).reshape(-1, 1)
    gate = np.arange(ranges, dtype=np.float64)
    centre = scene.centre_gate + 4 * np.sin(2 * np.pi * time_s / 10_800 + scene.phase) + 5 * (azimuth / 25) ** 2
    patches = (0.5 + 0.5 * np.sin(2 * np.pi * (time_s / scene.patch_period_s + gate / 18 + azimuth / 40) + scene.phase)) ** 2
    snr = 10 ** (scene.snr_db / 10) * np.exp(-(((gate - centre) / scene.half_width_gates) ** 2)) * patches
    strongest = np.argmax(snr, axis=0, keepdims=True)

    def of_strongest(values: Floats) -> Floats:
        chosen: Floats = np.take_along_axis(np.broadcast_to(values, snr.shape), strongest, axis=0)[0]
        return chosen

    towards = np.cos(np.deg2rad(azimuth - scene.flow_azimuth_deg))
    return Echoes(
        snr=snr.sum(axis=0) * rng.lognormal(0, 0.35, snr.shape[1:]),
        velocity_m_s=of_strongest(scene.share_of_flow * scene.flow_m_s * towards) + rng.normal(0, 8, snr.shape[1:]),
        spectral_width_m_s=of_strongest(scene.spectral_width_m_s) * rng.lognormal(0, 0.15, snr.shape[1:]),
        elevation_rad=np.deg2rad(of_strongest(scene.elevation_deg)),
        azimuth_rad=np.deg2rad(azimuth),
        noise_power=ANTENNA_NOISE_POWER * 10 ** float(0.15 * np.sin(2 * np.pi * time_s / 86_400) + 0.03 * rng.normal()),
    )


def steering(positions_m: Floats, azimuth_rad: Floats, elevation_rad: Floats | float, frequency_khz: float) -> Complexes:
    """Phase with which a plane wave arrives at each antenna, shaped (antennas, *direction).

    ``positions_m`` (antennas, 3): x along the array, y along boresight, z up. The azimuth is that of a beam of a linear
    array, which is a cone about x: x sees its sine whatever the elevation.
    """
    u, w = np.sin(azimuth_rad), np.sin(elevation_rad)
    v = np.sqrt(np.maximum(0, 1 - u**2 - w**2))
    path_m = np.stack(np.broadcast_arrays(u, v, w))
    wave_number = 2 * np.pi * frequency_khz * 1e3 / LIGHT_M_S
    return np.exp(1j * wave_number * np.tensordot(positions_m, path_m, axes=1)).astype(np.complex64)


def correlations(
    found: Echoes,
    lag_pulses: NDArray[np.integer[Any]],
    main_m: Floats,
    intf_m: Floats,
    frequency_khz: float,
    sequences: int,
    rng: np.random.Generator,
    *,
    with_interferometer: bool = True,
) -> dict[str, Complexes]:
    """``main_acfs`` and, with the interferometer, ``intf_acfs`` and ``xcfs``: each (beams, ranges, lags), complex64.

    Over lags the signal turns by its Doppler shift and fades exponentially with its spectral width (as fitted by FITACF);
    each estimate scatters as the mean of ``sequences`` products does. Where a sample coincides with a transmit pulse,
    the transmitter is what is correlated, as in real data. ``xcfs`` is the main array times the conjugate of the
    interferometer, whose phase is that of the echo's elevation.

    Args:
        found: the echoes.
        lag_pulses: (lags, 2), the two pulses of each lag, in units of tau.
        main_m: (antennas, 3), positions of the main array.
        intf_m: the same of the interferometer.
        frequency_khz: of the transmitter.
        sequences: how many products are averaged.
        rng: where the noise comes from.
        with_interferometer: whether the second and third of the three are made.
    """
    lag_s = (lag_pulses[:, 1] - lag_pulses[:, 0]) * TAU_US / 1e6
    wavelength_m = LIGHT_M_S / (frequency_khz * 1e3)
    per_second = (4j * found.velocity_m_s - 2 * found.spectral_width_m_s) * np.pi / wavelength_m
    turning = np.exp(per_second[..., None] * lag_s)
    overheard = _transmitting(found.snr.shape[1])[:, np.searchsorted(PULSES, lag_pulses)]

    def heard(antennas: int) -> tuple[Floats, Floats]:
        noise = antennas * found.noise_power
        signal = found.snr * found.noise_power / len(main_m) * antennas**2
        return signal, (signal + noise)[..., None, None] + overheard * (antennas * TRANSMIT_AMPLITUDE) ** 2

    def estimate(mean: NDArray[np.complexfloating[Any, Any]], variance: Floats) -> NDArray[np.complexfloating[Any, Any]]:
        return mean + np.sqrt(variance / sequences) * _normal(rng, mean.shape)

    def autocorrelation(signal: Floats, power: Floats) -> Complexes:
        result = estimate(signal[..., None] * turning, power[..., 0] * power[..., 1])
        at_zero = lag_s == 0
        at_zero_power = power[..., at_zero, 0]
        result[..., at_zero] = np.abs(at_zero_power * (1 + _normal(rng, at_zero_power.shape).real / np.sqrt(sequences / 2)))
        return result.astype(np.complex64)

    main_signal, main_power = heard(len(main_m))
    result = {"main_acfs": autocorrelation(main_signal, main_power)}
    if with_interferometer:
        intf_signal, intf_power = heard(len(intf_m))
        result["intf_acfs"] = autocorrelation(intf_signal, intf_power)
        apart_m = main_m.mean(axis=0, keepdims=True) - intf_m.mean(axis=0, keepdims=True)
        turned = steering(apart_m, found.azimuth_rad, found.elevation_rad, frequency_khz)[0]
        cross = np.sqrt(main_signal * intf_signal) * turned
        result["xcfs"] = estimate(cross[..., None] * turning, main_power[..., 0] * intf_power[..., 1]).astype(np.complex64)
    return result


def voltages(
    found: Echoes,
    positions_m: Floats,
    main_antennas: int,
    frequency_khz: float,
    sequences: int,
    samples: int,
    rng: np.random.Generator,
) -> Complexes:
    """Samples of every antenna, (antennas, sequences, samples), complex64.

    Each pulse of a sequence brings the echoes of all ranges once more, a little turned and a little decorrelated; each
    sequence meets fresh scatterers. While a pulse is sent, every antenna is saturated.
    """
    shape = (len(positions_m), sequences, samples)
    result = sqrt(found.noise_power) * _normal(rng, shape)
    wavelength_m = LIGHT_M_S / (frequency_khz * 1e3)
    gaps_s = np.diff(PULSES, prepend=0) * TAU_US / 1e6
    for beam in range(len(found.snr)):
        arriving = steering(positions_m, found.azimuth_rad[beam], found.elevation_rad[beam], frequency_khz)
        arriving *= np.sqrt(found.snr[beam] * found.noise_power / main_antennas).astype(np.float32)
        scatterers = _normal(rng, (sequences, arriving.shape[1]))
        for first, gap_s in zip(PULSE_SAMPLES + FIRST_RANGE_SAMPLE, gaps_s, strict=True):
            kept = np.exp(-2 * np.pi * found.spectral_width_m_s[beam] * gap_s / wavelength_m)
            fresh = np.sqrt(1 - kept**2) * _normal(rng, scatterers.shape)
            scatterers = kept * scatterers * np.exp(4j * np.pi * found.velocity_m_s[beam] * gap_s / wavelength_m) + fresh
            heard = max(0, min(arriving.shape[1], samples - first))
            result[..., first : first + heard] += arriving[:, None, :heard] * scatterers[:, :heard]
    sending = PULSE_SAMPLES[samples > PULSE_SAMPLES]
    result[..., sending] = TRANSMIT_AMPLITUDE * (1 + 0.05 * _normal(rng, (len(positions_m), sequences, len(sending))))
    return result


def spoil(samples: Complexes, kind: FaultKind, progress: float, rng: np.random.Generator) -> None:
    """Change the (sequences, samples) of one antenna, in place, as the fault would; ``progress`` is 0 to 1 over the block."""
    if kind is FaultKind.DEAD:
        samples[...] = 0.02 * sqrt(ANTENNA_NOISE_POWER) * _normal(rng, samples.shape)
    elif kind is FaultKind.NOISY:
        samples += 10 * sqrt(ANTENNA_NOISE_POWER) * _normal(rng, samples.shape)
    else:
        samples *= np.complex64((1 - 0.95 * progress) * np.exp(2j * np.pi * 1.5 * progress))


def _transmitting(ranges: int) -> NDArray[np.bool_]:
    """Whether the transmitter is on while range r is heard after pulse p, (ranges, pulses)."""
    return np.isin(FIRST_RANGE_SAMPLE + np.arange(ranges)[:, None] + PULSE_SAMPLES, PULSE_SAMPLES)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Complexes:
    """Complex normal noise of unit power."""
    parts = rng.standard_normal((*shape, 2), dtype=np.float32) * np.float32(np.sqrt(0.5))
    noise: Complexes = parts.view(np.complex64)[..., 0]
    return noise
