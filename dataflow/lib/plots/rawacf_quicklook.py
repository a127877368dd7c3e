"""The quick-look of a rawacf file: power over range and time, one picture to see whether the radar hears echoes.

The power is that of lag zero of the main array, in decibels above the noise of the file: its lower quartile over all ranges
and records, which is free of echoes unless these fill three quarters of the file. A record of several beams shows the
brightest of them, and so does a column that several records share; above stands which beams those are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataflow.lib import borealis, checksum, place
from dataflow.lib.borealis import Field, Record
from dataflow.lib.crew import Crew
from dataflow.lib.errors import BadFile, TryLater
from dataflow.lib.names import Kind, Name
from dataflow.lib.plots.axes import amount_text, draw_pauses, experiment_text, span_text, ticks
from dataflow.lib.plots.canvas import BLUE, GREY, INK, Canvas, Scale, coloured, new_canvas, write
from dataflow.lib.plots.samples import PLAUSIBLE_TIMES_S

Floats: TypeAlias = NDArray[np.float32]

SIZE = (1000, 552)
POWER = Scale(0, 40, 10, "lag-zero power over noise (dB)", "no value")

_FIELDS = {
    "station": Field("SO"),
    "experiment_name": Field("SO"),
    "experiment_id": Field("iu"),
    "slice_id": Field("iu"),
    "first_range": Field("iuf"),
    "range_sep": Field("iuf"),
    "beam_nums": Field("iu", 1),
    "sqn_timestamps": Field("f", 1),
    "main_acfs": Field("c", 3),
}
_LEFT, _WIDTH = 66, 800
_RIGHT = _LEFT + _WIDTH
_BEAMS_TOP, _BEAMS_BOTTOM = 62, 112
_TOP, _BOTTOM = 126, 481
_TICKS = 9
_RANGE_STEPS_KM = (100, 200, 500, 1000, 2000, 5000)
_RANGE_TICKS = 9
_BEAM_MAX = 255


@dataclass(frozen=True, slots=True)
class Look:
    """What is drawn: ``power`` (records, ranges), linear, of the brightest beam, and ``beams`` (records, numbers), a mask.

    It is an axis of records: each counts as one (``sequences``).
    """

    first: dict[str, Any]
    power: Floats
    beams: NDArray[np.bool_]
    sequences: NDArray[np.int64]
    began_s: NDArray[np.float64]
    ended_s: NDArray[np.float64]

    @property
    def total_sequences(self) -> int:
        """The number of records."""
        return len(self.sequences)


def quicklook(source: Path, name: Name, target: Path, crew: Crew) -> None:
    """Draw the rawacf file ``source``, whose name is ``name``, into the PNG ``target``, replaced if it exists.

    One of a crew reads and draws it: what a damaged file does to a library ends that worker and not the caller.

    Raises:
        BadFile: not a rawacf of Borealis v1, or one that cannot be read; the record and the field are named.
        TryLater: file unreadable, folder full or not writable, library missing.
    """
    if name.kind is not Kind.RAWACF:
        raise BadFile("not a rawacf", f"{name.text} is not a rawacf file: it has no quick-look")
    part = place.part_of(target)
    try:
        next(crew([(draw, (source, part))]))
        part.replace(target)
        checksum.sync_folder(target.parent)
    except OSError as error:
        raise TryLater(f"{target} cannot be written ({error.strerror}); the file is drawn again later") from error
    finally:
        part.unlink(missing_ok=True)


def draw(source: Path, part: Path) -> None:
    """Read a rawacf file and write its quick-look, synced, to ``part``; raises as ``look`` and ``canvas.write``."""
    write(picture(look(source)), part)


def look(source: Path) -> Look:
    """Read what is drawn; memory is that of one record and of one value for each record and range.

    Raises:
        BadFile: not a file of Borealis v1, or a record cannot be read.
        TryLater: the system would not let it be read.
    """
    powers, beams, times = [], [], []
    first: dict[str, Any] = {}
    for record in borealis.stream(source, _FIELDS):
        first = first or {key: value for key, value in record.values.items() if key != "main_acfs"}
        _check(source, record)
        times_s = record.values["sqn_timestamps"]
        powers.append(np.fmax.reduce(np.abs(record.values["main_acfs"][:, :, 0]), axis=0))
        beams.append(record.values["beam_nums"])
        times.append((times_s[0], times_s[-1]))
    began_s, ended_s = np.array(times, np.float64).T
    return Look(first, _padded(powers), _masks(beams), np.ones(len(powers), np.int64), began_s, ended_s)


def _check(source: Path, record: Record) -> None:
    """Refuse what cannot be drawn or would take memory without end."""
    values = record.values
    earliest_s, latest_s = PLAUSIBLE_TIMES_S
    for field, sound in (
        ("main_acfs", values["main_acfs"].size > 0),
        ("beam_nums", values["beam_nums"].max(initial=0) <= _BEAM_MAX),
        ("sqn_timestamps", len(values["sqn_timestamps"]) > 0),
        ("sqn_timestamps", bool(((values["sqn_timestamps"] > earliest_s) & (values["sqn_timestamps"] < latest_s)).all())),
        ("range_sep", values["range_sep"] > 0),
    ):
        if not sound:
            raise BadFile(
                "damaged record", f"{source}: record {record.name}, field {field}: {values[field]} is not what a radar writes"
            )


def picture(found: Look) -> Image.Image:
    """The quick-look, ``SIZE`` pixels."""
    canvas = new_canvas(SIZE)
    first = found.first
    station, experiment = (_text(first[key]) for key in ("station", "experiment_name"))
    canvas.text(_LEFT, 10, f"{station.upper()}  range-time power", size=17, bold=True)
    canvas.text(_LEFT, 36, f"{span_text(found)},  {amount_text(len(found.power), 'record')}", fill=GREY)
    title = experiment_text(experiment, int(first["experiment_id"]), int(first["slice_id"]))
    canvas.text(SIZE[0] - 14, 12, title, size=14, anchor="ra")
    _draw_beams(canvas, found)
    shown = _columns(found.power)
    canvas.paste(_heat_map(shown, _noise(found.power)), _LEFT, _TOP)
    draw_pauses(canvas, found, _LEFT, _WIDTH, (_BEAMS_TOP, _BOTTOM))
    _draw_axes(canvas, found)
    canvas.colour_bar((_RIGHT + 18, _TOP, _RIGHT + 34, _BOTTOM), POWER, with_missing=bool(np.isnan(shown).any()))
    return canvas.image


def _noise(power: Floats) -> float:
    heard = power[power > 0]
    return float(np.quantile(heard, 0.25)) if heard.size else 1.0


def _heat_map(shown: Floats, noise: float) -> Image.Image:
    """Power (columns, ranges) in decibels above the noise, far ranges at the top."""
    with np.errstate(divide="ignore"):
        over_noise_db = 10 * np.log10(shown / noise)
    return coloured(over_noise_db.T[::-1], POWER).resize((_WIDTH, _BOTTOM - _TOP), Image.Resampling.NEAREST)


def _columns(values: Floats) -> Floats:
    """Values (records, ...) shared out among the columns of the picture, the highest of those that share one."""
    starts = np.arange(_WIDTH) * len(values) // _WIDTH
    return np.asarray(np.fmax.reduceat(values, starts, axis=0), np.float32)


def _draw_beams(canvas: Canvas, found: Look) -> None:
    numbers = found.beams.shape[1]
    used = _columns(found.beams.astype(np.float32)).T[::-1] > 0
    pixels = np.where(used[..., None], np.array(list(bytes.fromhex(BLUE[1:])), np.uint8), np.uint8(255))
    image = Image.fromarray(pixels).resize((_WIDTH, _BEAMS_BOTTOM - _BEAMS_TOP), Image.Resampling.NEAREST)
    canvas.paste(image, _LEFT, _BEAMS_TOP)
    canvas.box((_LEFT - 1, _BEAMS_TOP - 1, _RIGHT + 1, _BEAMS_BOTTOM + 1), outline=INK)
    height = (_BEAMS_BOTTOM - _BEAMS_TOP) / numbers
    for number in sorted({0, numbers - 1}):
        canvas.text(_LEFT - 8, _BEAMS_BOTTOM - (number + 0.5) * height, str(number), anchor="rm")
    canvas.upright(18, (_BEAMS_TOP + _BEAMS_BOTTOM) / 2, "beam")


def _draw_axes(canvas: Canvas, found: Look) -> None:
    canvas.box((_LEFT - 1, _TOP - 1, _RIGHT + 1, _BOTTOM + 1), outline=INK)
    for range_km, y in _range_ticks(float(found.first["first_range"]), float(found.first["range_sep"]), found.power.shape[1]):
        canvas.box((_LEFT - 5, y - 0.5, _LEFT, y + 0.5), fill=INK)
        canvas.text(_LEFT - 8, y, str(range_km), anchor="rm")
    canvas.upright(18, (_TOP + _BOTTOM) / 2, "range (km)")
    for share, time, record in ticks(found, _TICKS):
        x = _LEFT + share * _WIDTH
        canvas.box((x - 0.5, _BOTTOM, x + 0.5, _BOTTOM + 6), fill=INK)
        canvas.text(x, _BOTTOM + 10, time, anchor="ma", size=13)
        canvas.text(x, _BOTTOM + 28, f"{record:,}", anchor="ma", fill=GREY)
    canvas.text(_RIGHT + 30, _BOTTOM + 10, "UTC", size=13)
    canvas.text(_RIGHT + 30, _BOTTOM + 28, "record", fill=GREY)
    reduction = "each pixel is the brightest of its beams and records; noise: the lower quartile of all power"
    canvas.text(_LEFT, SIZE[1] - 22, reduction, size=11, fill=GREY)


def _range_ticks(first_km: float, step_km: float, ranges: int) -> list[tuple[int, float]]:
    """Round ranges and where they are; a range is in the middle of its gate."""
    last_km = first_km + step_km * (ranges - 1)
    apart_km = next((each for each in _RANGE_STEPS_KM if (last_km - first_km) / each < _RANGE_TICKS), _RANGE_STEPS_KM[-1])
    height = (_BOTTOM - _TOP) / ranges
    wanted_km = np.arange(np.ceil(first_km / apart_km) * apart_km, last_km + 1, apart_km)
    return [(int(each), float(_BOTTOM - ((each - first_km) / step_km + 0.5) * height)) for each in wanted_km]


def _padded(powers: list[Floats]) -> Floats:
    """(records, ranges); records of fewer ranges end with NaN."""
    result = np.full((len(powers), max(len(each) for each in powers)), np.nan, np.float32)
    for row, each in zip(result, powers, strict=True):
        row[: len(each)] = each
    return result


def _masks(beams: list[NDArray[np.integer[Any]]]) -> NDArray[np.bool_]:
    """(records, beam numbers): whether the record has that beam."""
    result = np.zeros((len(beams), max(16, *(int(each.max(initial=0)) + 1 for each in beams))), bool)
    for row, each in zip(result, beams, strict=True):
        row[each] = True
    return result


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
