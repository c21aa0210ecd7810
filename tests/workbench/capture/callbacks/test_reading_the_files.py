"""Reading a callback's file loads no trainer."""

from __future__ import annotations

import subprocess
import sys

FILES = {"trainer", "lightning", "composer", "olmo_core", "torchtitan", "megatron"}


def test_reading_the_callbacks_files_loads_no_trainer():
    read = "\n".join(f"import workbench.capture.callbacks.{name}" for name in sorted(FILES))
    code = f"import sys\n{read}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & ((FILES - {"trainer"}) | {"pytorch_lightning", "transformers.trainer"})
