"""The host hands a micro-batch's work to its device without waiting for a number of it."""

import pytest
import torch
from frozen_text import adapted, batch_of, random_rows
from models import FAMILIES, MIXED, hidden_states, tiny_model

from gem_ds.attention import forward
from gem_ds.attention.registry import attach, choose, make_plan
from gem_ds.layout import positions


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_pass_asks_for_no_number(family):
    """Transformers would look at the positions, for packed documents: it is kept from it."""
    lm = tiny_model(family)
    attach(lm)
    backend = choose("auto", lm, torch.device("cpu"), torch.float32)
    ids = torch.randint(64, (int(MIXED[-1, -1]),), generator=torch.Generator().manual_seed(1))
    places = torch.from_numpy(positions(MIXED))[None]
    plan = make_plan(MIXED, backend)
    ways = {
        "ours": lambda: forward.hidden_states(lm, places, plan, input_ids=ids[None]),
        "without": lambda: hidden_states(lm, ids, MIXED, backend),
    }
    found, asked = {}, {}
    for name, way in ways.items():
        with torch.no_grad(), torch.profiler.profile() as profiler:
            found[name] = way()
        asked[name] = sum(event.name == "aten::item" for event in profiler.events())
    assert torch.equal(found["ours"], found["without"])
    if family == "gpt_oss":  # looks at no positions; its experts ask for their sizes on a CPU
        assert asked["ours"] == asked["without"]
    else:
        assert asked["ours"] == 0 < asked["without"]


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["varlen", "flex"])
def test_a_gpu_is_never_waited_for_in_a_micro_batch(backend):
    """In the second one: the first compiles kernels."""
    gem = adapted(hidden_size=64, head_dim=16).to("cuda", torch.bfloat16)
    for mode in ("default", "error"):
        batch = batch_of(random_rows(), backend)
        torch.cuda.set_sync_debug_mode(mode)
        try:
            out = gem(batch.to(torch.device("cuda")))
            (out.ntp + out.contrastive).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert out.contrastive.item() > 0
