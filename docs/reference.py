"""Makes reference pages of the public names from their docstrings: `python docs/reference.py FOLDER`.

It needs pdoc: `pip install '.[docs]'`.
"""

import sys
from pathlib import Path

import halfback

SEAMS = (  # what others write against, beside what `import halfback` gives
    *("parties.protocol", "parties.client", "parties.server", "parties.agreement"),
    *("codecs.protocol", "controllers.protocol", "wire.messages"),
)


def main(folder: Path) -> None:
    import pdoc

    for name in halfback.__all__:
        setattr(halfback, name, getattr(halfback, name))  # pdoc shows what is imported already
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc("halfback", *(f"halfback.{seam}" for seam in SEAMS), output_directory=folder)
    print(folder / "halfback.html")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
