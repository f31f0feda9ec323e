"""Weights written in a published layout are what was read, and `nava export` writes them from a run's folder."""

import pytest
import torch
import yaml
from diffusers import LTX2VideoTransformer3DModel
from safetensors.torch import load_file, save_file

from nava_lab.blocks.base import Dims
from nava_lab.checkpoints.convert import export, warm_start
from nava_lab.cli.commands.export import main
from nava_lab.config import load
from nava_lab.models.denoiser import Denoiser
from nava_lab.models.variant import with_settings
from nava_lab.registry import variants
from nava_lab.streams import Interface, ModalitySpec, TextSpec
from nava_lab.study.build import network, parts
from tests.checkpoints.test_parity import LTX, RELEASES, as_released, lively

SPECS = {"video": ModalitySpec(4, 32, 1 / 3, (4, 4), stride=8), "audio": ModalitySpec(4, 5, 0.04, stride=4)}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("layout", ["ltx2", "ltx2 (diffusers)"])
def test_ltx2_is_written_as_it_was_read(tmp_path, release, layout):
    """Names, shapes and every bit, also where the rows of queries and keys stood in another order."""
    more, settings = RELEASES[release]
    theirs = lively(LTX2VideoTransformer3DModel(**LTX, **more)).state_dict()
    if layout == "ltx2":
        prefix = "model.diffusion_model."
        theirs = {key.removeprefix(prefix): part for key, part in as_released(theirs).items() if key.startswith(prefix)}
        theirs = {key: part for key, part in theirs.items() if not key.startswith("video_embeddings_connector.")}
    save_file({key: part.contiguous().clone() for key, part in theirs.items()}, tmp_path / "ltx2.safetensors")
    text = TextSpec(8, features=24 if release == "2.3" else 16)
    variant = with_settings(variants.get("ltx2")(depth=2, heads=2), {"clock.first_frame": True, **settings})
    model = Denoiser(
        variant, Interface(SPECS, text), Dims({"video": 16, "audio": 8}, {"video": 2, "audio": 2}, {"video": 64, "audio": 32})
    )
    assert warm_start(model, tmp_path / "ltx2.safetensors").dialect == layout
    written = export(model, layout)
    assert written.keys() == theirs.keys()
    assert all(torch.equal(written[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(("variant", "layout"), [("ltx2", "ltx2"), ("ltx2", "ltx2 (diffusers)"), ("ovi", "ovi")])
def test_nava_export_writes_a_run_in_a_published_layout(tmp_path, variant, layout, capsys):
    """A run's folder, to a file, and back into a model of the same config; the words of a world's own text alone stay behind."""
    run, out = tmp_path / "run", tmp_path / "out.safetensors"
    run.mkdir()
    config = load([f"variant={variant}", "variant.depth=1", "variant.heads=2", "budget.width=96", "budget.hidden=64"])
    model, again = (network(config, parts(config).solution) for _ in range(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    (run / "config.yaml").write_text(yaml.safe_dump(dict(config.resolved), sort_keys=False))
    save_file(model.state_dict(), run / "model.safetensors", {"steps": "7"})
    main([str(run), str(out), "--to", layout, "--patch", "1,1,1"])
    assert f"weights at step 7, {len(load_file(out))} tensors" in capsys.readouterr().err
    manifest = warm_start(again, out, differ=["clock"])
    assert (manifest.dialect, manifest.coverage) == (layout, 1)
    told = {"words.weight", "places"}
    assert {key.split(".", 3)[-1] for key in again.state_dict() if key.split(".", 3)[-1] in told} == told
    for key, part in again.state_dict().items():
        assert torch.equal(part, model.state_dict()[key]) == (key.split(".", 3)[-1] not in told), key
