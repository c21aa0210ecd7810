"""Which format a checkpoint lies in, and its weights, read as they are asked for.

| format      | recognised by                                                              |
|-------------|----------------------------------------------------------------------------|
| native      | folder with state.json that says so: ours, model.safetensors and the rest  |
| huggingface | folder with config.json beside safetensors, sharded or not                 |
| safetensors | a .safetensors file, or a folder of one, or of shards                      |
| dcp         | folder with .metadata: torch.distributed.checkpoint                        |
| pickled     | .bin, .pt, .pth, .ckpt, .pkl: refused, unless the user allows it           |

Each may lie on this machine, behind a URL of fsspec, or in the Hub's cache (hf://).
"""

from checkpoints_index.formats.folder_check import size_bytes, verify
from checkpoints_index.formats.native import read_state
from checkpoints_index.formats.opening import open_weights
from checkpoints_index.formats.recognition import (
    NATIVE,
    ONE_FILE,
    PARTIAL,
    PICKLED,
    SHARD_INDEX,
    recognise,
)
from checkpoints_index.formats.weights import Weights

__all__ = [
    "NATIVE",
    "ONE_FILE",
    "PARTIAL",
    "PICKLED",
    "SHARD_INDEX",
    "Weights",
    "open_weights",
    "read_state",
    "recognise",
    "size_bytes",
    "verify",
]
