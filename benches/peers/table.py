"""Rows of the result, as text and as a plot."""

from dataclasses import dataclass
from html import escape


@dataclass
class Reach:
    """What a ratio must be; `None` when it is only shown."""

    least: float | None


def at_least(ratio):
    return Reach(ratio)


def shown():
    return Reach(None)


@dataclass
class Row:
    """One figure beside another one of the same run; the ratio is what counts."""

    name: str
    value: float
    unit: str
    other: str
    base: float
    reach: Reach
    # Where smaller is better, the ratio is the other figure by ours.
    smaller: bool = False
    note: str = ""
    missing: bool = False

    @classmethod
    def absent(cls, name, why):
        return cls(name, 0.0, "", "", 0.0, shown(), note=why, missing=True)

    @classmethod
    def limit(cls, name, value, unit, most, note=""):
        """A figure that must be below a fixed one."""
        return cls(name, value, unit, "limit", most, at_least(1.0), smaller=True, note=note)

    @property
    def ratio(self):
        over, under = (self.base, self.value) if self.smaller else (self.value, self.base)
        return over / under if under else float("inf")

    @property
    def verdict(self):
        if self.missing:
            return "not measured"
        if self.reach.least is None:
            return "shown"
        return "reached" if self.ratio >= self.reach.least else "NOT REACHED"


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def as_text(rows):
    head = ("row", "figure", "compared with", "its figure", "ratio", "to reach", "verdict", "note")
    lines = [head]
    for row in rows:
        if row.missing:
            lines.append((row.name, "-", "-", "-", "-", "-", row.verdict, row.note))
            continue
        least = row.reach.least
        lines.append(
            (
                row.name,
                f"{number(row.value)} {row.unit}",
                row.other,
                f"{number(row.base)} {row.unit}",
                f"{row.ratio:.2f}",
                "-" if least is None else f"{least:.2f}",
                row.verdict,
                row.note,
            )
        )
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    drawn = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    drawn.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(drawn) + "\n"


def as_svg(title, groups):
    """Horizontal bars, one group below the other, each with a scale of its own."""
    left, width, bar, gap = 300, 420, 18, 6
    drawn, y = [], 44
    for name, values in groups:
        y += 20
        drawn.append(f'<text x="10" y="{y}" font-weight="bold">{escape(name)}</text>')
        y += 10
        most = max(values.values(), default=0) or 1
        for label, value in sorted(values.items(), key=lambda pair: -pair[1]):
            colour = "#c2410c" if label.startswith("snapgate") else "#64748b"
            length = max(1, value / most * width)
            drawn.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(label)}</text>')
            drawn.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar}" fill="{colour}"/>')
            drawn.append(f'<text x="{left + length + 6:.1f}" y="{y + 13}">{number(value)}</text>')
            y += bar + gap
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="840" height="{y + 20}" '
        f'font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n'
        f'<text x="10" y="26" font-size="16">{escape(title)}</text>\n'
    )
    return head + "\n".join(drawn) + "\n</svg>\n"
