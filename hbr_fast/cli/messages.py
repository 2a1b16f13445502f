"""Messages of the library in the words of the command line: `--nonpositive shift` for `nonpositive="shift"`.

The library cannot know who calls it. Its messages name arguments, and these have the names of the options.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

_VALUE = re.compile(r'(?<![\w-])(\w+)="([\w-]+)"')
_TRUE = re.compile(r"(?<![\w-])(\w+)=True\b")
_SUBJECT = re.compile(r"(^|[:;,] )(\w+)(?= (?:must|cannot) be )")
_REFUSED = re.compile(r"takes no option '([\w-]+)': it takes ([\w, -]+)$")
_SIZES = re.compile(r"split\.at_size\(224\)(?:, Loader\(size=224\))?(?: or --set size=224)?")


def command_words(line: str, options: Collection[str]) -> str:
    """A message for someone who gave these options."""

    def option(name: str) -> str:
        return f"--{name.replace('_', '-')}"

    def known(name: str, words: str, otherwise: str) -> str:
        return words if option(name) in options else otherwise

    line = _VALUE.sub(lambda found: known(found[1], f"{option(found[1])} {found[2]}", found[0]), line)
    line = _TRUE.sub(lambda found: known(found[1], option(found[1]), found[0]), line)
    line = _SUBJECT.sub(lambda found: found[1] + known(found[2], option(found[2]), found[2]), line)
    line = _REFUSED.sub(lambda found: _refused(option(found[1]), map(option, found[2].split(", ")), options), line)
    if "--pool" in options:
        line = re.sub(r": give pool$", ": give --pool FILE", line)
        others = ", --oversamplers random smote does without" if "--oversamplers" in options else ""
        line = line.replace("and none was given", f"and none was given: --pool FILE gives one{others}")
    if "--set" in options:
        line = _SIZES.sub("--set size=224", line)
    return line


def _refused(option: str, taken: Iterable[str], options: Collection[str]) -> str:
    return f"does not take {option}, but {', '.join(one for one in taken if one in options)}"
