"""An exported encoder in plain torch, pooled as the contract says: what the ONNX graph computes."""

from pathlib import Path

import torch
from transformers import AutoModel
from transformers.utils import logging

from synrank_jax.contract import EncodingContract


class PooledEncoder(torch.nn.Module):  # type: ignore[misc]
    """Token ids to token vectors [B, T, H] and text vectors [B, D], whichever side is padded.

    A BERT of transformers counts positions from the first column, padding included; here they are
    counted under the mask, and `cls` is the first attended token. So padding on the left gives the
    same vectors as on the right.

    Args:
        folder: an exported folder, or any that AutoModel loads; no code of it is executed.
        contract: pooling, dimension and normalisation.
    """

    def __init__(self, folder: Path, contract: EncodingContract) -> None:
        super().__init__()
        logging.disable_progress_bar()
        self.encoder = AutoModel.from_pretrained(
            str(folder),
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        ).eval()
        self.contract = contract

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All [B, T] int64; each row attends to at least one token."""
        counted = attention_mask.cumsum(1)
        hidden = self.encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=(counted - 1).clamp(min=0),
        ).last_hidden_state
        weights = attention_mask
        if self.contract.pooling == "cls":
            weights = weights * (counted == 1)
        total = (hidden * weights.unsqueeze(-1)).sum(1)
        pooled = (total / weights.sum(1, keepdim=True))[:, : self.contract.dimension]
        if self.contract.normalize:
            pooled = torch.nn.functional.normalize(pooled, dim=1)
        return hidden, pooled
