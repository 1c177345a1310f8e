"""constraints.txt: the versions that were tested, and the sha256 of each of their files. What install.py holds pip to."""

import re
from pathlib import Path


def torch_in(text: str) -> str:
    """The requirement on torch that constraints.txt or pyproject.toml states."""
    found = re.search(r"^\W*(torch[=><][^\"\s]*)", text, re.MULTILINE)
    assert found, "both name torch"
    return found[1]


class Constraints:
    """The text of a constraints.txt; without `hashed`, its versions only."""

    def __init__(self, text: str, hashed: bool = True) -> None:
        lines = text.replace("\\\n", " ").splitlines()
        self.hashed = hashed
        self.pins = [line.split() for line in lines if "==" in line and not line.startswith("#")]
        self._hashes = {self._name(pin): re.findall(r"sha256:[0-9a-f]{64}", " ".join(more)) for pin, *more in self.pins}
        self.torch = torch_in(text)
        self.build = self.torch
        """The torch that everything else has to do with, once it is known."""

    @staticmethod
    def _name(pin: str) -> str:
        name, _, version = pin.partition("==")
        return re.sub(r"[-_.]+", "-", name).lower() + "==" + version

    def hashes(self, name: str, version: str) -> list[str]:
        """The sha256 of the files of this version; none where it is not the tested one."""
        return [text.partition(":")[2] for text in self._hashes.get(self._name(f"{name}=={version}"), [])]

    def requirement(self, name: str) -> str:
        """The tested version of `name`, with its hashes; its name alone if there is none."""
        pins = [pin for pin, *_ in self.pins if pin.startswith(f"{name}==")]
        return pins[0] + self.options(self.hashes(*pins[0].split("=="))) if pins else name

    def options(self, hashes: list[str]) -> str:
        """What pip takes after a requirement."""
        return "".join(f" --hash=sha256:{text}" for text in hashes) if self.hashed else ""

    def constrain(self, folder: Path, hashes: bool = True) -> list[str]:
        """Write constraints.txt in `folder`; return the options with which pip keeps to it."""
        lines = []
        for pin, *_ in self.pins:
            known = self.hashes(*pin.split("==", 1)) if hashes else []
            # torch has its own step: from then on this very build is the only one that pip may consider.
            lines.append(self.build if pin == self.torch else pin + self.options(known))
        (folder / "constraints.txt").write_text("\n".join(lines) + "\n")
        return [*(["--require-hashes"] if hashes and self.hashed else []), "-c", str(folder / "constraints.txt")]
