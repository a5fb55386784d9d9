"""A captured terminal screen as SVG.

    tmux new-session -d -s d -x 130 -y 40 "two-tasks --dashboard"
    tmux capture-pane -t d -p -e | python3 terminal_to_svg.py > dashboard.svg
"""

import re
import sys
from html import escape

WIDTH, HEIGHT, SIZE = 7.8, 16.0, 13
BACK, TEXT = "#16161d", "#dcdcdc"
BASE = ["#000000", "#cc5555", "#55aa55", "#ccaa44", "#5588cc", "#aa66bb", "#44aaaa", "#cccccc"]
BRIGHT = ["#777777", "#ff7777", "#77dd77", "#ffdd66", "#77aaff", "#dd88ee", "#66dddd", "#ffffff"]


def indexed(n):
    """One of the 256 colours of a terminal."""
    if n < 16:
        return (BASE + BRIGHT)[n]
    if n > 231:
        return "#" + f"{8 + 10 * (n - 232):02x}" * 3
    n -= 16
    return "#" + "".join(f"{0 if v == 0 else 55 + 40 * v:02x}" for v in (n // 36, n // 6 % 6, n % 6))


def style(state, codes):
    """The state after the codes of one escape sequence."""
    codes = [int(c or 0) for c in codes.split(";")]
    while codes:
        code = codes.pop(0)
        if code == 0:
            state = {}
        elif code == 1:
            state = {**state, "bold": True}
        elif code == 7:
            state = {**state, "reverse": True}
        elif code in (38, 48):
            key = "fore" if code == 38 else "back"
            if codes.pop(0) == 5:
                state = {**state, key: indexed(codes.pop(0))}
            else:
                state = {**state, key: "#" + "".join(f"{codes.pop(0):02x}" for _ in range(3))}
        elif code in (39, 49):
            state = {k: v for k, v in state.items() if k != ("fore" if code == 39 else "back")}
        elif 30 <= code < 38 or 90 <= code < 98:
            state = {**state, "fore": (BASE if code < 90 else BRIGHT)[code % 10]}
        elif 40 <= code < 48 or 100 <= code < 108:
            state = {**state, "back": (BASE if code < 100 else BRIGHT)[code % 10]}
    return state


def main():
    lines = sys.stdin.read().rstrip("\n").split("\n")
    out, widest, state = [], 0, {}
    for row, line in enumerate(lines):
        column = 0
        for codes, text in re.findall(r"(?:\x1b\[([\d;]*)m)|([^\x1b]+)", re.sub(r"\x1b\[[\d;?]*[A-Zac-ln-z]|\x1b\(B|[\x0e\x0f]", "", line)):
            if not text:
                state = style(state, codes)
                continue
            fore, back = state.get("fore", TEXT), state.get("back")
            if state.get("reverse"):
                fore, back = back or BACK, fore
            x, y, length = column * WIDTH, row * HEIGHT, len(text) * WIDTH
            if back:
                out.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{length:.1f}" height="{HEIGHT}" fill="{back}"/>')
            bold = ' font-weight="bold"' if state.get("bold") else ""
            # Each word where it belongs: fonts differ in width, and spaces do not stretch.
            for word in re.finditer(r"\S+", text):
                x, length = (column + word.start()) * WIDTH, len(word[0]) * WIDTH
                out.append(
                    f'<text x="{x:.1f}" y="{y + 12.5:.1f}" fill="{fore}"{bold} textLength="{length:.1f}" '
                    f'lengthAdjust="spacingAndGlyphs">{escape(word[0])}</text>'
                )
            column += len(text)
        widest = max(widest, column)
    width, height = widest * WIDTH + 16, len(lines) * HEIGHT + 16
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="-8 -8 {width:.0f} {height:.0f}" font-family="monospace" font-size="{SIZE}">'
        f'<rect x="-8" y="-8" width="100%" height="100%" fill="{BACK}"/>'
    )
    print("\n".join(out))
    print("</svg>")


main()
