"""Laws of whole models, for every registered variant and for every registered block and bridge as the whole of a depth."""

from unittest import mock

import pytest
import torch
import torch.nn.attention.flex_attention as flex_attention
from hypothesis import given, settings
from hypothesis import strategies as st

from nava_lab.registry import masks
from tests.laws.attention_laws import DEMANDS, LAWS, text_stays_out
from tests.laws.cases import clips, fewer
from tests.laws.subjects import close, every_subject, model_of, plain_case, reads_text, real

RULES = [masks.get(name)() for name in masks]


@every_subject
@pytest.mark.parametrize("law", [law for law in DEMANDS if law != "text_stays_out"])
def test_what_must_change_changes(law, subject):
    demands, options = DEMANDS[law]
    demands(model_of(subject, **options), plain_case())


@every_subject
@pytest.mark.parametrize("law", LAWS)
def test_law(law, subject):
    @fewer
    @given(
        st.booleans().flatmap(lambda whole: clips(least=0, full=whole, absent=True, rules=RULES))
    )  # whole clips carry no table of validity
    def holds(case):
        LAWS[law](model_of(subject, **case.options), case)

    holds()


@every_subject
def test_law_9_text_stays_out_of_chosen_stages(subject):
    if not reads_text(subject):
        pytest.skip("reads no text")

    @fewer
    @given(clips(least=1))
    def holds(case):
        text_stays_out(model_of(subject, text_after=1, **case.options), case)

    holds()


@every_subject
@pytest.mark.parametrize("backend", ["flex", "reference"])
def test_law_5_every_backend_gives_the_same_model(subject, backend):
    # On a CPU flex traces anew for every shape and rule, which costs seconds and has laws of its own (test_attention_backends):
    # lone blocks are traced here too, whatever is made of them runs the same operations untraced.
    untraced = mock.patch.object(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", not subject.startswith("block"))

    @settings(max_examples=max(2, settings().max_examples // 10))
    @given(clips(least=0))
    def holds(case):
        fast, other = model_of(subject, **case.options), model_of(subject, backend=backend, **case.options)
        with torch.no_grad(), untraced:
            for each in (case, case.packed()):
                for (name, found), expected in zip(each(other).items(), each(fast).values(), strict=True):
                    kept = real(each.streams[name])
                    close(found[kept], expected[kept])

    holds()
