"""The page around the sections: one HTML file with its style sheet, without scripts or external files."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

_LIGHT = ("#2a6fd6", "#d9690b", "#16905a", "#c9352b", "#7a4fc9", "#8a6252", "#d13f8b", "#5d6670", "#8f8f12", "#068ea3")
_DARK = ("#6fa8ff", "#ffa25c", "#4fcf95", "#ff8a80", "#bb9cf5", "#c9a79a", "#f790c4", "#b4bcc6", "#d6d64e", "#4fd0e3")


def _colors(colors: Sequence[str]) -> str:
    return "".join(f"--c{i}:{color};" for i, color in enumerate(colors))


_STYLE = (
    """
:root{color-scheme:light dark;--paper:#fff;--card:#f6f7f9;--ink:#1f2328;--faint:#59636e;--rule:#d9dee4;LIGHT}
@media(prefers-color-scheme:dark){:root{--paper:#14171b;--card:#1d2126;--ink:#e6e9ed;--faint:#9aa4af;--rule:#343b43;DARK}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1400px;padding:16px;background:var(--paper);color:var(--ink);
 font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;margin:.2em 0}h2{font-size:1.2rem;margin:1.8em 0 .5em;
 border-bottom:1px solid var(--rule);padding-bottom:.2em}
h3{font-size:.95rem;margin:0 0 .4em}p{margin:.4em 0}.faint,figcaption{color:var(--faint);font-size:.86rem}
nav a{display:inline-block;margin-right:.9em}a{color:var(--c0)}
.cards{display:grid;gap:14px;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr))}
.card,figure{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:12px;min-width:0}
.wide{overflow-x:auto}figure svg,.card>svg{display:block;width:100%;height:auto;max-width:560px}
figure img{display:block;max-width:none;border-radius:4px}
figure .wide img{background:#fff}
table{border-collapse:collapse;font-size:.9rem}table{overflow-wrap:normal}

td,th{padding:3px 10px 3px 0;text-align:left;vertical-align:top}
th{color:var(--faint);font-weight:600;white-space:nowrap}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td code{font-size:.85em}tbody tr+tr td{border-top:1px solid var(--rule)}
.bar{display:inline-block;height:.7em;background:currentColor;border-radius:2px;min-width:1px}
.track{display:inline-block;width:110px;background:var(--rule);border-radius:2px;line-height:0}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 14px;margin:.3em 0;padding:0;font-size:.86rem}
.legend svg{width:12px;height:12px;margin-right:5px;vertical-align:-1px}
details{margin:.6em 0}summary{cursor:pointer}
.row{grid-column:1/-1}
.neighbors{display:grid;gap:8px 24px;grid-template-columns:repeat(auto-fit,minmax(min(100%,630px),1fr))}
.neighbors div{display:flex;gap:6px;overflow-x:auto;align-items:flex-start}
.neighbors span{flex:none;width:64px;font-size:.7rem;line-height:1.25;color:var(--faint);text-align:center}
.neighbors img{width:64px;height:64px;image-rendering:pixelated;border:3px solid transparent;border-radius:5px}
.neighbors .same img{border-color:var(--c2)}.neighbors .other img{border-color:var(--c3)}
.neighbors .query{border-right:1px solid var(--rule);width:72px;padding-right:7px}
svg text{fill:var(--faint);font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
svg text.in{fill:var(--ink);font-size:11px}
.grid{stroke:var(--rule);stroke-width:1}
.level{stroke:currentColor;stroke-width:1.3;stroke-dasharray:5 4;fill:none;color:var(--faint)}
.line{fill:none;stroke:currentColor;stroke-width:1.8;stroke-linejoin:round}.band{fill:currentColor;fill-opacity:.16}
.dot{fill:currentColor;fill-opacity:.85}.heat{fill:currentColor;stroke:var(--rule);stroke-width:.5}.none{color:var(--faint)}
COLORS
""".replace("LIGHT", _colors(_LIGHT))
    .replace("DARK", _colors(_DARK))
    .replace("COLORS", "".join(f".c{i},.level.c{i}{{color:var(--c{i})}}" for i in range(len(_LIGHT))))
)


def document(title: str, body: str) -> str:
    """Returns a complete page; `body` is HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        # Blocks all external content, even if a run's text slipped HTML into the page.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none';style-src 'unsafe-inline';img-src data:\">"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def text(value: object) -> str:
    """Escapes anything for HTML."""
    return html.escape(str(value))


def picture(png: bytes, alt: str) -> str:
    """Returns an image that is embedded in the page."""
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{html.escape(alt)}">'


def figure(title: str, inside: str, caption: str = "", *, whole_row: bool = False) -> str:
    """Returns a titled card; `inside` and `caption` are HTML. With `whole_row` it takes the width of the page."""
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure{' class=row' if whole_row else ''}><h3>{text(title)}</h3>{inside}{below}</figure>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """Returns a table that scrolls sideways if it is too wide.

    Args:
      header: The names of the columns, plain text.
      rows: The cells, HTML.
      numbers: The columns to align right.
    """
    kinds = ['class="n"' if i in numbers else "" for i in range(len(header))]
    head = "".join(f"<th {kind}>{text(name)}</th>" for name, kind in zip(header, kinds))
    body = "".join(f"<tr>{''.join(f'<td {kind}>{cell}</td>' for cell, kind in zip(row, kinds))}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def bar(share: float, color: int = 0) -> str:
    """Returns a bar whose length shows a share in [0, 1]."""
    return f'<span class="track"><span class="bar c{color}" style="width:{110 * share:.0f}px"></span></span>'
