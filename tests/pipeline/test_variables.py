"""Each environment variable of ours is spelt in one module."""

import re
from pathlib import Path

from pipeline import variables

ROOT = Path(__file__).parents[2]
OURS = re.compile(r"\bBIGGAN_[A-Z_]+")
KNOWN = {value for name, value in vars(variables).items() if name.isupper()}
OF_SCRIPTS = {"BIGGAN_CRASHES", "BIGGAN_DOCTOR", "BIGGAN_SWEEP", "BIGGAN_SITE"}
"""Read by slurm/*.sbatch itself."""


def test_no_other_module_spells_one() -> None:
    spelt = {}
    for path in [path for folder in ("pipeline", "jobs") for path in sorted((ROOT / folder).rglob("*.py"))]:
        if path != Path(variables.__file__):
            spelt[path.name] = re.findall(r"[\"']BIGGAN_[A-Z_]+[\"']", path.read_text())
    assert len(spelt) > 100 and not {name: found for name, found in spelt.items() if found}


def test_each_that_is_mentioned_anywhere_is_known() -> None:
    places = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("slurm/*"), *ROOT.glob("container/*")]
    places += [path for folder in ("pipeline", "jobs") for path in (ROOT / folder).rglob("*.py")]
    mentioned = {name for path in places for name in OURS.findall(path.read_text())}
    assert mentioned > {"BIGGAN_TOKEN"} and not mentioned - KNOWN - OF_SCRIPTS
