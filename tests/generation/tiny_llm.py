"""A tiny language model that writes noise in the shape of an answer.

A Llama with random weights, real but for a few hidden units: they make the next token depend on
the kind of the last one, so that the text after a prompt is a line that opens the passage of grade
1, some words, the line of grade 0, some words, and the last line. Engine, tokenizer, sampling and
grammars have real work to do with it; the words are noise.
"""

from pathlib import Path

from tiny_words import WORDS

OPENING, SECOND, END = (
    "=== grade 1, passage 1 ===\n",
    "\n=== grade 0, passage 1 ===\n",
    "\n=== end ===",
)
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
# After a token of which kind come tokens of which kind, with which weight. The first half of the
# words belongs to the passage of grade 1, the second half to that of grade 0; a quote ends a
# string where a grammar asks for JSON.
NEXT = {
    "other": {"opening": 1.0, "first": 0.01, "other": 1e-6},
    "opening": {"first": 1.0},
    "first": {"first": 0.95, "second line": 0.04, "quote": 0.01},
    "second line": {"second": 1.0},
    "second": {"second": 0.95, "end": 0.04, "quote": 0.01},
    "end": {"</s>": 1.0},
}
LEAST = 1e-8


def save_tiny_llm(folder: Path, context: int = 2048) -> Path:
    """Write the model, its tokenizer and a chat template."""
    import torch
    import transformers
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {mark: number for number, mark in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    merges: list[tuple[str, str]] = []
    for word in WORDS:  # a token has the space before its word
        piece = "Ġ"
        for letter in word:
            if piece + letter not in vocabulary:
                vocabulary[piece + letter] = len(vocabulary)
                merges.append((piece, letter))
            piece += letter
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True) for name in ("<s>", "</s>", "<pad>")]
    )
    tokenizer.add_tokens([AddedToken(line, normalized=False) for line in (OPENING, SECOND, END)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)

    kinds = dict.fromkeys(range(len(fast)), "other")
    half = len(WORDS) // 2
    kinds |= {vocabulary["Ġ" + word]: "first" for word in WORDS[:half]}
    kinds |= {vocabulary["Ġ" + word]: "second" for word in WORDS[half:]}
    kinds |= {
        tokenizer.token_to_id(OPENING): "opening",
        tokenizer.token_to_id(SECOND): "second line",
    }
    kinds |= {tokenizer.token_to_id(END): "end", vocabulary['"']: "quote", 1: "</s>"}
    sizes = {kind: list(kinds.values()).count(kind) for kind in kinds.values()}

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        strength = 1.0
        units = {kind: unit for unit, kind in enumerate(NEXT)}
        for token, kind in kinds.items():
            unit = units.get("other" if kind == "quote" else kind, units["other"])
            model.model.embed_tokens.weight[token, : len(units)] = 0.0
            model.model.embed_tokens.weight[token, unit] = strength
        # After the last norm a lone unit of strength 1 is about sqrt(32), whatever the others are.
        for kind, following in NEXT.items():
            for token, other in kinds.items():
                weight = following.get(other, 0.0) / sizes[other] + LEAST / len(kinds)
                logit = torch.tensor(weight).log()
                model.lm_head.weight[token, units[kind]] = logit / config.hidden_size**0.5
    model.generation_config.do_sample = True  # a server samples only if the model says so
    model.save_pretrained(folder)
    return folder
