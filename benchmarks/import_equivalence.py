"""`python -m benchmarks.import_equivalence --biggan-pytorch DIR --studiogan DIR --huggingface DIR`: originals against imports.

DIR are checkouts of the originals; each may be left out with its cases. Their networks get weights by formula, in float64, and
save them in their own formats; `pipeline.checkpoint.importers.detect` reads those, and both sides see the same latents, labels
and images. The table has the largest difference of G's images (-1..1) and of D's logits (over the largest logit): in training
mode, in eval mode, and after the project's own standing statistics; and of the parameters after one step of the project's
Adam, continued from imported moments. `--write tests/fixtures/foreign` keeps keys, shapes and some outputs for the tests.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from benchmarks.others import originals
from benchmarks.others.originals import Original
from benchmarks.support import foreign_checkpoints
from benchmarks.support.imported import Outputs, forward, imported_networks, imported_outputs, inputs, some
from benchmarks.support.report import report
from pipeline.checkpoint.importers import detect
from pipeline.checkpoint.importers.convert import Imported, Options

LIMIT = 1e-5
_COLUMNS = ("case", "G train", "G eval", "standing", "G Adam", "D train", "D eval", "D Adam", "ok")


def _biggan(resolution: int, dim_z: int, g_attn: str, d_attn: str, **more: Any) -> tuple[str, dict[str, Any]]:
    options = {"resolution": resolution, "dim_z": dim_z, "G_attn": g_attn, "D_attn": d_attn, "BN_eps": 1e-4, "SN_eps": 1e-6}
    sizes = {"n_classes": 5, "G_ch": 8, "D_ch": 8, "G_shared": True, "shared_dim": 12, "hier": True}
    return "biggan_pytorch", options | sizes | more


def _studiogan(size: int, z_dim: int, g_attn: int, d_attn: int, backbone: str = "big_resnet") -> tuple[str, dict[str, Any]]:
    options = {"img_size": size, "z_dim": z_dim, "attn_g_loc": [g_attn], "attn_d_loc": [d_attn], "num_classes": 5}
    return "studiogan", options | {"g_conv_dim": 8, "d_conv_dim": 8, "g_shared_dim": 12, "backbone": backbone}


def _huggingface(resolution: int) -> tuple[str, dict[str, Any]]:
    return "huggingface", {"resolution": resolution, "ch": 16, "z_dim": 8, "classes": 5}


CASES = {
    "biggan-32-unshared": _biggan(32, 16, "0", "0", G_shared=False, hier=False),
    "biggan-32": _biggan(32, 19, "16", "0", D_ch=12),
    "biggan-64": _biggan(64, 20, "64", "32"),
    "biggan-64-mybn": _biggan(64, 20, "32_64", "16", mybn=True),
    "biggan-64-unsplit": _biggan(64, 16, "64", "32", hier=False),
    "biggan-128": _biggan(128, 24, "64", "64"),
    "biggan-256": _biggan(256, 28, "64", "32"),
    "biggan-512": _biggan(512, 32, "64", "0", discriminator=False),  # it has no D for 512 px
    "biggan-deep-32": _biggan(32, 8, "16", "0", deep=True),
    "biggan-deep-64": _biggan(64, 8, "32", "32", deep=True),
    "biggan-deep-128": _biggan(128, 8, "64", "64", deep=True),
    "biggan-deep-256": _biggan(256, 8, "64", "64", deep=True),
    "studiogan-32": _studiogan(32, 20, 2, 1),
    "studiogan-64": _studiogan(64, 25, 3, 1),
    "studiogan-128": _studiogan(128, 24, 4, 1),
    "studiogan-256": _studiogan(256, 28, 4, 2),
    "studiogan-512": _studiogan(512, 32, 4, 3),
    "studiogan-deep-32": _studiogan(32, 8, 2, 1, "big_resnet_deep_legacy"),
    "studiogan-deep-128": _studiogan(128, 8, 4, 1, "big_resnet_deep_legacy"),
    "huggingface-128": _huggingface(128),
    "huggingface-256": _huggingface(256),
    "huggingface-512": _huggingface(512),
}
"""Name -> function of benchmarks.others.originals and its options: small widths, attention not where the defaults have it."""


def shapes(network: nn.Module, parameters: bool = False) -> dict[str, list[int]]:
    tensors = dict(network.named_parameters()) if parameters else network.state_dict()
    return {key: list(tensor.shape) for key, tensor in tensors.items()}


def networks(original: Original) -> dict[str, nn.Module]:
    return {"G": original.generator} | ({"D": original.discriminator} if original.discriminator else {})


def states(original: Original) -> dict[str, dict[str, Any]]:
    """Return what the files of a case hold: G, and D with Adam's state where the project saves one."""
    found = {name: foreign_checkpoints.state(name, shapes(network)) for name, network in networks(original).items()}
    if original.form != "huggingface":
        for name, network in networks(original).items():
            found[f"{name}_optim"] = foreign_checkpoints.adam(name, shapes(network, parameters=True))
    return found


def through_files(original: Original, states: dict[str, dict[str, Any]], folder: Path) -> Imported:
    """Save `states` in the original's own format, and import them."""
    saved = foreign_checkpoints.save(folder, original.form, states, original.settings)
    return detect.read(str(saved), Options(), lambda line: None)


def original_outputs(name: str, original: Original) -> Outputs:
    """Return outputs by network and mode, each from freshly loaded weights: a forward there may move them."""
    given = inputs(name, original.z_dim, original.classes, original.resolution)
    outputs = {}
    for which, network in networks(original).items():
        for mode in original.modes:
            network.load_state_dict(foreign_checkpoints.state(which, shapes(network)))
            with torch.no_grad():
                outputs[f"{which} {mode}"] = original.call[which](network.train(mode == "train"), *given[which])
    return outputs


def adam_step(network: nn.Module, state: dict[str, Any], output: Callable[[], Tensor]) -> None:
    """Take one step of torch's Adam from `state`, down an arbitrary direction in the space of outputs."""
    optimizer = torch.optim.Adam(network.parameters())
    optimizer.load_state_dict(state)
    y = output()
    (y * foreign_checkpoints.numbers("direction", y.shape)).sum().backward()
    optimizer.step()


def after_adam(name: str, original: Original, imported: Imported, folder: Path) -> dict[str, float]:
    """Return, by network, the largest difference of a parameter after a step of the original and one from imported moments."""
    given = inputs(name, original.z_dim, original.classes, original.resolution)
    files = states(original)
    for which, network in networks(original).items():
        network.load_state_dict(files[which])
        network.train()
        adam_step(network, files[f"{which}_optim"], partial(original.call[which], network, *given[which]))
        files[which] = network.state_dict()
    stepped = through_files(original, files, folder)
    differences = {}
    for which, network in imported_networks(imported).items():
        role = {"G": "generator", "D": "discriminator"}[which]
        moments, before = imported.optimizers[role], foreign_checkpoints.adam("", {})["param_groups"][0]
        names = [key for key, _ in network.named_parameters()]
        state = {i: {kind: moments[f"{kind}/{key}"] for kind in ("exp_avg", "exp_avg_sq")} for i, key in enumerate(names)}
        state = {i: {"step": moments["step"].clone(), **kinds} for i, kinds in state.items()}
        group = before | {"params": list(state)}
        network.train()
        adam_step(network, {"state": state, "param_groups": [group]}, partial(forward, name, imported, which, network))
        theirs = getattr(stepped, role)
        differences[which] = max(float((p.detach() - theirs[key]).abs().max()) for key, p in network.named_parameters())
    return differences


def after_standing(name: str, original: Original, folder: Path) -> float:
    """Return the largest difference in eval mode, after the project's own standing pass over G as its averaged generator."""
    g = original.generator
    g.load_state_dict(foreign_checkpoints.state("G", shapes(g)))
    z, y = inputs(name, original.z_dim, original.classes, original.resolution)["G"]
    with torch.no_grad():
        original.standing(g, z, original.classes)
        theirs = original.call["G"](g.eval(), z, y)
        imported = through_files(original, {"G_ema": g.state_dict()}, folder)
        return float((imported_networks(imported)["G"].eval()(z, y) - theirs).abs().max())


def compare(name: str, original: Original, folder: Path) -> tuple[dict[str, Any], Outputs]:
    """Return a row of the table, and the original's outputs."""
    imported = through_files(original, states(original), folder / "files")
    theirs, ours = original_outputs(name, original), imported_outputs(name, imported, original.modes)
    row: dict[str, Any] = dict.fromkeys(_COLUMNS) | {"case": name}
    for key, output in theirs.items():
        scale = max(1.0, float(output.abs().max()))
        row[key] = float((ours[key] - output).abs().max()) / scale
    if original.standing:
        row["standing"] = after_standing(name, original, folder / "standing")
    if imported.optimizers:
        row |= {f"{which} Adam": d for which, d in after_adam(name, original, imported, folder / "adam").items()}
    row["ok"] = all(value <= LIMIT for value in row.values() if isinstance(value, float))
    return row, theirs


def keep(folder: Path, kept: dict[str, tuple[Original, Outputs]]) -> None:
    """Write what the tests need to make the same files without the originals, and what must come out."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = {
        name: {
            "form": original.form,
            "settings": original.settings,
            "state": {which: shapes(network) for which, network in networks(original).items()},
        }
        for name, (original, _) in kept.items()
    }
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(case, separators=(',', ':'))}" for name, case in cases.items())
    (folder / "cases.json").write_text(f"{{\n{lines}\n}}\n")
    outputs = {f"{name}/{key}": some(output) for name, (_, found) in kept.items() for key, output in found.items()}
    safetensors.torch.save_file(outputs, folder / "outputs.safetensors")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.import_equivalence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for project in ("biggan-pytorch", "studiogan", "huggingface"):
        parser.add_argument(f"--{project}", type=Path, metavar="DIR", help=f"a checkout of {project}")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--write", type=Path, metavar="DIR", help="keep the tests' fixtures there")
    args = parser.parse_args()
    torch.manual_seed(0)
    rows, kept = [], {}
    for name, (project, options) in CASES.items():
        checkout = getattr(args, project)
        if checkout is None or args.only not in name:
            continue
        original = getattr(originals, project)(checkout, **options)
        with tempfile.TemporaryDirectory() as folder:
            row, outputs = compare(name, original, Path(folder))
        print(f"{name}: {'ok' if row['ok'] else 'DIFFERS'}", flush=True)
        rows.append(row)
        kept[name] = original, outputs
    if args.write:
        keep(args.write, kept)
    ok = bool(rows) and all(row["ok"] for row in rows)
    report("import_equivalence", rows, {"rows": rows, "limit": LIMIT}, ok)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
