"""The KL to the base against a dense computation, its memory, and real runs that are held."""

import copy
import shutil

import numpy as np
import pytest
import torch
from models import tiny_model
from runs import fp32, llama_config, metrics, random_base, random_row, random_shards
from several_runs import several_runs
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gem_ds import layout
from gem_ds.attention import forward
from gem_ds.attention.registry import attach
from gem_ds.checkpoints.checkpoint import find, load_weights
from gem_ds.layout import SUMMARY
from gem_ds.model import kl_reference, language_model
from gem_ds.model.batch import BatchOptions, make_batch
from gem_ds.model.kl_reference import kl_to_base
from gem_ds.model.positives import PositiveOptions

CAPACITY = 3 * 64
V = 60  # of the base; the models of these tests have 64 rows


class Held:
    """A base whole in memory."""

    vocab_size = V

    def __init__(self, lm):
        self.lm = lm

    @torch.no_grad()
    def hidden(self, reference):
        return language_model.hidden_states(self.lm, reference)[: len(reference.index)]

    @torch.no_grad()
    def logits(self, hidden_nC):
        return forward.logits(self.lm, hidden_nC)


@pytest.fixture
def rows():
    rng = np.random.default_rng(5)
    return [random_row(rng, 64, 2, [62, 63], n_vocab=V, gem_share=0.7) for _ in range(3)]


def batch_of(rows, capacity=CAPACITY):
    positives = PositiveOptions(summary_tokens=(62, 63), bos_token_id=0)
    options = BatchOptions(positives, reference_capacity=capacity, attention="dense")
    return make_batch(rows, range(len(rows)), options, True, True)


def models(family):
    """A base, and the same with other weights."""
    extra = {"final_logit_softcapping": 2.0} if family == "gemma2" else {}
    base = tiny_model(family, initializer_range=0.2, **extra)
    attach(base)
    trained = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return base, trained


def test_reference_tokens_are_plain_documents_and_prefixes(rows):
    batch = batch_of(rows)
    held = batch.reference
    expected = []
    for number, row in enumerate(rows):
        for start, summary, _, _ in row.bounds.tolist():
            expected += range(64 * number + start, 64 * number + summary)
    assert held.index.tolist() == expected
    n = len(expected)
    assert 64 < n < 190
    assert torch.equal(held.input_ids[0, :n], batch.input_ids[0, held.index])
    assert torch.equal(held.position_ids[0, :n], batch.position_ids[0, held.index])
    assert not set(held.input_ids.flatten().tolist()) & {62, 63}, "no summary tokens"
    assert not layout.is_gem(held.plan.bounds_D4).any()
    lengths = np.concatenate([row.bounds[:, SUMMARY] - row.bounds[:, 0] for row in rows])
    assert np.diff(held.plan.bounds_D4[:, [0, 3]]).ravel()[: len(lengths)].tolist() == [*lengths]
    assert held.input_ids.shape[1] % 64 == 0
    assert batch_of(rows, capacity=0).reference is None


def test_all_ranks_compute_as_many_chunks_whatever_their_tokens(rows):
    for held in (batch_of(rows, 5000).reference, batch_of(rows[:1] * 3, 5000).reference):
        assert held.n_chunks == 5
    assert batch_of(rows, 1024).reference.n_chunks == 1


@pytest.mark.parametrize("family", ["llama", "mistral+window", "gemma2", "gpt_neox"])
def test_the_base_sees_in_its_stream_what_a_model_sees_among_summaries(family, rows):
    base, _ = models(family)
    batch = batch_of(rows)
    with torch.no_grad():
        in_rows = language_model.hidden_states(base, batch)[batch.reference.index]
        alone = Held(base).hidden(batch.reference)
    assert torch.allclose(in_rows, alone, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2"])  # gemma2 soft-caps its logits
def test_kl_equals_a_dense_computation_in_value_and_gradient(family, rows, monkeypatch):
    monkeypatch.setattr(kl_reference, "CHUNK", 40)  # three full ones, a part and an empty one
    base, trained = models(family)
    batch = batch_of(rows)
    assert batch.reference.n_chunks == 5
    gem = language_model.TrainingModel(trained, base=Held(base))
    kl = gem(batch).kl
    kl.backward()
    got = {name: p.grad for name, p in trained.named_parameters()}
    trained.zero_grad()

    def distribution(lm):
        stream = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
        logits_TV = lm(**stream, gem_plan=batch.plan, use_cache=False).logits[0]
        return logits_TV[batch.reference.index, :V].log_softmax(-1)

    with torch.no_grad():
        log_p = distribution(base)
    dense = (log_p.exp() * (log_p - distribution(trained))).sum()
    dense.backward()
    assert dense > 0.1 * len(batch.reference.index), "nats a token"
    assert kl.item() == pytest.approx(dense.item(), rel=1e-5)
    for name, parameter in trained.named_parameters():
        error = (got[name] - parameter.grad).abs().max() / parameter.grad.abs().max()
        assert error < 2e-5, (name, error)
    head = trained.get_output_embeddings().weight.grad
    if family == "llama":  # untied
        assert head[V:].abs().max() == 0, "tokens beyond the base's are not compared"


def test_a_model_is_at_no_distance_from_itself(rows):
    base, _ = models("llama")
    batch = batch_of(rows)
    gem = language_model.TrainingModel(copy.deepcopy(base), base=Held(base))
    kl = gem(batch).kl
    kl.backward()
    n = len(batch.reference.index)
    assert abs(kl.item()) / n < 1e-6
    assert max(p.grad.abs().max() for p in gem.lm.parameters() if p.grad is not None) / n < 1e-6


def test_without_a_base_nothing_of_it_is_computed(rows):
    lm, _ = models("llama")
    out = language_model.TrainingModel(lm)(batch_of(rows, capacity=0))
    assert out.kl == 0
    assert out.kl.grad_fn is None


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation makes."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return out


def test_memory_does_not_grow_with_tokens_times_vocabulary(rows, monkeypatch):
    """Forward and backward make no tensor of more than a chunk's logits, and of the forward's only
    hidden states are kept for the backward."""
    monkeypatch.setattr(kl_reference, "CHUNK", 16)
    vocabulary = 4096
    trained = torch.nn.Linear(8, vocabulary, bias=False)
    frozen = copy.deepcopy(trained)
    for times in (1, 4):
        held = batch_of(rows * times, times * CAPACITY).reference
        states = torch.randn(len(held.index), 8, requires_grad=True)

        class Base:
            vocab_size = vocabulary

            def hidden(self, _, states=states):
                return states.detach() + 1

            @torch.no_grad()
            def logits(self, hidden_nC):
                return frozen(hidden_nC)

        saved = []

        def keep(tensor, saved=saved):
            saved.append(tensor.numel())
            return tensor

        with Largest() as largest:
            with saved_tensors_hooks(keep, lambda tensor: tensor):
                kl = kl_to_base(states, held, Base(), trained)
            kl.backward()
        assert kl > 1
        assert len(held.index) > 64
        assert largest.numel == 16 * vocabulary
        assert sum(saved) <= 2 * states.numel()


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer_dir):
    folder = tmp_path_factory.mktemp("reference")
    random_shards(folder / "shards", tokenizer_dir, n_rows=24, k=2, gem_share=0.8)
    fp32("zero3.json", folder, stage3_param_persistence_threshold=0)
    for name in ("tied", "untied"):
        llama_config(folder / name, tied=name == "tied")
        random_base(folder / f"base-{name}", folder / name, tokenizer_dir)
    return folder


@pytest.fixture(scope="module")
def common(made):
    return {
        "shards": made / "shards",
        "deepspeed": made / "fp32-zero3.json",
        "rows_per_step": 8,
        "chunk": 64,
    }


@pytest.fixture(scope="module")
def two_ranks(made, common):
    """The folder of what two ranks computed: gradients of a step, and whole runs."""
    step = {**common, **STEP, "rows_per_micro_batch": 4}
    run = {**common, "model": made / "base-untied", **RUN}
    settings = {
        **{name: {**step, "model": made / f"base-{name}"} for name in ("tied", "untied")},
        "free": {**run, "kl_to_base": 1e-9},
        "held": {**run, "kl_to_base": 30.0},
    }
    several_runs(made / "two", 2, settings)
    return made / "two"


STEP = {"steps": 50, "alpha_start": 3, "gradients": 3, "noise": 0.05, "kl_to_base": 2.0}
STEP |= {"max_grad_norm": 1e9}
RUN = {"steps": 6, "save_every": 3, "alpha_start": 2, "warmup_steps": 0, "learning_rate": 1e-2}
RUN |= {"contrastive_learning_rate": 1e-2, "positives": "dropout"}


def test_two_ranks_are_one_rank_with_two_micro_rows(made, common, two_ranks):
    one = {
        name: {**common, **STEP, "model": made / f"base-{name}", "rows_per_micro_batch": rows}
        for name, rows in (("tied", 8), ("untied", 8))
    }
    one["without"] = {**one["untied"], "kl_to_base": 0.0}
    several_runs(made / "one", 1, one)
    for name in ("tied", "untied"):
        a, b = (torch.load(made / ranks / f"{name}.pt") for ranks in ("one", "two"))
        assert a["values"]["loss/kl"] > 0.01
        for key in ("loss/ntp", "loss/contrastive", "loss/kl", "loss/total", "train/grad_norm"):
            assert a["values"][key] == pytest.approx(b["values"][key], rel=1e-5), key
        assert a["values"]["data/reference"] == b["values"]["data/reference"] > 100
        for key, grad in a["grads"].items():
            error = (grad - b["grads"][key]).abs().max() / grad.abs().max()
            assert error < 1e-5, (name, key, float(error))
    without = torch.load(made / "one" / "without.pt")
    values = torch.load(made / "one" / "untied.pt")["values"]
    assert (without["values"]["loss/kl"], without["values"]["data/reference"]) == (0, 0)
    assert values["loss/total"] == pytest.approx(
        without["values"]["loss/total"] + 2 * values["loss/kl"], rel=1e-6
    )
    assert not torch.allclose(
        without["grads"]["lm.model.norm.weight"], a["grads"]["lm.model.norm.weight"], rtol=0.1
    )


def test_a_held_model_stays_closer_to_its_base(two_ranks):
    free, held = (metrics(two_ranks / name) for name in ("free", "held"))
    assert abs(free[0]["loss/kl"]) < 1e-6
    assert abs(held[0]["loss/kl"]) < 1e-6
    assert held[-1]["loss/kl"] < 0.5 * free[-1]["loss/kl"]


def test_a_resumed_run_continues_bit_for_bit(made, common, two_ranks):
    cut = made / "two" / "cut"
    shutil.copytree(two_ranks / "held", cut)
    shutil.rmtree(find(cut))
    (cut / "checkpoints" / "latest").write_text("step-00000003")
    run = {**common, **RUN, "model": made / "base-untied", "kl_to_base": 30.0, "resume": "auto"}
    several_runs(made / "two", 2, {"cut": run})

    def exact(folder):
        noisy = ("speed/", "memory/")
        return [{k: v for k, v in m.items() if not k.startswith(noisy)} for m in metrics(folder)]

    assert exact(cut) == exact(two_ranks / "held")
    whole, resumed = (load_weights(find(two_ranks / name)) for name in ("held", "cut"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
