"""Registries: names from syntax, errors that help."""

import subprocess
import sys

import pytest

from nava_lab.registry import ALL, Registry, UnknownName, variant_folders, variants


@pytest.mark.parametrize("registry", ALL, ids=lambda registry: registry.kind)
def test_every_entry_has_a_summary_and_can_be_got(registry):
    assert registry.names()
    for name in registry:
        assert registry.entries[name].summary
        assert registry.get(name).name == name


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'unified'"):
        variants.get("unifed")


def test_a_name_taken_twice_is_an_error(tmp_path):
    (tmp_path / "a.py").write_text('@things.register("x")\nclass A:\n    "One."\n')
    (tmp_path / "b.py").write_text('@things.register("x")\nclass B:\n    "Two."\n')
    with pytest.raises(ValueError, match="registered twice"):
        Registry("thing", "things", lambda: [tmp_path]).names()


def test_a_file_that_does_not_parse_is_named(tmp_path):
    (tmp_path / "a.py").write_text('@things.register("x")\nclass A(:\n')
    with pytest.raises(SyntaxError, match=r"a\.py, line 2"):
        Registry("thing", "things", lambda: [tmp_path]).names()


def test_listing_imports_nothing_heavy():
    code = "import sys, nava_lab.cli as c; c.main(['train', '--help']); assert not {'torch', 'lightning', 'hydra'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_folder_of_variants_that_is_missing_is_named(monkeypatch):
    monkeypatch.setenv("NAVA_VARIANTS", "/nowhere/at/all")
    with pytest.raises(ValueError, match="NAVA_VARIANTS names /nowhere/at/all"):
        variant_folders()


def test_a_file_keeps_its_name_where_a_folder_above_the_checkout_is_on_the_path(tmp_path):
    """Otherwise it would be imported a second time, and its entry registered twice."""
    import os
    import subprocess
    import sys

    from nava_lab.registry import PACKAGE

    program = "from nava_lab.registry import solvers; print(solvers.get('heun').__module__)"
    path = os.pathsep.join((str(PACKAGE.parent), str(PACKAGE.parent.parent)))
    for seed in ("0", "1"):
        env = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=120)
        assert done.stdout.strip() == "nava_lab.flow.solvers.heun", done.stderr
