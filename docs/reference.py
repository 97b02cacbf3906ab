"""Reference pages of the public names, from their docstrings: `python docs/reference.py FOLDER` (`pip install '.[docs]'`)."""

import sys
from pathlib import Path

import pdoc

import halfback

SEAMS = (
    *("parties.protocol", "parties.client", "parties.server", "parties.agreement"),
    *("codecs.protocol", "controllers.protocol", "wire.messages"),
)


def main(folder: Path) -> None:
    for name in halfback.__all__:
        setattr(halfback, name, getattr(halfback, name))  # pdoc shows what is imported already
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc("halfback", *(f"halfback.{seam}" for seam in SEAMS), output_directory=folder)
    print(f"{folder / 'halfback.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
