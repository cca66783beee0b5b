"""Phones and boards in the report: temperature and frequency over time, energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes

from sb_edge.bench.rows.phone import Phone
from sb_edge.bench.rows.row import Row
from sb_edge.bench.rows.row_tables import ABSENT, series_name
from sb_edge.util.plot import PAGE, caption, dress, inline_svg, label_ends
from sb_edge.util.table import Column, Table


def sensor_plots(rows: Sequence[Row]) -> list[str]:
    """SVG elements for the longest measurement of each device: temperatures, and frequencies with limits."""
    longest: dict[str, tuple[Row, Phone]] = {}
    for row in rows:
        if row.phone is not None:
            best = longest.get(row.machine_id)
            if best is None or row.phone.telemetry[-1].t_ms > best[1].telemetry[-1].t_ms:
                longest[row.machine_id] = row, row.phone
    found = []
    for row, phone in longest.values():
        found += [_temperatures(row, phone), _frequencies(row, phone)]
    return found


def sensor_tables(rows: Sequence[Row]) -> list[Table]:
    """A table of all rows of devices; empty if there are none."""
    measured = [(row, row.phone) for row in rows if row.phone is not None]
    if not measured:
        return []
    columns: dict[Column | str, Callable[[tuple[Row, Phone]], str]] = {
        "model": lambda one: series_name(one[0], rows),
        Column("test", right=False): lambda one: one[0].label,
        Column("context", right=False): lambda one: one[1].depth_source,
        Column("CPUs", right=False): lambda one: (
            ", ".join(map(str, one[1].cpus)) or f"{one[0].n_threads} threads"
        ),
        "first t/s": lambda one: f"{one[0].samples_ts[0]:.2f}",
        "median": lambda one: f"{one[0].median_ts:.2f}",
        "last": lambda one: f"{one[0].samples_ts[-1]:.2f}",
        "hottest": lambda one: ABSENT if one[1].hottest is None else f"{one[1].hottest:.0f} °C",
        "throttled": lambda one: f"{one[1].throttled} of {len(one[1].while_decoding)}",
        "energy": lambda one: _energy(*one),
    }
    notes = [
        "throttled: readings while decoding in which a cluster's limit was below its highest frequency.",
        "energy: from the battery while decoding, for each decoded token; absent on a charger.",
    ]
    return [Table.of(measured, columns, title="Devices", notes=notes)]


def _energy(row: Row, phone: Phone) -> str:
    tokens = row.n_gen * len(row.samples_ns)
    return ABSENT if phone.energy_j is None else f"{phone.energy_j / tokens:.2f} J/token"


def _temperatures(row: Row, phone: Phone) -> str:
    hottest = [max(one.celsius.values(), default=None) for one in phone.telemetry]
    battery = [None if one.battery.temp is None else one.battery.temp / 10 for one in phone.telemetry]
    lines = {"hottest zone": hottest, "battery": battery}
    title, detail = "Temperature, °C", "grey: decoding"
    return _plot(f"temperature-{row.machine_id}", row, phone, title, detail, lines, {})


def _frequencies(row: Row, phone: Phone) -> str:
    lines: dict[str, list[float | None]] = {}
    limits: dict[str, list[float | None]] = {}
    for policy, top in phone.max_khz.items():
        name = f"{top / 1e6:.2f} GHz cores"
        lines[name] = [_ghz(one.khz.get(policy)) for one in phone.telemetry]
        limits[name] = [_ghz(one.khz_limit.get(policy)) for one in phone.telemetry]
    title, detail = "Frequency of the clusters, GHz", "dashed: limit, which throttling lowers; grey: decoding"
    return _plot(f"frequency-{row.machine_id}", row, phone, title, detail, lines, limits)


def _ghz(khz: int | None) -> float | None:
    return None if khz is None else khz / 1e6


def _plot(
    name: str,
    row: Row,
    phone: Phone,
    title: str,
    detail: str,
    lines: dict[str, list[float | None]],
    dashed: dict[str, list[float | None]],
) -> str:
    seconds = [one.t_ms / 1000 for one in phone.telemetry]

    def draw(axes: Axes) -> None:
        top, ends = 0.0, []
        axes.axvspan(
            phone.decode_from_ms / 1000,
            max(seconds[-1], phone.decode_from_ms / 1000 + 0.001),
            color=PAGE.grid,
        )
        for number, (label, values) in enumerate(lines.items()):
            colour = PAGE.series[number % len(PAGE.series)]
            for series, style in ((values, "-"), (dashed.get(label, []), "--")):
                points = [(x, y) for x, y in zip(seconds, series, strict=False) if y is not None]
                if points:
                    axes.plot(
                        *zip(*points, strict=True), color=colour, lw=2 if style == "-" else 1.2, ls=style
                    )
                    top = max(top, *(y for _, y in points))
                    if style == "-":
                        ends.append((points[-1][1], label, colour))
        axes.set_ylim(0, 1.12 * top or 1)
        dress(axes, PAGE, "seconds")
        if ends:
            label_ends(axes, ends)
        caption(
            axes,
            PAGE,
            f"{title}: {row.cpu_info.replace('$', '')}",
            f"{row.model}, {row.label}; {detail}".replace("$", ""),
        )

    return inline_svg(name, draw)
