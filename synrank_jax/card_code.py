"""Code of the model card that computes what the encoding contract says."""

from synrank_jax.contract import EncodingContract


def sentence_transformers_code(contract: EncodingContract, folder: str) -> str:
    """Queries, passages and their scores with sentence-transformers."""
    return f"""from sentence_transformers import SentenceTransformer

model = SentenceTransformer({folder!r})
queries = model.encode_query(["a question"])
passages = model.encode_document(["a passage", "another passage"])
scores = model.similarity(queries, passages)  # {contract.similarity}
"""


def transformers_code(contract: EncodingContract, folder: str) -> str:
    """The same with transformers alone, which knows nothing of what follows the encoder."""
    if contract.pooling == "mean":
        pooled = "(hidden * mask).sum(1) / mask.sum(1)"
    else:
        pooled = "hidden[:, 0]"
    then = ""
    if contract.dimension is not None:
        then += f"    vectors = vectors[:, :{contract.dimension}]\n"
    if contract.normalize:
        then += "    vectors = torch.nn.functional.normalize(vectors, dim=1)\n"
    scores = "queries @ passages.T"
    if contract.similarity == "cosine" and not contract.normalize:
        scores = "torch.nn.functional.cosine_similarity(queries[:, None], passages[None], dim=2)"
    return f"""import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder!r})
model = AutoModel.from_pretrained({folder!r}).eval()


def embed(texts, prompt, length):
    texts = [prompt + text for text in texts]
    batch = tokenizer(
        texts, padding=True, truncation=True, max_length=length, return_tensors="pt"
    )
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    vectors = {pooled}
{then}    return vectors


queries = embed(["a question"], {contract.query_prompt!r}, {contract.query_length})
passages = embed(
    ["a passage", "another passage"], {contract.passage_prompt!r}, {contract.passage_length}
)
scores = {scores}
"""
