"""Where a measurement was made: device, versions, settings, date, revision."""

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def revision() -> str:
    """Commit of the working tree, with "+changes" where it differs; "unknown" outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _package() -> dict[str, str]:
    try:
        import datagrad_ext
    except ImportError as error:
        return {"version": "absent", "backends": str(error)}
    return {"version": datagrad_ext.__version__, "backends": str(datagrad_ext.backends())}


def _cuda() -> dict[str, str]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "capability": f"{properties.major}.{properties.minor}",
        "memory": f"{properties.total_memory / 2**30:.0f} GiB",
    }


def describe(device: str) -> dict[str, object]:
    """Everything a reader needs to judge a results file."""
    on_cuda = device == "cuda"
    return {
        "device": torch.cuda.get_device_name(0) if on_cuda else cpu_model(),
        "device_type": device,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        **(_cuda() if on_cuda else {}),
        "datagrad_ext": _package(),
        "revision": revision(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def slug(environment: dict[str, object]) -> str:
    """Folder name of a device: its name, and the thread count of a CPU."""
    name = str(environment["device"])
    if environment["device_type"] == "cpu":
        name += f" {environment['threads']} threads"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
