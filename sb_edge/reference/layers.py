"""The parts of a SpikingBrain block, named as in the public checkpoint (arXiv 2509.05276, section 3).

Sizes: B sequences, T new tokens, P cached ones, H query heads, Hkv key/value heads, G = H / Hkv, d a head's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sb_edge.arch.coding import int8_round
from sb_edge.arch.config import GATE_LOGIT_NORMALIZER, SpikingBrainConfig
from sb_edge.reference.ops.naive import accumulation_dtype
from sb_edge.reference.spiking import Projection, SharedInput, round_to_counts, straight_through

Operator = Callable[[Tensor, Tensor, Tensor, Tensor, float, Tensor | None], tuple[Tensor, Tensor]]

Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]

LayerState = tuple[Tensor, ...]
"""What a layer keeps between calls: GLA (S,), SWA (keys, values) of the last tokens, a hybrid of both all
three; () before the first."""

QUERY_BLOCK = 512
"""SWA takes this many queries at once: its scores need B * H * 512 * (512 + w) numbers instead of T * T."""


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed in the accumulation dtype."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width] -> the same shape and dtype."""
        wide = x.to(accumulation_dtype(x.dtype))
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (normed * self.weight).to(x.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = Projection(hidden, width, bias=False)
        self.up_proj = Projection(hidden, width, bias=False)
        self.down_proj = Projection(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, hidden] -> [B, T, hidden]."""
        shared = SharedInput(x)
        gated: Tensor = self.down_proj(functional.silu(self.gate_proj(shared)) * self.up_proj(shared))
        return gated


def rotate(x: Tensor, position: int, theta: float) -> Tensor:
    """Rotary embedding in the half-split ("NeoX") layout: channel i turns with channel i + d/2.

    Angles are taken in float64: at position 131072 float32 ones are off by up to 2e-3 of a radian.

    Args:
        x: [B, T, heads, d].
        position: of x's first token.
        theta: the base, `rope_theta`.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (torch.arange(half, dtype=torch.float64, device=x.device) / -half)
    steps = torch.arange(position, position + x.shape[1], dtype=torch.float64, device=x.device)
    angles = steps[:, None, None] * frequencies  # [T, 1, d/2]
    dtype = accumulation_dtype(x.dtype)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    low, high = x.to(dtype).chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)


def query_blocks(q: Tensor, k: Tensor, window: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks of `QUERY_BLOCK` queries, the keys that these can see, and which each sees: bool [block, keys].

    Arguments as of `windowed_attention`.
    """
    length, past = q.shape[1], k.shape[1] - q.shape[1]
    for start in range(0, length, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, length)
        first = max(0, past + start - window + 1)
        at = torch.arange(past + start, past + stop, device=q.device)
        age = at[:, None] - torch.arange(first, past + stop, device=q.device)
        yield slice(start, stop), slice(first, past + stop), (age >= 0) & (age < window)


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over the `window` newest keys of every query, its own included.

    Args:
        q: [B, T, H, d], the last T positions.
        k, v: [B, P + T, Hkv, d], those positions and the P before them.

    Returns:
        [B, T, H, d].
    """
    groups = q.unflatten(2, (k.shape[2], -1))
    outputs = []
    for queries, seen, mask in query_blocks(q, k, window):
        keys, values = k[:, seen], v[:, seen]
        scores = torch.einsum("bthgd,bkhd->bhgtk", groups[:, queries], keys) * q.shape[-1] ** -0.5
        scores = scores.masked_fill(~mask, -torch.inf)
        weights = scores.to(accumulation_dtype(q.dtype)).softmax(-1).to(q.dtype)
        outputs.append(torch.einsum("bhgtk,bkhd->bthgd", weights, values))
    return torch.cat(outputs, dim=1).flatten(2, 3)


class Attention(nn.Module):
    """The projections that both kinds of layer share."""

    def __init__(self, config: SpikingBrainConfig, bias: bool) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        query_dim = config.num_attention_heads * config.head_dim
        self.q_proj = Projection(config.hidden_size, query_dim, bias=bias)
        self.k_proj = Projection(config.hidden_size, config.kv_dim, bias=bias)
        self.v_proj = Projection(config.hidden_size, config.kv_dim, bias=bias)
        self.o_proj = Projection(query_dim, config.hidden_size, bias=False)

    def heads(self, x: Tensor) -> Tensor:
        """[B, T, heads * d] -> [B, T, heads, d]."""
        return x.unflatten(-1, (-1, self.head_dim))

    def forward(self, x: Tensor, state: LayerState, position: int) -> tuple[Tensor, LayerState]:
        """x: [B, T, hidden], the tokens from `position` on -> [B, T, hidden] and the state after them."""
        raise NotImplementedError


class SlidingWindowAttention(Attention):
    """Softmax attention over the last `sliding_window` keys, with rotary embedding.

    W8ASpike changes the attention inputs: `query_k`, if not 0, codes every head's query, and `kv_rounding`
    rounds keys and values to INT8 per token and head, before the cache keeps them. `attend` is
    `windowed_attention` or a faster form.
    """

    attend: Attend = staticmethod(windowed_attention)
    query_k = 0.0
    kv_rounding = False

    def __init__(self, config: SpikingBrainConfig, bias: bool) -> None:
        super().__init__(config, bias)
        self.window = config.sliding_window
        self.theta = config.rope_theta

    def forward(self, x: Tensor, state: LayerState, position: int) -> tuple[Tensor, LayerState]:
        shared = SharedInput(x)
        q = rotate(self.heads(self.q_proj(shared)), position, self.theta)
        k = rotate(self.heads(self.k_proj(shared)), position, self.theta)
        v = self.heads(self.v_proj(shared))
        if self.query_k:
            q = round_to_counts(q, self.query_k)
        if self.kv_rounding:
            k, v = (straight_through(part, int8_round(part.detach()).to(x.dtype)) for part in (k, v))
        if state:
            k, v = torch.cat((state[0], k), dim=1), torch.cat((state[1], v), dim=1)
        y = self.o_proj(self.attend(q, k, v, self.window).flatten(2))
        oldest = max(0, k.shape[1] - self.window + 1)  # the next token sees w - 1 keys beside its own
        return y, (k[:, oldest:], v[:, oldest:])


class GatedLinearAttention(Attention):
    """Linear attention with a gate per key channel, ReLU on q and k, a norm per head, no rotary embedding.

    The gate is a low-rank pair of projections, or, with `gate_rank` 0 (W8ASpike), a single one.
    """

    def __init__(self, config: SpikingBrainConfig, bias: bool, gate_rank: int, operator: Operator) -> None:
        super().__init__(config, bias)
        self.operator = operator
        self.gk_proj: nn.Module = Projection(config.hidden_size, config.kv_dim)
        if gate_rank:
            self.gk_proj = nn.Sequential(
                Projection(config.hidden_size, gate_rank, bias=False), nn.Linear(gate_rank, config.kv_dim)
            )
        self.g_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, state: LayerState, position: int) -> tuple[Tensor, LayerState]:
        shared = SharedInput(x)
        q = self.heads(functional.relu(self.q_proj(shared)))
        k = self.heads(functional.relu(self.k_proj(shared)))
        v = self.heads(self.v_proj(shared))
        gate = self.heads(self.gk_proj(shared)).to(accumulation_dtype(x.dtype))
        log_a = functional.logsigmoid(gate) / GATE_LOGIT_NORMALIZER
        o, last = self.operator(q, k, v, log_a, self.head_dim**-0.5, state[0] if state else None)
        return self.o_proj(self.g_norm(o).flatten(2)), (last,)


class HeadHybridAttention(GatedLinearAttention):
    """GLA whose key/value heads `kept`, each with its query heads, have sliding-window attention instead.

    Those have a rotary embedding and no norm; their gates are not used. Head-level hybrids: arXiv 2602.11374.
    """

    attend: Attend = staticmethod(windowed_attention)

    def __init__(
        self,
        config: SpikingBrainConfig,
        bias: bool,
        gate_rank: int,
        operator: Operator,
        kept: Sequence[int],
    ) -> None:
        super().__init__(config, bias, gate_rank, operator)
        self.window = config.sliding_window
        self.theta = config.rope_theta
        self.kept = list(kept)
        self.recurrent = [head for head in range(config.num_key_value_heads) if head not in kept]
        order = [*self.recurrent, *self.kept]
        self.places = [order.index(head) for head in range(len(order))]

    def forward(self, x: Tensor, state: LayerState, position: int) -> tuple[Tensor, LayerState]:
        shared = SharedInput(x)
        k, v = self.heads(self.k_proj(shared)), self.heads(self.v_proj(shared))
        q = self.heads(self.q_proj(shared)).unflatten(2, (k.shape[2], -1))  # [B, T, Hkv, G, d]
        gate = self.heads(self.gk_proj(shared)).to(accumulation_dtype(x.dtype))
        log_a = functional.logsigmoid(gate) / GATE_LOGIT_NORMALIZER
        queries, keys, values, log_a = (part[:, :, self.recurrent] for part in (q, k, v, log_a))
        queries, keys = functional.relu(queries.flatten(2, 3)), functional.relu(keys)
        scale = self.head_dim**-0.5
        o, last = self.operator(queries, keys, values, log_a, scale, state[0] if state else None)
        queries, keys, values = (part[:, :, self.kept] for part in (q, k, v))
        queries, keys = (rotate(part, position, self.theta) for part in (queries.flatten(2, 3), keys))
        if state:
            keys, values = torch.cat((state[1], keys), dim=1), torch.cat((state[2], values), dim=1)
        near = self.attend(queries, keys, values, self.window)
        both = torch.cat((self.g_norm(o), near), dim=2).unflatten(2, (k.shape[2], -1))
        oldest = max(0, keys.shape[1] - self.window + 1)
        y = self.o_proj(both[:, :, self.places].flatten(2))
        return y, (last, keys[:, oldest:], values[:, oldest:])


WINDOWED = (SlidingWindowAttention, HeadHybridAttention)
"""The kinds of layer with a window."""


class Block(nn.Module):
    """x + attn(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: SpikingBrainConfig, attention: Attention, mlp: nn.Module) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attn = attention
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = mlp

    def forward(self, x: Tensor, state: LayerState, position: int) -> tuple[Tensor, LayerState]:
        """x: [B, T, hidden] -> [B, T, hidden] and the attention's state."""
        y, state = self.attn(self.attn_norm(x), state, position)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), state
