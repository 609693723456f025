"""What importing the package and starting a command must not do, and what errors look like."""

import importlib
import subprocess
import sys

import pytest

MAIN = ("mine", "prepare", "plan", "train", "export", "evaluate")
COMMANDS = (*MAIN, "generate", "quickstart", "compare", "audit")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_importing_the_package_loads_no_framework():
    code = (
        "import sys, synrank_jax\n"
        "heavy = {'jax', 'torch', 'faiss', 'transformers', 'tensorflow'} & sys.modules.keys()\n"
        "sys.exit(', '.join(heavy) or None)"
    )
    assert python("-c", code).returncode == 0


def test_training_and_preparing_load_neither_torch_nor_tensorflow_nor_faiss():
    code = (
        "import sys, synrank_jax.train, synrank_jax.prepare, synrank_jax.evaluate\n"
        "heavy = {'torch', 'faiss', 'tensorflow', 'sentence_transformers'} & sys.modules.keys()\n"
        "sys.exit(', '.join(heavy) or None)"
    )
    process = python("-c", code)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]):
    module = importlib.import_module(f"synrank_jax.{command}")
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    assert f"python -m synrank_jax.{command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["prepare", "evaluate"])
def test_a_wrong_key_is_one_message_and_exit_code_2(command: str):
    config = ["--config", "configs/quickstart.yaml", "--set", "loss.temprature=1"]
    process = python("-m", f"synrank_jax.{command}", *config)
    assert process.returncode == 2
    assert process.stderr.startswith("error: ")
    assert "did you mean 'temperature'?" in process.stderr
    assert "Traceback" not in process.stderr


def test_print_config_shows_the_resolved_values():
    config = ["--config", "configs/quickstart.yaml", "--set", "train.seed=3", "--print-config"]
    process = python("-m", "synrank_jax.train", *config)
    assert process.returncode == 0
    assert "seed: 3" in process.stdout
    assert "clip_norm: 1.0" in process.stdout
