"""From a recipe to a device package: a folder that a device with an inference runtime and nothing else works from."""

from importlib.util import find_spec

from halfback.errors import UserError

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_OF_DEVICES = "halfback_device"


def check_installed(wanted_by: str, *, device: bool = True) -> None:
    """Refuses, in words that begin with `wanted_by`, where something is not installed that graphs are made with.

    `device`: what runs packages is needed too.
    """
    if missing := [name for name in (*_NEEDED, *([_OF_DEVICES] if device else [])) if find_spec(name) is None]:
        cure = "pip install 'halfback[package]'" + (" halfback-device" if device else "")
        raise UserError(f"{wanted_by} needs {', '.join(missing)}, not installed here: {cure}")
