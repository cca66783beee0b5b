"""Tensors of base models for tests of transplant and distillation."""

from __future__ import annotations


def dense_shapes(
    *, vocab: int, hidden: int, n_layer: int, kv: int, ffn: int, bias: bool = False, tied: bool = True
) -> dict[str, tuple[int, ...]]:
    """Tensors of a Llama-shaped (with biases: Qwen2-shaped) checkpoint; `kv`: width of keys and of values."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    if not tied:
        shapes["lm_head.weight"] = (vocab, hidden)
    for n in range(n_layer):
        prefix = f"model.layers.{n}."
        shapes |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "self_attn.q_proj.weight": (hidden, hidden),
            prefix + "self_attn.k_proj.weight": (kv, hidden),
            prefix + "self_attn.v_proj.weight": (kv, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, hidden),
            prefix + "mlp.gate_proj.weight": (ffn, hidden),
            prefix + "mlp.up_proj.weight": (ffn, hidden),
            prefix + "mlp.down_proj.weight": (hidden, ffn),
        }
        if bias:
            shapes |= {
                prefix + "self_attn.q_proj.bias": (hidden,),
                prefix + "self_attn.k_proj.bias": (kv,),
                prefix + "self_attn.v_proj.bias": (kv,),
            }
    return shapes
