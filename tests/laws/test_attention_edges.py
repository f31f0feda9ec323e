"""What is missing, and what is as good as missing, in whole models: defined results, finite gradients."""

from dataclasses import replace

import pytest
import torch

from nava_lab.streams import Stream
from tests.laws.attention_laws import packed_is_padded
from tests.laws.subjects import close, every_subject, model_of, plain_case, run


@every_subject
def test_law_12_a_window_as_long_as_the_clip_is_none(subject):
    case = plain_case()
    out = case(model_of(subject))
    for name, part in case(model_of(subject, window_s=5.0)).items():
        close(part, out[name])


@every_subject
@pytest.mark.parametrize("missing", ["video", "audio", "text", "all of one sample"])
@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("batch", [1, 2])
def test_what_is_missing_leaves_defined_results_and_finite_gradients(subject, missing, length, batch):
    model, case = model_of(subject), plain_case(batch)

    def emptied(name, stream):
        valid = torch.ones(stream.tokens.shape[:2], dtype=torch.bool)
        valid[0] = missing not in (name, "all of one sample")
        tokens = stream.tokens.masked_fill(~valid.unsqueeze(-1), float("nan"))
        return Stream(tokens[:, :length], stream.positions[:, :length], valid[:, :length])

    case = case.with_streams(emptied)
    if missing in ("text", "all of one sample"):
        ids = case.text.tokens.clone()
        ids[0] = 0
        case = replace(case, text=Stream(ids, case.text.positions, ids != 0))
    out, gradients = run(model, case)
    assert all(torch.isfinite(part).all() for part in out.values())
    assert all(grad is None or torch.isfinite(grad).all() for grad in gradients.values())
    packed_is_padded(model, case)
