# make test   install everything into a virtual environment, build, lint, type check, test
# make demo   install everything into a virtual environment, build, train on real digits and show what it bought
# make bench  the same environment: measure, write benchmarks/results/
# make docs   the same environment: the documentation with an API reference, as build/site; a warning is an error
# make gpu    on a machine with a GPU and an environment of its own (PYTHON): build, tests, compute-sanitizer, benchmark,
#             in under eight minutes and without a network; make gpu DRY=1 lists it anywhere
# make clean  remove what was built
#
# VENV is the environment, PYTHON makes it, TORCH is the torch to install where there is none yet.

VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch>=2.10

PY := $(VENV)/bin/python
EXTRAS := test,demo,bench

.PHONY: test demo bench docs gpu install clean

# A process for each core, with one thread.
test: export DATAGRAD_REQUIRE_NATIVE = 1
test: export OMP_NUM_THREADS = 1
test: install
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest --numprocesses auto

demo: install
	$(PY) -m datagrad_ext train --out results/demo

bench: install
	$(PY) -m benchmarks.run

docs: EXTRAS := test,demo,bench,docs
docs: install
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

# torch comes first: the kernels are compiled with its headers. The build is run by itself to show its progress.
install: $(PY)
	$(PY) -m pip install --quiet '$(TORCH)' 'setuptools>=77' ninja pybind11
	$(PY) setup.py --quiet build_ext --inplace
	$(PY) -m pip install --quiet --no-build-isolation --editable '.[$(EXTRAS)]'

$(PY):
	$(PYTHON) -m venv $(VENV)

# What it does is in benchmarks/gpu.py. DRY=1 lists it on any machine; STAGES chooses stages, LIMIT the seconds for all of
# it; OUT is a folder for a copy of results and logs.
gpu:
	$(PYTHON) -m benchmarks.gpu $(if $(DRY),--dry-run) $(if $(STAGES),--stages $(STAGES)) \
		$(if $(LIMIT),--seconds $(LIMIT)) $(if $(OUT),--out $(OUT))

clean:
	rm -rf build dist *.egg-info datagrad_ext/lib datagrad_ext/_C.*.so datagrad_ext/_build_info.json
