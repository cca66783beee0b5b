"""Run zig's clang with a CPU in clang's words: `python zig.py ZIG cc|c++ ARGUMENTS...`.

zig knows no Arm `-march`. The features go to the files that ask for them (ggml-cpu) alone; all others are
for any ARMv8, so that a program can refuse an older CPU before it executes an illegal instruction.
"""

from __future__ import annotations

import os
import re
import sys

TARGET = ("-target", "aarch64-linux-musl", "-mcpu=generic+v8a")
_MARCH = re.compile(r"-march=armv8(\.\d)?-a((?:\+\w+)*)")
_FEATURES = {"dotprod": "dotprod", "fp16": "fullfp16", "i8mm": "i8mm"}


def translate(arguments: list[str]) -> list[str]:
    """Arguments with `-march` in terms that zig passes on to clang.

    Raises:
        KeyError: a feature that none of the variants has.
    """
    translated: list[str] = []
    for argument in arguments:
        march = _MARCH.fullmatch(argument)
        if march is None:
            translated.append(argument)
            continue
        names = [_FEATURES[feature] for feature in march[2].split("+") if feature]
        for name in [*([f"v8{march[1]}a"] if march[1] else []), *names]:
            translated += ["-Xclang", "-target-feature", "-Xclang", f"+{name}"]
    return translated


if __name__ == "__main__":
    zig, driver, *rest = sys.argv[1:]
    os.execv(zig, [zig, driver, *TARGET, *translate(rest)])
