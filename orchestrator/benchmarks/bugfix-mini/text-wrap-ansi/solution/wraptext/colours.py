"""Colours that are on at a line's end are switched off there and on again in the next line."""

import re

CODE = re.compile(r"\x1b\[([0-9;]*)m")
OFF = "\x1b[0m"


def standing_alone(lines: list[str]) -> list[str]:
    """The lines, each of which starts and ends with nothing switched on.

    Codes are not understood, only repeated: all since the last one that switched everything off.
    """
    done, on = [], ""
    for line in lines:
        before = on
        for code in CODE.finditer(line):
            numbers = code[1].split(";")
            on = "" if not any(number.strip("0") for number in numbers) else on + code[0]
        # A line nothing can be seen of needs no colours.
        done.append(before + line + (OFF if on else "") if CODE.sub("", line) else "")
    return done
