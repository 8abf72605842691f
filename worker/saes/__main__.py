"""`python -m worker.saes VERB ... WHAT`, which `orch sae` runs: it prints as one JSON object what it came to."""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from orchestrator.errors import MachineError, OrchError
from orchestrator.masking import mask, mask_all
from orchestrator.settings import Settings, load

REFUSED = 4
"""Exit status where nothing was entered, as what was read is not what it should be."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one thing to one SAE; return the exit status."""
    for package in ("torch", "transformers", "huggingface_hub", "sqlalchemy"):  # advice to their authors
        warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
    asked = vars(_parser().parse_args(arguments))
    try:
        said = _run(load(), asked.pop("verb"), asked.pop("what"), asked)
    except OrchError as error:
        print(f"Error: {mask(error.message)}", *([mask(error.hint)] if error.hint else []), sep="\n", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - the one place of this process where anything becomes a message
        print(f"Error: this should not have happened: {type(error).__name__}: {mask(str(error))}", file=sys.stderr)
        return 1
    print(json.dumps(mask_all(said)))
    return REFUSED if said.get("refused") else 0


def _run(settings: Settings, verb: str, what: str, asked: dict[str, Any]) -> dict[str, Any]:
    from orchestrator.database.schema import open_database
    from worker.devices import check

    if asked.get("device"):
        check(asked["device"])
    engine = open_database(settings)
    try:
        if verb == "import":
            from worker.saes.importing import import_sae

            return import_sae(engine, settings, what, asked)
        if verb == "import-lens":
            from worker.saes.lens_import import import_lens

            return import_lens(engine, settings, what, asked)
        if verb == "verify":
            from worker.saes.verifying import verify_sae

            return verify_sae(engine, settings, what, asked)
        from worker.saes.exporting import export_sae

        return export_sae(engine, settings, what, asked)
    except MemoryError as error:
        raise MachineError("the SAE does not fit into this machine's memory") from error
    finally:
        engine.dispose()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker.saes", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, texts in {
        "import": ("name", "format", "convention", "subject", "revision", "site", "hook", "data", "device"),
        "import-lens": ("name", "subject", "revision"),
        "verify": ("subject", "revision", "site", "hook", "data", "device"),
        "export": ("folder", "format", "push"),
    }.items():
        one = verbs.add_parser(verb)
        one.add_argument("what")
        for name in texts:
            one.add_argument(f"--{name}")
        for name in {"export": ("layer",), "import-lens": ()}.get(verb, ("layer", "context", "tokens")):
            one.add_argument(f"--{name}", type=int)
    return parser


if __name__ == "__main__":
    sys.exit(main())
