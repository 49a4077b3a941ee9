"""A bundle on the Hugging Face Hub: pushed once, opened by whoever upgrades.

    pip install 'fct-infer[cpu,hf]'
    python examples/hub_bundle.py push h.bundle you/h-clip-to-siglip
    python examples/hub_bundle.py pull you/h-clip-to-siglip h.bundle --revision 0123456789abcdef0123456789abcdef01234567

What is pulled is checked against the bundle's own manifest when it is opened; naming a commit as the revision also says
which bundle it is. A bundle of the core's or of ONNX files runs no code.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from fct_infer import Transformation, load_transformation


def push(bundle: Path, repository: str, api: HfApi | None = None) -> str:
    """Upload a bundle in one commit and return the commit's id; one that does not open is not uploaded."""
    load_transformation(bundle)
    api = api or HfApi()
    api.create_repo(repository, exist_ok=True)
    return api.upload_folder(repo_id=repository, folder_path=bundle, commit_message="A transformation").oid


def pull(repository: str, bundle: Path, revision: str | None = None) -> Transformation:
    """Download a bundle into the folder ``bundle``, and open it."""
    snapshot_download(repository, revision=revision, local_dir=bundle)
    return load_transformation(bundle)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Push a bundle to the Hugging Face Hub, or pull one.")
    parser.add_argument("what", choices=["push", "pull"])
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--revision")
    given = parser.parse_args()
    if given.what == "push":
        print(push(Path(given.first), given.second))
    else:
        print(pull(given.first, Path(given.second), given.revision))


if __name__ == "__main__":
    main()
