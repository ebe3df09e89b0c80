"""Checks of a model on a few tokens, before it is trained or used.

`check` tries on the model itself what no family's name can promise: tokens meet in attention alone,
attention hides what the GEM rule hides and nothing else, dropout is off, packed documents do not
see each other, and the losses use the logits of the family's own forward. It runs as many layers as
show one of each kind, and a slice of the vocabulary, so it costs little beside loading the weights.

Shapes: T tokens of a stream, N heads, G key-value heads, H head size, C hidden size, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gem_ds import layout
from gem_ds.attention import forward, one_token_attention
from gem_ds.attention.hf_config import dropout_of
from gem_ds.attention.one_token_attention import Asked, OneToken
from gem_ds.attention.small_model import VOCABULARY, shallow, small_copy
from gem_ds.errors import InputError, reason
from gem_ds.layout import Bounds

N_TOKENS = 6  # of the document that is tried
# A document with a summary token, and the tried one behind it.
BOUNDS: Bounds = np.array([[0, 3, 4, 7], [7, 13, 13, 13]], dtype=np.int32)
POSITIONS = 512  # at how many positions a mask is asked about, evenly up to the longest document
# As Transformers names them; masks of chunks are the GEM mask's in documents of one chunk.
LAYER_TYPES = {"attention", "full_attention", "sliding_attention", "chunked_attention"}
ROUNDING = 1e-4  # how far two computations of the same numbers may lie apart, of their norm


def check(lm: Any, longest: int, name: str, plan: Any) -> None:
    """Raise `InputError` for a model that would be trained or used wrongly, with the reason.

    `lm` is a Transformers causal language model, or one without its head, as it was loaded; it is
    given back as it was. Documents have at most `longest` tokens. `name` is that of the attention
    to be tried, and `plan` its plan of `BOUNDS`. Under ZeRO-3 all ranks call.
    """
    _check_interface(lm)
    before, training = lm.config._attn_implementation, lm.training
    try:
        # Tensors of inference mode would not tell whether a family writes to its mask.
        with torch.inference_mode(False), torch.no_grad(), shallow(lm), small_copy(lm):
            _check_layers(lm, longest)
            _check_documents(lm, before, name, plan)
    except InputError:
        raise
    except Exception as error:  # whatever an architecture does that nobody has seen here
        raise InputError(
            f"model family {_family(lm)!r} does not run with the GEM attention ({reason(error)}); "
            "choose another base"
        ) from error
    finally:
        lm.set_attn_implementation(before)
        lm.train(training)


def _check_interface(lm: Any) -> None:
    kinds = {str(kind) for kind in getattr(lm.config.get_text_config(), "layer_types", None) or ()}
    others = ", ".join(sorted(kinds - LAYER_TYPES))
    if not others and getattr(lm, "_supports_attention_backend", False):
        return
    why = (
        f"has layers of another kind than attention ({others})"
        if others
        else "does not use Transformers' attention interface"
    )
    raise InputError(
        f"model family {_family(lm)!r} {why}, where the GEM mask cannot reach, so packed texts "
        "would see each other; choose a base of attention layers alone (Llama, Qwen3, Gemma, …)"
    )


def _check_layers(lm: Any, longest: int) -> None:
    lm.set_attn_implementation(one_token_attention.NAME)
    plan = OneToken(lm)
    # Each token twice, in another company: nothing of it may depend on that.
    places = torch.cat([torch.arange(N_TOKENS), torch.arange(N_TOKENS).flip(0)]).to(lm.device)
    ids = _ids(lm, N_TOKENS)[places]

    def differ() -> bool:
        states_TC = _one_by_one(lm, ids, places, plan)
        _check_finite(lm, states_TC)
        return _apart(states_TC[:N_TOKENS], states_TC[N_TOKENS:].flip(0))

    lm.train()
    apart = differ()
    lm.eval()
    if not plan.asked:
        raise InputError(
            f"model family {_family(lm)!r} has no attention that the GEM mask reaches; "
            "choose another base"
        )
    for asked in plan.asked:
        _check_mask(lm, asked, longest)
    if apart and differ():
        raise InputError(_mixing(lm, ids, places, plan))
    if apart or plan.dropout:
        raise InputError(_active_dropout(lm))


def _one_by_one(lm: Any, ids_T: Tensor, places_T: Tensor, plan: OneToken) -> Tensor:
    """(T, C) last hidden states, with the mask that the family asks for."""
    output = forward.body(lm)(
        input_ids=ids_T[None],
        position_ids=places_T[None],
        attention_mask=torch.ones_like(ids_T)[None],  # so that places make no mask
        gem_plan=plan,
        use_cache=False,
    )
    states_TC: Tensor = output.last_hidden_state[0]
    return states_TC


def _mixing(lm: Any, ids: Tensor, places: Tensor, plan: OneToken) -> str:
    """Which modules let tokens see each other without attention."""
    T = len(ids)
    moved: dict[str, list[bool]] = {}  # whether input, and output, differ between the two halves

    def halves_differ(values: Any) -> bool:
        tensors = [x for x in _flat(values) if x.ndim > 1 and T in x.shape[:2]]
        streams = (x.float().flatten(0, 1) if x.shape[0] == 1 else x.float() for x in tensors)
        halves = ((x[: T // 2], x[T // 2 :].flip(0)) for x in streams if len(x) == T)
        return any(_apart(*half) for half in halves)

    def watch(name: str) -> Callable[..., None]:
        def hook(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            moved[name] = [halves_differ((args, list(kwargs.values()))), halves_differ(output)]

        return hook

    with ExitStack() as stack:
        for name, module in lm.named_modules():
            handle = module.register_forward_hook(watch(name), with_kwargs=True)
            stack.callback(handle.remove)
        _one_by_one(lm, ids, places, plan)
    guilty = {name for name, (before, after) in moved.items() if after and not before and name}
    smallest = [n for n in guilty if not any(other.startswith(f"{n}.") for other in guilty)]
    parts = sorted({type(lm.get_submodule(name)).__name__ for name in smallest})
    where = f"{', '.join(parts)} in {sorted(smallest)[0]}" if parts else "outside of its layers"
    return (
        f"model family {_family(lm)!r} mixes tokens without attention ({where}), where the GEM "
        "mask does not reach: packed texts would see each other; choose a base that does not"
    )


def _active_dropout(lm: Any) -> str:
    rates = dropout_of(lm.config) or dropout_of(lm.config.get_text_config())
    named = ", ".join(f"{key} {rate:g}" for key, rate in rates.items())
    why = named or "its configuration does not say why"
    cure = "switch that off with --disable-dropout" if named else "choose another base"
    return (
        f"model family {_family(lm)!r} computes at random while it trains ({why}), and training "
        f"here has no dropout; {cure}"
    )


def _check_mask(lm: Any, asked: Asked, longest: int) -> None:
    """Whether the mask of a layer is causal within its window, and hides nothing else."""
    if asked.more:
        raise InputError(
            f"attention of model family {_family(lm)!r} in {asked.layer} chooses what it sees "
            f"({', '.join(asked.more)}), which the GEM mask does not; choose another base"
        )
    if asked.rule is None:
        raise InputError(
            f"model family {_family(lm)!r} makes an attention mask of its own in {asked.layer}, "
            "which the GEM mask would replace; choose another base"
        )
    window = asked.window or longest
    edges = np.array([0, 1, window - 1, window, window + 1])
    places = np.union1d(np.linspace(0, longest - 1, POSITIONS).astype(int), edges)
    at = torch.from_numpy(places[places < longest]).to(lm.device)
    q, kv = at[:, None], at[None, :]
    found = asked.rule(0, 0, q, kv).expand(len(at), len(at))
    expected = (kv <= q) & (q - kv < window)
    wrong = (found != expected).nonzero()
    if not len(wrong):
        return
    q_at, kv_at = (int(at[i]) for i in wrong[0])
    if kv_at > q_at:
        raise InputError(
            f"this {_family(lm)} attends in both directions, as encoders do, so it does not "
            "generate; choose a base that does"
        )
    raise InputError(
        f"attention of model family {_family(lm)!r} in {asked.layer} "
        f"{'hides' if expected[tuple(wrong[0])] else 'shows'} position {kv_at} from position "
        f"{q_at}, otherwise than the GEM mask does; choose another base, or shorter rows"
    )


# Documents, with the attention that training and encoding use.


def _check_documents(lm: Any, stock: str, name: str, plan: Any) -> None:
    ids = _ids(lm, int(BOUNDS[-1, layout.END]))
    tried = slice(*BOUNDS[-1, [layout.START, layout.END]].tolist())
    has_head = lm.get_output_embeddings() is not None
    lm.set_attn_implementation(stock)
    output = lm(input_ids=ids[None, tried], use_cache=False)
    expected_TV = (output.logits if has_head else output.last_hidden_state)[0]
    lm.set_attn_implementation(name)
    places = torch.from_numpy(layout.positions(BOUNDS)).to(lm.device)
    states_TC = forward.hidden_states(lm, places[None], plan, input_ids=ids[None])
    found_TV = forward.logits(lm, states_TC[tried]) if has_head else states_TC[tried]
    _check_finite(lm, found_TV)
    if not _apart(found_TV, expected_TV):
        return
    ids[: tried.start] = ids[: tried.start].flip(0)
    again_TC = forward.hidden_states(lm, places[None], plan, input_ids=ids[None])
    if _apart(again_TC[tried], states_TC[tried]):
        raise InputError(
            f"model family {_family(lm)!r} lets packed documents see each other in spite of the "
            "GEM mask; choose another base"
        )
    raise InputError(
        f"model family {_family(lm)!r} computes its logits otherwise than by attention layers and "
        "one linear head, so the loss here would be another than its own; choose another base"
    )


def check_embeddings(lm: Any, plan: Any) -> None:
    """Raise `InputError` unless a model computes the same from embeddings as from their tokens.

    `lm` has the attention that `plan` is for, a plan of `BOUNDS`. Under ZeRO-3 all ranks call.
    """
    try:
        with torch.no_grad(), shallow(lm), small_copy(lm):
            ids = _ids(lm, int(BOUNDS[-1, layout.END]))[None]
            places = torch.from_numpy(layout.positions(BOUNDS)).to(lm.device)[None]
            embed = lm.get_input_embeddings()
            row = embed.weight.data[ids[0, -1]]
            row.neg_()  # a row in training: some families look up which token an embedding is of
            embedded = embed(ids)
            expected = forward.hidden_states(lm, places, plan, input_ids=ids)
            row.neg_()
            found = forward.hidden_states(lm, places, plan, inputs_embeds=embedded)
            same = not _apart(found, expected)
    except Exception as error:  # of a family that asks for the tokens themselves
        raise _not_by_embeddings(lm) from error
    if not same:
        raise _not_by_embeddings(lm)


def _not_by_embeddings(lm: Any) -> InputError:
    return InputError(
        f"model family {_family(lm)!r} reads tokens beside their embeddings, so the summary tokens "
        "of a frozen base cannot be trained; choose --adapter none (--recipe keep) or another base"
    )


def _check_finite(lm: Any, found: Tensor) -> None:
    if not bool(found.isfinite().all()):
        raise InputError(
            f"this {_family(lm)} computes values that are not finite (weights that are NaN or "
            "infinite?); check its files"
        )


def _ids(lm: Any, n: int) -> Tensor:
    """(n,) tokens spread over the vocabulary, no two alike."""
    rows = min(VOCABULARY, len(lm.get_input_embeddings().weight))
    return torch.linspace(3, rows - 1, n, device=lm.device).long()


def _apart(a: Tensor, b: Tensor) -> bool:
    """Whether two computations of the same numbers differ by more than rounding."""
    return bool((a - b).norm() > ROUNDING * b.norm())


def _family(lm: Any) -> str:
    return str(lm.config.get_text_config().model_type)


def _flat(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _flat(value)
    elif isinstance(values, dict):
        yield from _flat(list(values.values()))
