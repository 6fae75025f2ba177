"""Install the contestants: an environment for each peer, and the checkpoint in the format of each.

    python -m benchmarks.peers.install --tokenizer DIR [--peers openvino ...] [--envs DIR] [--models DIR]

Existing parts are kept; the defaults of `--envs` and `--models` are folders beside this file that git ignores. It takes
about twenty minutes and 12 GB. Everything comes from the package registry: llama.cpp is built for this machine from the
source in llama-cpp-python's source package; OpenVINO's models are exported by optimum-intel from the original layout,
with the small modelling file in `files/`, because the official one is only on the hub. If a peer fails, its name is
printed and the others continue; the results of `ternvl bench peers` then name the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.peers.contestants import ENVS, LLAMA_VERSION, MODELS, ROOT, TITLES, Places

FILES = Path(__file__).with_name("files")
# numpy, torch and pillow have the project's versions if the peer allows it. torch is the CPU build if the index
# has one of this version, so it goes first; torchvision, which optimum-intel brings, does not match it.
PACKAGES = {
    "transformers": ["torch==2.13.0", "transformers==5.23.0", "pillow", "numpy"],
    "openvino": [
        "torch==2.13.0",
        "optimum-intel==2.2.0",
        "transformers==4.57.6",
        "nncf==3.4.0",
        "openvino-genai==2026.4.1.0",
        "pillow",
    ],
    "llamacpp": ["torch==2.13.0", "transformers==4.57.6", "gguf", "sentencepiece", "protobuf", "safetensors", "cmake"],
}
REMOTE_CODE = {
    "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
    "AutoModel": "modeling_internvl_chat.InternVLChatModel",
    "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
}


def run(command: Sequence[str | Path], **environment: str) -> None:
    """Print and run a command. Raises CalledProcessError if it fails."""
    print("  $", " ".join(map(str, command)), flush=True)
    subprocess.run([*map(str, command)], check=True, cwd=ROOT, env=os.environ | environment)


def checkpoint(places: Places, layout: str, tokenizer: Path) -> Path:
    """Write the random checkpoint with the chat template; return its folder."""
    folder = places.models / layout
    if not (folder / "done").exists():
        script = ROOT / "benchmarks" / "random_checkpoint.py"
        run([sys.executable, script, folder, "--layout", layout, "--tokenizer", tokenizer], PYTHONPATH=str(ROOT))
        shutil.copyfile(FILES / "chat_template.jinja", folder / "chat_template.jinja")
        (folder / "done").touch()
    return folder


def with_code(places: Places, tokenizer: Path) -> Path:
    """Write the original layout as on the hub, with modelling files, preprocessing and generation settings."""
    source, folder = checkpoint(places, "original", tokenizer), places.models / "remote-code"
    folder.mkdir(parents=True, exist_ok=True)
    for file in [*source.glob("*.json"), *FILES.iterdir()]:
        shutil.copyfile(file, folder / file.name)
    weights = folder / "model.safetensors"
    if not weights.exists():
        os.link(source / weights.name, weights)
    change(folder / "config.json", auto_map=REMOTE_CODE)
    change(folder / "tokenizer_config.json", chat_template=(FILES / "chat_template.jinja").read_text("utf-8"))
    return folder


def change(path: Path, **values: object) -> None:
    """Set keys of a JSON object in a file."""
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values, indent=2) + "\n", encoding="utf-8")


def environment(places: Places, peer: str) -> None:
    """Install the peer's packages in an environment of its own."""
    folder = places.envs / peer
    if (folder / "done").exists():
        return
    run([sys.executable, "-m", "venv", folder])
    pip = [places.python(peer), "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "install", *PACKAGES[peer]])
    run([*pip, "uninstall", "--yes", "torchvision"])
    (folder / "done").touch()


def transformers(places: Places, tokenizer: Path) -> None:
    """Write the layout that transformers reads."""
    environment(places, "transformers")
    checkpoint(places, "hf-new", tokenizer)


def openvino(places: Places, tokenizer: Path) -> None:
    """Export models with weights of 8 and of 4 bits."""
    environment(places, "openvino")
    source = with_code(places, tokenizer)
    for name in ("int8", "int4"):
        folder = places.models / f"openvino-{name}"
        if (folder / "openvino_detokenizer.xml").exists():
            continue
        export = [places.python("openvino").with_name("optimum-cli"), "export", "openvino", "--model", source]
        export += ["--task", "image-text-to-text", "--trust-remote-code", "--weight-format", name, folder]
        run(export, PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1")


def llamacpp(places: Places, tokenizer: Path) -> None:
    """Build the server, and convert its models."""
    environment(places, "llamacpp")
    build_server(places)
    models, source = places.models, with_code(places, tokenizer)
    convert = [places.python("llamacpp"), places.llama_source / "convert_hf_to_gguf.py", source]
    if not (models / "mmproj-f16.gguf").exists():
        run([*convert, "--mmproj", "--outfile", models / "mmproj-f16.gguf", "--outtype", "f16"])
    if not (models / "bf16.gguf").exists():
        run([*convert, "--outfile", models / "bf16.gguf", "--outtype", "bf16"])
    for name in ("q8_0", "q4_0"):
        if not (models / f"{name}.gguf").exists():
            quantize = places.llama_server.with_name("llama-quantize")
            run([quantize, models / "bf16.gguf", models / f"{name}.gguf", name.upper()])


def build_server(places: Places) -> None:
    """Build llama-server from the source package of llama-cpp-python."""
    if places.llama_server.with_name("version.txt").exists():
        return
    sources, package = places.envs / "src", f"llama-cpp-python=={LLAMA_VERSION}"
    pip = [places.python("llamacpp"), "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "download", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", sources, package])
    with tarfile.open(sources / f"llama_cpp_python-{LLAMA_VERSION}.tar.gz") as archive:
        archive.extractall(sources, filter="data")
    build = places.llama_source / "build"
    options = ["GGML_NATIVE=ON", "GGML_OPENMP=ON", "LLAMA_CURL=OFF", "LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_SERVER=ON"]
    settings = [f"-D{option}" for option in ["CMAKE_BUILD_TYPE=Release", *options]]
    cmake = places.python("llamacpp").with_name("cmake")
    run([cmake, "-S", places.llama_source, "-B", build, *settings])
    targets = ["--target", "llama-server", "--target", "llama-quantize"]
    run([cmake, "--build", build, *targets, "--parallel", str(os.cpu_count())])
    version = f"llama.cpp of llama-cpp-python {LLAMA_VERSION}\n"
    places.llama_server.with_name("version.txt").write_text(version, encoding="utf-8")


MAKERS: dict[str, Callable[[Places, Path], object]] = {
    "ternvl": lambda places, tokenizer: checkpoint(places, "original", tokenizer),
    "openvino": openvino,
    "llamacpp": llamacpp,
    "transformers": transformers,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Install the peers; return exit code 1 if one could not be installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with InternVL3's tokenizer.json")
    parser.add_argument("--peers", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--envs", type=Path, default=ENVS)
    parser.add_argument("--models", type=Path, default=MODELS)
    args = parser.parse_args(arguments)
    if not (args.tokenizer / "tokenizer.json").is_file():
        parser.error(f"--tokenizer {args.tokenizer} has no tokenizer.json")
    places, failed = Places(args.envs.absolute(), args.models.absolute()), []
    for peer in args.peers:
        print(TITLES[peer], flush=True)
        try:
            MAKERS[peer](places, args.tokenizer.absolute())
        except (OSError, subprocess.CalledProcessError, tarfile.TarError) as error:
            print(f"{TITLES[peer]} cannot be installed: {error}", file=sys.stderr)
            failed.append(peer)
    print("not installed: " + ", ".join(failed) if failed else "all peers are installed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
