"""Programs that the launchers would call, replaced by recorders on PATH."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"


@dataclass
class Stage:
    """A folder of fake programs, and the launchers run with them first on PATH."""

    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def fake(self, name: str, body: str = "") -> None:
        """A program that writes its name and arguments to the log, then does what `body` says."""
        program = self.folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f'#!/usr/bin/env bash\nstage={self.folder}\necho "{name} $*" >> "$stage/log"\n{body}\n'
        )
        program.chmod(0o755)

    def environment(self, **extra: str) -> dict[str, str]:
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        # Nobody answers there: not on Google Cloud.
        quiet = {"PATH": path, "HOME": str(self.folder), "GCE_METADATA_HOST": "127.0.0.1:1"}
        return {**quiet, "USER": "tester", **extra}

    def run(self, *command: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run a launcher to its end; stderr is part of stdout."""
        return subprocess.run(
            list(map(str, command)),
            env=self.environment(**extra),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=60,
        )

    @contextmanager
    def start(self, *command: str | Path, **extra: str) -> "Iterator[subprocess.Popen[str]]":
        """A launcher in a process group of its own, as of a terminal; killed at the end."""
        process = subprocess.Popen(
            list(map(str, command)),
            env=self.environment(**extra),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []
